import { type RawBuilder, sql } from "kysely";
import { DEFAULT_MAX_BYTES } from "../../src/database/values/rules.ts";
import { errorCodes } from "../../src/errors.ts";
import { MAX_DURATION_SECONDS, MAX_INT4, MAX_KEY_BYTES } from "../../src/jobs/arguments.ts";
import type { QualifiedName } from "./names.ts";

/** The codes that a request can be refused with, before anything is written. */
export const problemCodes = ["input.invalid", "payload.not_json", "payload.too_large", "payload.reserved"] as const;

/** The functions that say what is wrong with a request from SQL, in words that hold nothing of its values; null when nothing is. */
export function requestProblems(name: QualifiedName) {
  return [optionsProblem(name), keyProblem(name), limitProblem(name), requestProblem(name)];
}

export function withoutRequestProblems(name: QualifiedName) {
  return ["job_request_problem", "job_limit_problem", "job_key_problem", "job_options_problem"].map(
    (problem) => sql`drop function ${name(problem)}`,
  );
}

/** An object of options, by what they are. */
interface Options {
  readonly names?: readonly string[];
  readonly integers?: readonly string[];
  readonly seconds?: readonly string[];
  /** What is looked at elsewhere. */
  readonly others?: readonly string[];
  readonly required: readonly string[];
}

const job: Options = {
  names: ["type", "idempotency_key"],
  integers: ["priority", "max_attempts", "timeout_seconds"],
  seconds: ["delay_seconds", "idempotency_ttl_seconds"],
  others: ["payload", "run_at", "organization_id", "tags", "limit", "active", "debounce", "throttle"],
  required: ["type"],
};
const active: Options = { names: ["key"], others: ["replace"], required: ["key"] };
const debounce: Options = { names: ["key"], seconds: ["seconds", "max_seconds"], required: ["key", "seconds"] };
const throttle: Options = { names: ["key"], seconds: ["seconds"], required: ["key", "seconds"] };
const limit: Options = { names: ["key"], integers: ["concurrency"], others: ["rate"], required: ["key"] };
const rate: Options = { integers: ["starts"], seconds: ["period_seconds"], required: ["starts", "period_seconds"] };

/** What is wrong with one object: an option that there is not, is required, or is not of its kind. `of` is null for the job itself. */
function optionsProblem(name: QualifiedName) {
  return sql`
    create function ${name("job_options_problem")}(
      of text, given jsonb, names text[], integers text[], seconds text[], known text[], required text[]
    ) returns text
    language plpgsql immutable parallel safe as $function$
    declare
      option text;
      value jsonb;
    begin
      if jsonb_typeof(given) is distinct from 'object' then
        return coalesce(of, 'a job') || ' must be an object';
      end if;
      if given - known <> '{}' then
        return format('the options of %s are %s', coalesce(of, 'a job'), array_to_string(known, ', '));
      end if;

      foreach option in array names loop
        value := given -> option;
        continue when coalesce(value, 'null') = 'null' and option <> all (required);
        if jsonb_typeof(value) is distinct from 'string' or value #>> '{}' ~ '^\\s*$' then
          return concat(of || '.', option, ' must be a string that is not blank');
        end if;
        if octet_length(value #>> '{}') > ${sql.lit(MAX_KEY_BYTES)} then
          return concat(of || '.', option, ${sql.lit(` is longer than ${MAX_KEY_BYTES} bytes`)});
        end if;
      end loop;

      foreach option in array integers loop
        value := given -> option;
        continue when coalesce(value, 'null') = 'null' and option <> all (required);
        if jsonb_typeof(value) is distinct from 'number' then
          return concat(of || '.', option, ' must be an integer');
        end if;
        if value::numeric % 1 <> 0 or value::numeric > ${sql.lit(MAX_INT4)}
          or value::numeric < (case option when 'priority' then ${sql.lit(-MAX_INT4)} else 1 end) then
          return concat(of || '.', option, ' must be an integer of its range');
        end if;
      end loop;

      foreach option in array seconds loop
        value := given -> option;
        continue when coalesce(value, 'null') = 'null' and option <> all (required);
        if jsonb_typeof(value) is distinct from 'number' then
          return concat(of || '.', option, ' must be a number');
        end if;
        -- Less is nothing as a double precision.
        if value::numeric < ${sql.lit(Number.MIN_VALUE)} or value::numeric > ${sql.lit(MAX_DURATION_SECONDS)} then
          return concat(of || '.', option, ${sql.lit(` must be above 0 and at most ${MAX_DURATION_SECONDS}`)});
        end if;
      end loop;
      return null;
    end
    $function$`;
}

