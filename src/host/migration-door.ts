/**
 * The process that listens for migrations by TLS (migration-listener.ts), one a daemon that has been told to. Domains that come pass through it on their way to their own
 * processes, so the daemon has nothing to do with their memory, and may be killed meanwhile: then this process listens no more, and ends with the last of them. It is
 * started with a state folder and an address: `migration-door.ts ROOT HOST PORT`.
 */

import { homedir } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { readKeys } from './keys/host-keys.ts';
import { type Arrival, listenForMigrations, type MigrationListener } from './migration-listener.ts';
import { receiveDomain } from './receive-domain.ts';

/** How soon a port is tried again that another process has: perhaps the door of a daemon that is gone. */
const RETRY_MS = 250;

async function serve(root: string, host: string, port: number): Promise<void> {
  const log = (line: string): void => void process.stderr.write(`${new Date().toISOString()} ${line}\n`);
  const gone = new Promise<void>((resolve) => process.once('disconnect', resolve));
  if (!process.connected) return;
  const receive = async ({ request, from, tell, join }: Arrival): Promise<void> => {
    const { paused, preserve } = request;
    // Where ssh would have been.
    const options = { paused, preserve, force: false, root, cwd: homedir(), tell };
    const code = await receiveDomain({ from: join, ...options });
    log(`migrations: ${from}: ${code === 0 ? 'the domain is here' : 'the domain has not come'}`);
  };
  const listener = await listening(
    () => listenForMigrations({ host, port, keys: () => readKeys(root), receive, log }),
    log,
  );
  if (listener === null) return;
  log(`migrations: listens at ${host.includes(':') ? `[${host}]` : host}:${listener.port}`);
  await gone;
  await listener.close();
}

/** Tries again until the port is free, or the daemon is gone: null. */
async function listening(
  listen: () => Promise<MigrationListener>,
  log: (line: string) => void,
): Promise<MigrationListener | null> {
  for (let hasTold = false; process.connected; await sleep(RETRY_MS)) {
    try {
      return await listen();
    } catch (error) {
      if (!(error instanceof Error && 'syscall' in error)) throw error;
      if (!hasTold) log(`migrations: cannot listen, and tries again: ${error.message}`);
      hasTold = true;
    }
  }
  return null;
}

// The terminal that the daemon was started from may go.
process.on('SIGHUP', () => {});
const [root, host, port] = process.argv.slice(2);
await serve(root, host, Number(port));
// A domain that has come is nobody's child.
process.exit(0);
