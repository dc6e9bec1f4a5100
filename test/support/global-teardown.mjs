/** The module that started the server hands its stop function over on the global object: same process, other module. */
export default async () => {
  await globalThis.stopTestServer?.();
};
