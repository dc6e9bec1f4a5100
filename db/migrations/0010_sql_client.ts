import { type RawBuilder, sql } from "kysely";
import { DEFAULT_LOCK_WAIT_MS, jobsChannel } from "../../src/database/executor.ts";
import { sqlstateOf } from "../../src/database/sqlstate.ts";
import { DEFAULT_MAX_BYTES } from "../../src/database/values/rules.ts";
import { errorCodes, type LedgerErrorCode } from "../../src/errors.ts";
import { MAX_DURATION_SECONDS, MAX_INT4, MAX_KEY_BYTES } from "../../src/jobs/arguments.ts";
import { jobDefaults } from "../../src/jobs/defaults.ts";
import { type QualifiedName, qualifiedNames, runAll, type SchemaMigration } from "./names.ts";

/**
 * Enqueueing from SQL: for triggers, psql and other languages. The rules are those of the functions in TypeScript, and
 * what they write is the same (FEATURES F-J2, F-J3).
 */
export function sqlClient(schema: string): SchemaMigration {
  const name = qualifiedNames(schema);
  return {
    async up(db) {
      await runAll(db, [uuidV7(name), requestProblem(name), enqueueJobs(name, schema), enqueueJob(name)]);
    },
    async down(db) {
      await runAll(db, [
        sql`drop function ${name("enqueue_job")}`,
        sql`drop function ${name("enqueue_jobs")}`,
        sql`drop function ${name("job_request_problem")}`,
        sql`drop function ${name("uuid_v7")}`,
      ]);
    },
  };
}

/** The milliseconds, twelve bits of fractions of one, and a random rest: ids of later microseconds are greater. */
function uuidV7(name: QualifiedName) {
  return sql`
    create function ${name("uuid_v7")}(at timestamptz default clock_timestamp()) returns uuid
    language sql volatile parallel safe as $function$
      select encode(
        substring(int8send(microseconds / 1000) from 3 for 6)
          || int2send((28672 + microseconds % 1000 * 4096 / 1000)::smallint)
          || substring(uuid_send(gen_random_uuid()) from 9 for 8),
        'hex')::uuid
      from (select floor(extract(epoch from at) * 1000000)::bigint as microseconds) as clock
    $function$`;
}

const options = {
  names: ["type", "idempotency_key"],
  integers: ["priority", "max_attempts", "timeout_seconds"],
  others: ["payload", "run_at", "delay_seconds", "organization_id", "tags"],
} as const;

const uuidPattern = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$";
const timePattern = String.raw`^\d{4}-\d\d-\d\d[T ]\d\d:\d\d[:.\d]*(Z|[+-]\d\d(:?\d\d)?)$`;

