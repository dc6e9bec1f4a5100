import { sql } from "kysely";
import { DEFAULT_LOCK_WAIT_MS } from "../../src/database/executor.ts";
import { sqlstateOf } from "../../src/database/sqlstate.ts";
import { refuse, requestTypes, takeOrFind, takeOrJoin } from "./0010_enqueue_requests.ts";
import { problemCodes, requestProblems, withoutRequestProblems } from "./0010_request_problem.ts";
import { type QualifiedName, qualifiedNames, runAll, type SchemaMigration } from "./names.ts";

/**
 * Enqueueing from SQL: for triggers, psql and other languages. The rules are those of the functions in TypeScript, and
 * what they write is the same (FEATURES F-J2, F-J3, F-J11, F-J12).
 */
export function sqlClient(schema: string): SchemaMigration {
  const name = qualifiedNames(schema);
  return {
    async up(db) {
      await runAll(db, [
        uuidV7(name),
        ...requestProblems(name),
        ...requestTypes(name),
        jobRequests(name),
        takeOrFind(name, schema),
        takeOrJoin(name, schema),
        enqueueJobs(name),
        enqueueJob(name),
      ]);
    },
    async down(db) {
      await runAll(db, [
        sql`drop function ${name("enqueue_job")}`,
        sql`drop function ${name("enqueue_jobs")}`,
        sql`drop function ${name("take_or_join_jobs")}`,
        sql`drop function ${name("take_or_find_jobs")}`,
        sql`drop function ${name("job_requests")}`,
        sql`drop type ${name("job_answer")}`,
        sql`drop type ${name("job_request")}`,
        ...withoutRequestProblems(name),
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

/**
 * The requests as rows, each with an id, in their order. What an idempotency key remembers has the names of TypeScript,
 * so that each side finds the other's.
 */
function jobRequests(name: QualifiedName) {
  return sql`
    create function ${name("job_requests")}(jobs jsonb) returns ${name("job_request")}[]
    language plpgsql volatile as $function$
    begin
      return (
        select array_agg(row(
          place,
          ${name("uuid_v7")}(clock_timestamp() + place * interval '1 microsecond'),
          job ->> 'type',
          job -> 'payload',
          (job ->> 'priority')::numeric::integer,
          (job ->> 'max_attempts')::numeric::integer,
          (job ->> 'timeout_seconds')::numeric::integer,
          (job ->> 'run_at')::timestamptz,
          (job ->> 'delay_seconds')::double precision,
          (job ->> 'organization_id')::uuid,
          tags,
          job #>> '{limit,key}',
          (job #>> '{limit,concurrency}')::numeric::integer,
          (job #>> '{limit,rate,starts}')::numeric::integer,
          (job #>> '{limit,rate,period_seconds}')::double precision,
          case
            when job ->> 'idempotency_key' is not null then 'IDEMPOTENCY'
            when job ->> 'active' is not null then 'ACTIVE'
            when job ->> 'debounce' is not null then 'DEBOUNCE'
            when job ->> 'throttle' is not null then 'THROTTLE'
          end,
          coalesce(job ->> 'idempotency_key', job #>> '{active,key}', job #>> '{debounce,key}', job #>> '{throttle,key}'),
          coalesce(job ->> 'idempotency_ttl_seconds', job #>> '{throttle,seconds}')::double precision,
          coalesce((job #>> '{active,replace}')::boolean, job ->> 'debounce' is not null),
          (job #>> '{debounce,seconds}')::double precision,
          (job #>> '{debounce,max_seconds}')::double precision,
          case when job ->> 'idempotency_key' is null then 'null' else jsonb_build_object(
            'payload', job -> 'payload',
            'settings', jsonb_build_object(
              'priority', job -> 'priority',
              'maxAttempts', job -> 'max_attempts',
              'timeoutSeconds', job -> 'timeout_seconds',
              'tags', tags
            ) || case when job ->> 'delay_seconds' is null then '{}'
              else jsonb_build_object('delaySeconds', job -> 'delay_seconds') end
            || case when job ->> 'limit' is null then '{}' else jsonb_build_object('limit', jsonb_strip_nulls(
              jsonb_build_object('key', job #> '{limit,key}', 'concurrency', job #> '{limit,concurrency}')
              || case when job #>> '{limit,rate}' is null then '{}' else jsonb_build_object('rate', jsonb_build_object(
                'starts', job #> '{limit,rate,starts}', 'periodSeconds', job #> '{limit,rate,period_seconds}'
              )) end
            )) end
          ) end
        )::${name("job_request")})
        from jsonb_array_elements(jobs) with ordinality as item(job, place)
        cross join lateral (
          select case when jsonb_typeof(job -> 'tags') = 'array' then '{' || coalesce((
            select string_agg('"' || regexp_replace(tag, '(["\\\\])', '\\\\\\1', 'g') || '"', ',' order by tag_place)
            from jsonb_array_elements_text(job -> 'tags') with ordinality as listed(tag, tag_place)
          ), '') || '}' end as tags offset 0
        ) as listed
      );
    end
    $function$`;
}

/** By the first key of a batch: what comes second waits, and reads what the first did. */
const isolationCodes = {
  IDEMPOTENCY: "job.enqueue_idempotency_unsupported_isolation",
  ACTIVE: "job.enqueue_active_key_unsupported_isolation",
  DEBOUNCE: "job.enqueue_debounce_unsupported_isolation",
  THROTTLE: "job.enqueue_throttle_unsupported_isolation",
} as const;

/**
 * All jobs or none, answered in their order: first those with keys that outlast their jobs or with none, then those with
 * keys of live jobs. The waits for who takes the same key are bounded as everywhere.
 */
function enqueueJobs(name: QualifiedName) {
  return sql`
    create function ${name("enqueue_jobs")}(jobs jsonb, strict boolean default false)
    returns table (id uuid, status ${name("job_status")}, run_number integer, disposition text)
    language plpgsql volatile as $function$
    #variable_conflict use_column
    declare
      code text;
      problem text;
      refused text[];
      requests ${name("job_request")}[];
      key_kind text;
      lock_wait text;
      answers ${name("job_answer")}[];
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
      requests := ${name("job_requests")}(jobs);
      if requests is null then
        return;
      end if;

      key_kind := (select r.key_kind from unnest(requests) as r where r.key_kind is not null order by r.place limit 1);
      if key_kind is not null and current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
        case key_kind
        ${sql.join(
          Object.entries(isolationCodes).map(([kind, code]) => sql`when ${sql.lit(kind)} then ${refuse(code)};`),
          sql` `,
        )}
        end case;
      end if;

      if strict then
        refused := array(
          select distinct r.type from unnest(requests) as r
          left join ${name("job_definitions")} as d on d.type = r.type and d.enabled
          where d.type is null
        );
        if refused <> '{}' then
          ${refuse("job.definition_not_found_or_disabled", undefined, sql`array_to_string(refused, ', ')`)};
        end if;
      end if;

      if key_kind is null then
        return query
          select a.id, a.status, a.run_number, a.disposition from ${name("take_or_find_jobs")}(requests) as a order by a.place;
        return;
      end if;

      lock_wait := current_setting('lock_timeout');
      if extract(epoch from lock_wait::interval) between 0.001 and ${sql.lit(DEFAULT_LOCK_WAIT_MS / 1000)} then
        lock_wait := null;
      else
        perform set_config('lock_timeout', ${sql.lit(`${DEFAULT_LOCK_WAIT_MS}`)}, true);
      end if;
      answers := array(select a from ${name("take_or_find_jobs")}(
        array(select r from unnest(requests) as r where (r.key_kind in ('ACTIVE', 'DEBOUNCE')) is not true)
      ) as a);
      answers := answers || array(select a from ${name("take_or_join_jobs")}(
        array(select r from unnest(requests) as r where r.key_kind in ('ACTIVE', 'DEBOUNCE'))
      ) as a);
      if lock_wait is not null then
        perform set_config('lock_timeout', lock_wait, true);
      end if;
      return query select a.id, a.status, a.run_number, a.disposition from unnest(answers) as a order by a.place;
    end
    $function$`;
}

/** One job; the options are those of `enqueue_jobs` without type and payload, and with `strict`. */
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
