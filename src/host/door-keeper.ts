/** Keeps the process that takes migrations (migration-door.ts) as long as the daemon lives, if xl.conf says where to listen. */

import { type ChildProcess, fork } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { ConfigError } from '../toolstack/config/xl-cfg.ts';
import type { ListenAddress } from '../toolstack/config/xl-conf.ts';
import { readXlConf } from './xl-conf-file.ts';

const AGAIN_MIN_MS = 1000;
const AGAIN_MAX_MS = 60_000;
/** One that has lived so long did not fail at its start. */
const LONG_MS = 10_000;

export class DoorKeeper {
  readonly #root: string;
  readonly #log: (line: string) => void;
  #door: ChildProcess | null = null;
  #timer: NodeJS.Timeout | null = null;
  #againMs = AGAIN_MIN_MS;
  #closed = false;

  constructor(root: string, log: (line: string) => void) {
    this.#root = root;
    this.#log = log;
    const address = this.#address();
    if (address !== null) this.#open(address);
  }

  /** Takes no more migrations; those under way go on. */
  close(): void {
    this.#closed = true;
    if (this.#timer !== null) clearTimeout(this.#timer);
    if (this.#door?.connected) this.#door.disconnect();
    this.#door?.unref();
  }

  #address(): ListenAddress | null {
    try {
      // xl warns of what it does not know.
      return readXlConf(() => {}, this.#root).migrationListen;
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      this.#log(`domusd: takes no migrations: ${error.message}`);
      return null;
    }
  }

  #open(address: ListenAddress): void {
    const { host, port } = address;
    const program = new URL(
      import.meta.url.endsWith('.ts') ? './migration-door.ts' : './migration-door.js',
      import.meta.url,
    );
    const startMs = performance.now();
    const door = fork(fileURLToPath(program), [this.#root, host, String(port)], {
      // A signal to the daemon's terminal is not for it.
      detached: true,
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    });
    this.#door = door;
    // Such as a Node that cannot be executed.
    door.on('error', (error) => this.#log(`domusd: takes no migrations: ${error.message}`));
    door.on('close', (code, signal) => {
      this.#door = null;
      if (this.#closed) return;
      if (performance.now() - startMs > LONG_MS) this.#againMs = AGAIN_MIN_MS;
      this.#log(`domusd: the process that takes migrations has ended (${signal ?? code}), and is started again`);
      this.#timer = setTimeout(() => this.#open(address), this.#againMs);
      this.#againMs = Math.min(2 * this.#againMs, AGAIN_MAX_MS);
    });
  }
}