/** The code and, in words that hold nothing of its values, what is wrong with a request; null when nothing is. */
function requestProblem(name: QualifiedName) {
  const known = [...options.names, ...options.integers, ...options.others];
  return sql`
    create function ${name("job_request_problem")}(request jsonb) returns text[]
    language plpgsql immutable parallel safe as $function$
    declare
      option text;
      given jsonb;
      written text;
    begin
      if jsonb_typeof(request) <> 'object' then
        return ${problem(sql`'a job must be an object'`)};
      end if;
      if exists (select from jsonb_object_keys(request) as known(option) where known.option <> all (${textArray(known)})) then
        return ${problem(sql.lit(`the options of a job are ${known.join(", ")}`))};
      end if;

      foreach option in array ${textArray(options.names)} loop
        given := request -> option;
        continue when option <> 'type' and coalesce(given, 'null') = 'null';
        if jsonb_typeof(given) is distinct from 'string' or given #>> '{}' ~ '^\\s*$' then
          return ${problem(sql`option || ' must be a string that is not blank'`)};
        end if;
        if octet_length(given #>> '{}') > ${sql.lit(MAX_KEY_BYTES)} then
          return ${problem(sql`option || ${sql.lit(` is longer than ${MAX_KEY_BYTES} bytes`)}`)};
        end if;
      end loop;

      foreach option in array ${textArray(options.integers)} loop
        given := request -> option;
        continue when coalesce(given, 'null') = 'null';
        if jsonb_typeof(given) <> 'number' then
          return ${problem(sql`option || ' must be an integer'`)};
        end if;
        if given::numeric % 1 <> 0 or given::numeric > ${sql.lit(MAX_INT4)}
          or given::numeric < (case option when 'priority' then ${sql.lit(-MAX_INT4)} else 1 end) then
          return ${problem(sql`option || ' must be an integer of its range'`)};
        end if;
      end loop;

      given := request -> 'run_at';
      if coalesce(given, 'null') <> 'null' then
        if jsonb_typeof(given) <> 'string' or btrim(given #>> '{}') !~* ${sql.lit(timePattern)} then
          return ${problem(sql`'run_at must be an ISO 8601 time with its zone'`)};
        end if;
        if coalesce(request -> 'delay_seconds', 'null') <> 'null' then
          return ${problem(sql`'a job has run_at or delay_seconds, not both'`)};
        end if;
      end if;

      given := request -> 'delay_seconds';
      if coalesce(given, 'null') <> 'null' then
        if jsonb_typeof(given) <> 'number' then
          return ${problem(sql`'delay_seconds must be a number'`)};
        end if;
        if given::numeric <= 0 or given::numeric > ${sql.lit(MAX_DURATION_SECONDS)} then
          return ${problem(sql.lit(`delay_seconds must be above 0 and at most ${MAX_DURATION_SECONDS}`))};
        end if;
      end if;

      given := request -> 'organization_id';
      if coalesce(given, 'null') <> 'null'
        and (jsonb_typeof(given) <> 'string' or given #>> '{}' !~* ${sql.lit(uuidPattern)}) then
        return ${problem(sql`'organization_id must be a UUID'`)};
      end if;

      given := request -> 'tags';
      if coalesce(given, 'null') <> 'null' then
        if jsonb_typeof(given) <> 'array' then
          return ${problem(sql`'tags must be an array'`)};
        end if;
        if exists (
          select from jsonb_array_elements(given) as tag
          where jsonb_typeof(tag) <> 'string' or tag #>> '{}' ~ '^\\s*$'
            or octet_length(tag #>> '{}') > ${sql.lit(MAX_KEY_BYTES)}
        ) then
          return ${problem(sql.lit(`tags must be strings that are not blank, of at most ${MAX_KEY_BYTES} bytes`))};
        end if;
      end if;

      written := (request -> 'payload')::text;
      if written is null then
        return ${problem(sql.lit(errorCodes["payload.not_json"].message), "payload.not_json")};
      end if;
      if octet_length(written) > ${sql.lit(DEFAULT_MAX_BYTES)} then
        return ${problem(sql.lit(errorCodes["payload.too_large"].message), "payload.too_large")};
      end if;
      if written like '%{"$runledger": %' then
        if exists (
          with recursive held(value) as (
            select request -> 'payload'
            union all
            select element from held, lateral jsonb_array_elements(
              case when jsonb_typeof(held.value) = 'array' then held.value else '[]' end
            ) as element
          )
          select from held
          where case when jsonb_typeof(held.value) = 'object'
            then held.value ? '$runledger' and held.value - '$runledger' = '{}' end
        ) then
          return ${problem(sql.lit(errorCodes["payload.reserved"].message), "payload.reserved")};
        end if;
      end if;
      return null;
    end
    $function$`;
}

/**
 * All jobs or none, answered in their order. Keys are taken in their own order, so that two batches which share keys
 * cannot wait for each other; the wait for who takes the same key is bounded as everywhere. What is looked for in a list of
 * the batch is looked for by IN and NOT IN: they are hashed, whatever the planner thinks of the numbers.
 */
