/** What applies when neither the request nor the type's definition says otherwise (FEATURES F-J1). */
import { type RawBuilder, sql } from "kysely";

export const jobDefaults = { maxAttempts: 8, timeoutSeconds: 900, priority: 100 } as const;

const columns = {
  priority: jobDefaults.priority,
  max_attempts: jobDefaults.maxAttempts,
  timeout_seconds: jobDefaults.timeoutSeconds,
} as const;

/** The requested value, else the definition's, else the library's. */
export function resolved(requested: string, definition: string, column: keyof typeof columns): RawBuilder<number> {
  return sql<number>`coalesce(${sql.ref(`${requested}.${column}`)}, ${sql.ref(`${definition}.${column}`)}, ${sql.lit(columns[column])})`;
}
