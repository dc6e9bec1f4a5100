/**
 * The system's code of an error, such as `EEXIST`. Asked without `instanceof`: under Jest the errors of
 * Node's own modules come from another realm and are no instances of the `Error` seen here.
 */
export function errorCode(error: unknown): unknown {
  return typeof error === "object" && error !== null && "code" in error ? error.code : undefined;
}

/** Whether an import or a resolution failed because the package is not installed. */
export function isMissingModule(error: unknown): boolean {
  return ["ERR_MODULE_NOT_FOUND", "MODULE_NOT_FOUND"].includes(String(errorCode(error)));
}
