/** Row-level security as DDL: what switches it on, and what takes all of it back. */
import { createHash } from "node:crypto";
import { DEFAULT_SCHEMA } from "../../src/database/schema.ts";
import { actsForTenant, type Predicates, predicatesFor } from "./predicates.ts";
import {
  functionRules,
  type Privilege,
  type RoleKind,
  roleKinds,
  type TableRule,
  tableRules,
  viewRules,
} from "./rules.ts";
import { identifier, literal } from "./text.ts";

export type RoleNames = Readonly<Record<RoleKind, string>>;

const GUARD = "row_security_guard";
const POLICY = "runledger_";
const tables = Object.entries(tableRules);
const tenantTables = tables.filter(([, { tenancy }]) => tenancy !== null);
const guarded = tables.filter(([, { guardedRun }]) => guardedRun !== undefined);

/** The table and policy whose comment says what was switched on. */
export const MARKED = { table: "job_queue", policy: `${POLICY}worker` } as const;

/** Switches row-level security on, whatever of it was on before. `marker` stands for the version of all that it rests on. */
export function statementsOn(schema: string, roles: RoleNames, marker: string): string[] {
  return [
    ...statementsOff(schema),
    ...roleKinds.map((kind) => createRole(roles[kind])),
    ...roleKinds.map((kind) => `grant usage on schema ${identifier(schema)} to ${identifier(roles[kind])}`),
    ...tables.flatMap(([table, rule]) => tableGrants(schema, roles, table, rule)),
    ...tenantTables.flatMap(([table, rule]) => policies(schema, roles, table, rule)),
    guardFunction(schema),
    `revoke all on function ${identifier(schema, GUARD)}() from public`,
    ...guarded.map(([table]) => guardTrigger(schema, table)),
    ...Object.keys(viewRules).map((view) => viewOn(schema, roles, view)),
    ...Object.keys(functionRules).flatMap((signature) => functionOn(schema, roles, signature)),
    `comment on policy ${MARKED.policy} on ${identifier(schema, MARKED.table)} is ${literal(marker)}`,
  ];
}

/** Takes policies, rights and triggers back; the roles stay, because other databases may have them too. */
export function statementsOff(schema: string): string[] {
  return [
    revokeAll(schema),
    ...Object.keys(viewRules).map((view) => viewOff(schema, view)),
    ...Object.keys(functionRules).flatMap((signature) => functionOff(schema, signature)),
    ...guarded.map(([table]) => `drop trigger if exists ${GUARD} on ${identifier(schema, table)}`),
    `drop function if exists ${identifier(schema, GUARD)}()`,
    ...tenantTables.flatMap(([table]) => [
      ...roleKinds.map((kind) => `drop policy if exists ${POLICY}${kind} on ${identifier(schema, table)}`),
      `alter table ${identifier(schema, table)} disable row level security`,
    ]),
  ];
}

/** Changes when any statement does, or what the schema is made of. */
export function markerOf(statements: readonly string[], schemaVersion: readonly string[]): string {
  return createHash("sha256")
    .update(JSON.stringify([statements, schemaVersion]))
    .digest("hex");
}

/** Roles belong to the whole server: another database's switch may make the same one at this moment. */
function createRole(name: string): string {
  return block(`
  begin
    if not exists (select from pg_roles where rolname = ${literal(name)}) then
      create role ${identifier(name)} nologin;
    end if;
  exception when duplicate_object or unique_violation then null;
  end;`);
}

function tableGrants(schema: string, roles: RoleNames, table: string, { grants }: TableRule): string[] {
  return roleKinds.flatMap((kind) =>
    (grants[kind] ?? []).map((privilege) => grantOf(privilege, schema, table, roles[kind])),
  );
}

function grantOf(privilege: Privilege, schema: string, table: string, role: string): string {
  const target = `on ${identifier(schema, table)} to ${identifier(role)}`;
  if (typeof privilege === "string") return `grant ${privilege} ${target}`;
  return block(`
  execute (
    select format('grant update (%s) ${target.replaceAll("'", "''").replaceAll("%", "%%")}', string_agg(quote_ident(attname), ', '))
    from pg_attribute
    where attrelid = ${literal(identifier(schema, table))}::regclass and attnum > 0 and not attisdropped
      and attgenerated = '' and attname not in (${privilege.updateAllBut.map(literal).join(", ")})
  );`);
}

function policies(schema: string, roles: RoleNames, table: string, rule: TableRule): string[] {
  const made = roleKinds.flatMap((kind) => {
    const predicates = rule.grants[kind] === undefined ? null : predicatesFor(kind, rule, schema, table);
    return predicates === null ? [] : [policy(schema, table, kind, roles[kind], predicates)];
  });
  return [`alter table ${identifier(schema, table)} enable row level security`, ...made];
}