function enqueueJobs(name: QualifiedName, schema: string) {
  return sql`
    create function ${name("enqueue_jobs")}(jobs jsonb, strict boolean default false)
    returns table (id uuid, status ${name("job_status")}, run_number integer, disposition text)
    language plpgsql volatile as $function$
    #variable_conflict use_column
    declare
      code text;
      problem text;
      refused text[];
      ids uuid[];
      types text[];
      payloads jsonb[];
      priorities integer[];
      attempts integer[];
      timeouts integer[];
      times timestamptz[];
      delays double precision[];
      organizations uuid[];
      tag_lists text[];
      keys text[];
      requests jsonb[];
      inserted uuid[];
      runnable boolean;
      lock_wait text;
      found_places bigint[] := '{}';
      found_ids uuid[];
      found_statuses ${name("job_status")}[];
      found_run_numbers integer[];
      same boolean;
    begin
      -- What jsonb_agg makes of no rows.
      if jobs is null then
        return;
      end if;
      if jsonb_typeof(jobs) <> 'array' then
        ${refuse("input.invalid", sql`'jobs must be an array'`)};
      end if;
      select wrong[1], case when jsonb_array_length(jobs) > 1 then format('jobs[%s]: ', place - 1) else '' end || wrong[2]
      into code, problem
      from jsonb_array_elements(jobs) with ordinality as item(job, place),
        lateral (select ${name("job_request_problem")}(job) as wrong offset 0) as checked
      where wrong is not null order by place limit 1;
      if problem is not null then
        raise exception using message = problem, hint = code, errcode = case code ${sql.join(
          problemCodes.map((code) => sql`when ${sql.lit(code)} then ${sql.lit(sqlstateOf(code))}`),
          sql` `,
        )} end;
      end if;

      select
        array_agg(${name("uuid_v7")}(clock_timestamp() + place * interval '1 microsecond')),
        array_agg(job ->> 'type'),
        array_agg(job -> 'payload'),
        array_agg((job ->> 'priority')::numeric::integer),
        array_agg((job ->> 'max_attempts')::numeric::integer),
        array_agg((job ->> 'timeout_seconds')::numeric::integer),
        array_agg((job ->> 'run_at')::timestamptz),
        array_agg((job ->> 'delay_seconds')::double precision),
        array_agg((job ->> 'organization_id')::uuid),
        array_agg(tags),
        array_agg(job ->> 'idempotency_key'),
        array_agg(case when job ->> 'idempotency_key' is not null then jsonb_build_object(
          'payload', job -> 'payload',
          'settings', jsonb_build_object(
            'priority', job -> 'priority',
            'maxAttempts', job -> 'max_attempts',
            'timeoutSeconds', job -> 'timeout_seconds',
            'tags', tags
          ) || case when job ->> 'delay_seconds' is null then '{}'
            else jsonb_build_object('delaySeconds', job -> 'delay_seconds') end
        ) end)
      into ids, types, payloads, priorities, attempts, timeouts, times, delays, organizations, tag_lists, keys, requests
      from jsonb_array_elements(jobs) with ordinality as item(job, place)
      cross join lateral (
        select case when jsonb_typeof(job -> 'tags') = 'array' then '{' || coalesce((
          select string_agg('"' || regexp_replace(tag, '(["\\\\])', '\\\\\\1', 'g') || '"', ',' order by tag_place)
          from jsonb_array_elements_text(job -> 'tags') with ordinality as listed(tag, tag_place)
        ), '') || '}' end as tags offset 0
      ) as listed;
      if ids is null then
        return;
      end if;

      if strict then
        refused := array(
          select distinct given.type from unnest(types) as given(type)
          left join ${name("job_definitions")} as d on d.type = given.type and d.enabled
          where d.type is null
        );
        if refused <> '{}' then
          ${refuse("job.definition_not_found_or_disabled", undefined, sql`array_to_string(refused, ', ')`)};
        end if;
      end if;

      if array_remove(keys, null) <> '{}' then
        if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
          ${refuse("job.enqueue_idempotency_unsupported_isolation")};
        end if;
        lock_wait := current_setting('lock_timeout');
        if extract(epoch from lock_wait::interval) between 0.001 and ${sql.lit(DEFAULT_LOCK_WAIT_MS / 1000)} then
          lock_wait := null;
        else
          perform set_config('lock_timeout', ${sql.lit(`${DEFAULT_LOCK_WAIT_MS}`)}, true);
        end if;
      end if;

      if array_remove(keys, null) <> '{}' then
        delete from ${name("job_idempotency_keys")} as k
        using unnest(types, organizations, keys) as given(type, organization_id, key)
        where k.type = given.type and k.tenant = coalesce(given.organization_id::text, 'global')
          and k.key = given.key and k.kind = 'IDEMPOTENCY' and k.expires_at <= now();
      end if;

      with input as materialized (
        select * from unnest(ids, types, payloads, priorities, attempts, timeouts, times, delays, organizations, tag_lists, keys, requests)
          as input(id, type, payload, priority, max_attempts, timeout_seconds, run_at, delay_seconds, organization_id, tags, key, requested)
      ), taken as (
        insert into ${name("job_idempotency_keys")} (job_id, type, organization_id, key, requested, requested_run_at)
        select input.id, input.type, input.organization_id, input.key, input.requested, input.run_at from input
        where input.key is not null
        order by input.type, input.organization_id, input.key
        on conflict do nothing
        returning job_id
      ), added as (
        insert into ${name("job_queue")}
          (id, type, payload, priority, max_attempts, timeout_seconds, run_at, organization_id, tags)
        select input.id, input.type, input.payload,
          coalesce(input.priority, d.priority, ${sql.lit(jobDefaults.priority)}),
          coalesce(input.max_attempts, d.max_attempts, ${sql.lit(jobDefaults.maxAttempts)}),
          coalesce(input.timeout_seconds, d.timeout_seconds, ${sql.lit(jobDefaults.timeoutSeconds)}),
          coalesce(input.run_at, now() + make_interval(secs => input.delay_seconds), now()),
          input.organization_id, input.tags::text[]
        from input left join ${name("job_definitions")} as d on d.type = input.type
        where input.key is null or input.id in (select job_id from taken)
        returning id, run_at
      )
      select array(select id from added), exists (select from added where run_at <= now()) into inserted, runnable;

      if runnable then
        perform pg_notify(${sql.lit(jobsChannel(schema))}, '');
      end if;
      if lock_wait is not null then
        perform set_config('lock_timeout', lock_wait, true);
      end if;
      if cardinality(inserted) = cardinality(ids) then
        return query select given, ${name("job_status")} 'PENDING', 1, 'inserted' from unnest(ids) as given;
        return;
      end if;

      select array_agg(keyed.place), array_agg(job.id), array_agg(job.status), array_agg(job.run_number),
        bool_and(k.requested = keyed.requested and k.requested_run_at is not distinct from keyed.run_at)
      into found_places, found_ids, found_statuses, found_run_numbers, same
      from unnest(ids, types, organizations, keys, requests, times) with ordinality
        as keyed(id, type, organization_id, key, requested, run_at, place)
      join ${name("job_idempotency_keys")} as k on k.type = keyed.type
        and k.tenant = coalesce(keyed.organization_id::text, 'global') and k.key = keyed.key
        and k.kind = 'IDEMPOTENCY'
      cross join lateral (
        select q.id, q.status, q.run_number from ${name("job_queue")} as q where q.id = k.job_id
        union all
        select l.id, l.status, l.run_number from ${name("job_ledger")} as l where l.id = k.job_id
        order by run_number desc limit 1
      ) as job
      where keyed.id not in (select unnest(inserted));
      if not same then
        ${refuse("job.idempotency_conflict")};
      end if;
      if coalesce(cardinality(found_places), 0) + cardinality(inserted) < cardinality(ids) then
        ${refuse("job.not_found", sql`'A job of an idempotency key is gone.'`)};
      end if;
      return query
        select answer.id, answer.status, answer.run_number, answer.disposition from (
          select place, given as id, ${name("job_status")} 'PENDING' as status, 1 as run_number, 'inserted' as disposition
          from unnest(ids) with ordinality as made(given, place) where place not in (select unnest(found_places))
          union all
          select place, given, state, run, 'existing'
          from unnest(found_places, found_ids, found_statuses, found_run_numbers) as there(place, given, state, run)
        ) as answer order by answer.place;
    end
    $function$`;
}

