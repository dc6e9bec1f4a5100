import { tsImport } from "tsx/esm/api";

// Jest loads its setup outside of its own transform.
const { startTestServer } = await tsImport("./test-server.ts", import.meta.url);

export default startTestServer;
