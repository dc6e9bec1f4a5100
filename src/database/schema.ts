import { LedgerError } from "../errors.ts";

export const DEFAULT_SCHEMA = "runledger";

/** Returns the name, or throws `config.invalid`: it becomes part of SQL text and of channel names. */
export function validSchemaName(name: string): string {
  if (!/^[a-z_][a-z0-9_]{0,47}$/.test(name)) {
    throw new LedgerError("config.invalid", {
      message: "A schema name is 1 to 48 characters of a-z, 0-9 and _, and does not start with a digit.",
    });
  }
  return name;
}