/** One job; the options are those of `enqueue_jobs` without type and payload, and with \`strict\`. */
function enqueueJob(name: QualifiedName) {
  return sql`
    create function ${name("enqueue_job")}(type text, payload jsonb default '{}', options jsonb default '{}')
    returns table (id uuid, status ${name("job_status")}, run_number integer, disposition text)
    language plpgsql volatile as $function$
    begin
      if jsonb_typeof(options) is distinct from 'object' or options ?| '{type,payload}' then
        ${refuse("input.invalid", sql`'options must be an object without type and payload'`)};
      end if;
      if jsonb_typeof(options -> 'strict') not in ('boolean', 'null') then
        ${refuse("input.invalid", sql`'strict must be true or false'`)};
      end if;
      return query select * from ${name("enqueue_jobs")}(
        jsonb_build_array(
          (options - 'strict') || jsonb_build_object('type', type)
            || case when payload is null then '{}' else jsonb_build_object('payload', payload) end
        ),
        coalesce((options ->> 'strict')::boolean, false)
      );
    end
    $function$`;
}

/** Raises the SQLSTATE that stands for the code, with the code as the hint. */
function refuse(
  code: LedgerErrorCode,
  message: RawBuilder<unknown> = sql.lit(errorCodes[code].message),
  detail = sql`''`,
) {
  return sql`raise exception using errcode = ${sql.lit(sqlstateOf(code))}, message = ${message}, hint = ${sql.lit(code)}, detail = ${detail}`;
}

const problemCodes = ["input.invalid", "payload.not_json", "payload.too_large", "payload.reserved"] as const;

function problem(message: RawBuilder<unknown>, code: (typeof problemCodes)[number] = "input.invalid") {
  return sql`array[${sql.lit(code)}, ${message}]`;
}

function textArray(names: readonly string[]) {
  return sql`array[${sql.join(names.map((one) => sql.lit(one)))}]`;
}