function policy(schema: string, table: string, kind: RoleKind, role: string, { using, check }: Predicates): string {
  return `create policy ${POLICY}${kind} on ${identifier(schema, table)} to ${identifier(role)} using (${using}) with check (${check})`;
}

/**
 * With the rights of who inserts: a run that its policies hide is another tenant's. Looked up by key, once for each run
 * of the statement; a join could be planned over all runs.
 */
function guardFunction(schema: string): string {
  const hidden = (column: string) => `exists (
        select from (select distinct ${column} as id from inserted where ${column} is not null) as named
        where (select true from ${identifier(schema, "workflow_runs")} as run where run.id = named.id) is not true
      )`;
  const branches = guarded.map(
    ([table, { guardedRun = "" }]) => `when ${literal(table)} then
      refused := ${hidden(guardedRun)};`,
  );
  return `create function ${identifier(schema, GUARD)}() returns trigger language plpgsql as $function$
  declare
    refused boolean;
  begin
    case tg_table_name
    ${branches.join("\n    ")}
    end case;
    if refused then
      raise exception 'the workflow run is not of the tenant of the transaction' using errcode = 'insufficient_privilege';
    end if;
    return null;
  end
  $function$`;
}

function guardTrigger(schema: string, table: string): string {
  return `create trigger ${GUARD} after insert on ${identifier(schema, table)} referencing new table as inserted
  for each statement when (${actsForTenant}) execute function ${identifier(schema, GUARD)}()`;
}

/** Before 15 a view reads with its owner's rights, past all policies: nothing is granted but to who may see all. */
function viewOn(schema: string, roles: RoleNames, view: string): string {
  const name = identifier(schema, view);
  const kinds = viewRules[view] ?? [];
  const grant = (to: readonly RoleKind[]) =>
    to.map((kind) => `grant select on ${name} to ${identifier(roles[kind])};`).join(" ");
  return block(`
  if ${hasInvokerViews} then
    execute ${literal(`alter view ${name} set (security_invoker = true)`)};
    ${grant(kinds)}
  else
    ${grant(kinds.filter((kind) => kind === "worker"))}
  end if;`);
}

function viewOff(schema: string, view: string): string {
  return block(`
  if ${hasInvokerViews} then
    execute ${literal(`alter view ${identifier(schema, view)} reset (security_invoker)`)};
  end if;`);
}

const hasInvokerViews = "current_setting('server_version_num')::integer >= 150000";

function functionOn(schema: string, roles: RoleNames, signature: string): string[] {
  const name = functionName(schema, signature);
  const { definer, execute } = functionRules[signature] ?? { definer: false, execute: [] };
  return [
    `revoke all on function ${name} from public`,
    ...execute.map((kind) => `grant execute on function ${name} to ${identifier(roles[kind])}`),
    ...(definer ? [`alter function ${name} security definer set search_path = pg_catalog, pg_temp`] : []),
  ];
}

function functionOff(schema: string, signature: string): string[] {
  const name = functionName(schema, signature);
  return [`alter function ${name} security invoker reset search_path`, `grant execute on function ${name} to public`];
}

function functionName(schema: string, signature: string): string {
  const [name = "", rest = ""] = signature.split("(");
  return `${identifier(schema, name)}(${rest.replaceAll(`${DEFAULT_SCHEMA}.`, `${identifier(schema)}.`)}`;
}

/** From all roles that a policy of ours names, under whatever names they were given. */
function revokeAll(schema: string): string {
  const granted = tables.filter(([, { grants }]) => Object.keys(grants).length > 0).map(([table]) => table);
  const relations = [...granted, ...Object.keys(viewRules)].map((name) => identifier(schema, name));
  const functions = Object.keys(functionRules).map((signature) => functionName(schema, signature));
  const revoked = [
    `all on ${relations.join(", ")}`,
    `all on function ${functions.join(", ")}`,
    `all on schema ${identifier(schema)}`,
  ];
  return block(`
  declare
    named name;
  begin
    for named in
      select distinct role.rolname
      from pg_policy as policy
      join pg_class as relation on relation.oid = policy.polrelid
      join pg_roles as role on role.oid = any(policy.polroles)
      where relation.relnamespace = ${literal(identifier(schema))}::regnamespace
        and policy.polname in (${roleKinds.map((kind) => literal(POLICY + kind)).join(", ")})
    loop
      ${revoked.map((what) => `execute format('revoke ${what.replaceAll("%", "%%")} from %I', named);`).join("\n      ")}
    end loop;
  end;`);
}

function block(body: string): string {
  return `do $do$\nbegin${body}\nend\n$do$`;
}
