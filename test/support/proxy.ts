/** A way to the server that can be cut, or go deaf, without the server's knowledge: the answer is lost, not the statement. */
import { connect, createServer, type Server, type Socket } from "node:net";
import type { TestDatabase } from "./database.ts";

export interface Proxy {
  /** The database's address through the proxy. */
  readonly url: string;
  /** From now on no answer of the server arrives. */
  mute(): void;
  /** Ends all connections; the server finds its clients gone when it has answered. New ones work. */
  cut(): void;
}

/** Gone with the database. */
export async function startProxy(database: Pick<TestDatabase, "url" | "defer">): Promise<Proxy> {
  const target = new URL(database.url);
  const links = new Set<readonly [client: Socket, upstream: Socket]>();
  const server = createServer((client) => {
    const upstream = connect(Number(target.port), target.hostname);
    const link = [client, upstream] as const;
    links.add(link);
    for (const socket of link) socket.on("error", () => {});
    // A reset is no end that a pipe would pass on.
    upstream.on("close", () => {
      client.destroy();
      links.delete(link);
    });
    client.pipe(upstream, { end: false });
    upstream.pipe(client);
  });
  const url = new URL(database.url);
  url.host = `127.0.0.1:${await listening(server)}`;
  database.defer(() => {
    for (const socket of [...links].flat()) socket.destroy();
    server.close();
  });
  return {
    url: url.href,
    mute: () => {
      for (const [client, upstream] of links) {
        upstream.unpipe(client);
        upstream.resume();
      }
    },
    cut: () => {
      for (const [client, upstream] of links) {
        client.destroy();
        upstream.end();
      }
    },
  };
}

/** Listens on a free port of this machine. */
export async function listening(server: Server): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  if (typeof address !== "object" || address === null) throw new Error("no port");
  return address.port;
}
