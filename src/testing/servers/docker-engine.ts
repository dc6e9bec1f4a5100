/**
 * Asks whether a Docker engine answers. A `docker` command alone says nothing: many machines have the
 * client without an engine, and container libraries then fail slowly and loudly.
 */
import { existsSync } from "node:fs";
import { type RequestOptions, request } from "node:http";
import { homedir } from "node:os";
import { join } from "node:path";

const PATIENCE_MS = 1_000;

/** Whether a Docker engine answers a ping within a second. Never throws and never prints. */
export async function dockerAnswers(environment: NodeJS.ProcessEnv = process.env): Promise<boolean> {
  const engine = engineAddress(environment);
  return engine !== undefined && ping(engine);
}

function engineAddress(environment: NodeJS.ProcessEnv): RequestOptions | undefined {
  const host = environment.DOCKER_HOST;
  if (host?.startsWith("unix://")) return { socketPath: host.slice("unix://".length) };
  if (host !== undefined && URL.canParse(host)) {
    const { hostname, port } = new URL(host);
    return { host: hostname, port: port || 2375 };
  }
  const runtime = environment.XDG_RUNTIME_DIR;
  const sockets = [
    "/var/run/docker.sock",
    ...(runtime === undefined ? [] : [join(runtime, "docker.sock")]),
    join(homedir(), ".docker", "run", "docker.sock"),
  ];
  const socketPath = sockets.find((path) => existsSync(path));
  return socketPath === undefined ? undefined : { socketPath };
}

function ping(engine: RequestOptions): Promise<boolean> {
  return new Promise((resolve) => {
    const asked = request({ ...engine, path: "/_ping", timeout: PATIENCE_MS }, (response) => {
      response.resume();
      resolve(response.statusCode === 200);
    });
    asked.on("error", () => resolve(false));
    asked.on("timeout", () => asked.destroy(new Error("no answer")));
    asked.end();
  });
}
