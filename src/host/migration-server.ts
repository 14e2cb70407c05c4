/** The `migration` socket of a domain's process: each connection is an `xl migrate` that wants the domain elsewhere (migration-frames.ts). */

import { NotSavable } from '../toolstack/saved/saved-state.ts';
import { type Listen, listenLocally } from './local-socket.ts';
import { FRAME_BEGIN, FrameReader, type MigrationOptions, migrationOptions } from './migration-frames.ts';
import { type MigrationLink, SocketLink } from './migration-link.ts';

export interface MigrationServer {
  /** Ends all connections: the domain is gone. */
  close(): void;
}

/** While the domain runs: a slow link is none that is broken. */
const PATIENCE_MS = 60_000;

/** `migrate` resolves when the domain has been handed over, or goes on here. */
export async function openMigrationServer(
  path: string,
  migrate: (link: MigrationLink, options: MigrationOptions) => Promise<void>,
  log: (line: string) => void,
  listen: Listen = listenLocally,
): Promise<MigrationServer> {
  const open = new Set<{ destroy(): void; end(): void }>();
  const server = await listen(path, (socket) => {
    open.add(socket);
    socket.on('error', () => {});
    socket.on('close', () => open.delete(socket));
    const link = new SocketLink(socket, PATIENCE_MS);
    let hasBegun = false;
    const begin = async (options: MigrationOptions): Promise<void> => {
      try {
        await migrate(link, options);
      } catch (error) {
        if (!(error instanceof Error)) throw error;
        // All else is a defect, which the guest must not suffer for.
        if (!(error instanceof NotSavable)) log(error.stack ?? error.message);
        link.tell(`libxl: error: ${error.message}`);
        link.hangUp();
        link.result(1);
      }
    };
    const reader = new FrameReader((kind, bytes) => {
      if (kind !== FRAME_BEGIN) return link.receive(kind, bytes);
      const options = hasBegun ? null : migrationOptions(bytes);
      hasBegun = true;
      if (options === null) socket.destroy();
      else void begin(options);
    });
    socket.on('data', (bytes) => {
      if (!reader.push(bytes)) socket.destroy();
    });
  });
  return {
    close: () => {
      server.close();
      for (const socket of open) socket.end();
    },
  };
}