/** At most one key, and what each kind needs; for requests that have more than an idempotency key. */
function keyProblem(name: QualifiedName) {
  return sql`
    create function ${name("job_key_problem")}(request jsonb) returns text
    language plpgsql immutable parallel safe as $function$
    declare
      given text[] := array(
        select option from unnest(array['idempotency_key', 'active', 'debounce', 'throttle']) with ordinality as named(option, place)
        where ${isGiven(sql`request -> option`)} order by place
      );
    begin
      if cardinality(given) > 1 then
        return array_to_string(given, ' and ') || ' cannot go together';
      end if;
      if ${isGiven(sql`request -> 'idempotency_ttl_seconds'`)} and given <> '{idempotency_key}' then
        return 'idempotency_ttl_seconds needs an idempotency_key';
      end if;

      case given[1]
        when 'active' then
          return coalesce(
            ${problemOf(name, "active", active, sql`request -> 'active'`)},
            case when jsonb_typeof(request #> '{active,replace}') not in ('boolean', 'null')
              then 'active.replace must be true or false' end
          );
        when 'debounce' then
          return coalesce(
            ${problemOf(name, "debounce", debounce, sql`request -> 'debounce'`)},
            case when ${isGiven(sql`request -> 'run_at'`)} or ${isGiven(sql`request -> 'delay_seconds'`)}
              then 'debounce cannot go together with run_at or delay_seconds: the requests say when the job starts' end,
            case when (request #>> '{debounce,max_seconds}')::numeric < (request #>> '{debounce,seconds}')::numeric
              then 'debounce.max_seconds is less than debounce.seconds' end
          );
        when 'throttle' then
          return ${problemOf(name, "throttle", throttle, sql`request -> 'throttle'`)};
        else
          return null;
      end case;
    end
    $function$`;
}

function limitProblem(name: QualifiedName) {
  return sql`
    create function ${name("job_limit_problem")}(given jsonb) returns text
    language plpgsql immutable parallel safe as $function$
    begin
      return coalesce(
        ${problemOf(name, "limit", limit, sql`given`)},
        case when ${isGiven(sql`given -> 'rate'`)} then ${problemOf(name, "limit.rate", rate, sql`given -> 'rate'`)} end,
        case when not ${isGiven(sql`given -> 'concurrency'`)} and not ${isGiven(sql`given -> 'rate'`)}
          then 'limit needs concurrency, rate or both' end
      );
    end
    $function$`;
}

const uuidPattern = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$";
const timePattern = String.raw`^\d{4}-\d\d-\d\d[T ]\d\d:\d\d[:.\d]*(Z|[+-]\d\d(:?\d\d)?)$`;

/** The code and the words. */
function requestProblem(name: QualifiedName) {
  return sql`
    create function ${name("job_request_problem")}(request jsonb) returns text[]
    language plpgsql immutable parallel safe as $function$
    declare
      found text := ${problemOf(name, null, job, sql`request`)};
      given jsonb;
      written text;
    begin
      if found is null and request ?| '{idempotency_ttl_seconds,active,debounce,throttle}' then
        found := ${name("job_key_problem")}(request);
      end if;
      if found is null and ${isGiven(sql`request -> 'limit'`)} then
        found := ${name("job_limit_problem")}(request -> 'limit');
      end if;
      if found is not null then
        return ${problem(sql`found`)};
      end if;

      given := request -> 'run_at';
      if ${isGiven(sql`given`)} then
        if jsonb_typeof(given) <> 'string' or btrim(given #>> '{}') !~* ${sql.lit(timePattern)} then
          return ${problem(sql`'run_at must be an ISO 8601 time with its zone'`)};
        end if;
        if ${isGiven(sql`request -> 'delay_seconds'`)} then
          return ${problem(sql`'a job has run_at or delay_seconds, not both'`)};
        end if;
      end if;

      given := request -> 'organization_id';
      if ${isGiven(sql`given`)}
        and (jsonb_typeof(given) <> 'string' or given #>> '{}' !~* ${sql.lit(uuidPattern)}) then
        return ${problem(sql`'organization_id must be a UUID'`)};
      end if;

      given := request -> 'tags';
      if ${isGiven(sql`given`)} then
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

/** What is wrong with one object of the request, as `job_options_problem` says it. */
function problemOf(name: QualifiedName, of: string | null, options: Options, given: RawBuilder<unknown>) {
  const { names = [], integers = [], seconds = [], others = [], required } = options;
  const lists = [names, integers, seconds, [...names, ...integers, ...seconds, ...others], required].map(textArray);
  return sql`${name("job_options_problem")}(${sql.lit(of)}, ${given}, ${sql.join(lists)})`;
}

/** Null is as good as nothing. */
function isGiven(value: RawBuilder<unknown>) {
  return sql`coalesce(${value}, 'null') <> 'null'`;
}

function problem(message: RawBuilder<unknown>, code: (typeof problemCodes)[number] = "input.invalid") {
  return sql`array[${sql.lit(code)}, ${message}]`;
}

function textArray(names: readonly string[]) {
  return sql.lit(`{${names.join(",")}}`);
}
