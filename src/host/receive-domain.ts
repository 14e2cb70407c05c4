/** Takes a domain that comes from another host: what `xl migrate-receive` does, and the daemon's door for each connection. */

import { setTimeout as sleep } from 'node:timers/promises';
import { lowerPriority } from './low-priority.ts';
import { type IncomingEnds, StartError, startDomain } from './start-domain.ts';

/** From when a domain that has come runs until who has carried it ends. */
const AFTER_MOVE_MS = 200;

export interface ReceiveOptions {
  /** Where it comes from: this process's standard input and output, or who is given the two ends. */
  readonly from: 'stdio' | ((ends: IncomingEnds) => void);
  readonly paused: boolean;
  readonly preserve: boolean;
  /** It goes on even where the CPU lacks what its guest has seen. */
  readonly force: boolean;
  /** For the user, who may be at the other host. */
  readonly tell: (line: string) => void;
  readonly root?: string;
  readonly cwd?: string;
}

/** Resolves with xl's exit code when the domain runs here, or does not. */
export async function receiveDomain({
  from,
  paused,
  preserve,
  force,
  tell,
  root,
  cwd,
}: ReceiveOptions): Promise<number> {
  tell('migration target: Ready to receive domain.');
  try {
    const started = await startDomain(null, {
      quiet: true,
      paused,
      preserve,
      configText: '',
      incoming: from === 'stdio' ? true : from,
      force,
      log: tell,
      note: () => {},
      ...(root === undefined ? {} : { root }),
      ...(cwd === undefined ? {} : { cwd }),
    });
    started.leave();
    if (from === 'stdio') {
      lowerPriority(false);
      // The guest has just begun to run: its first moments are better spent on it than on the end of this process.
      await sleep(AFTER_MOVE_MS);
    }
    return 0;
  } catch (error) {
    if (!(error instanceof StartError && error.isExpected)) throw error;
    tell(`libxl: error: ${error.message}`);
    // ERROR_FAIL of libxl.
    tell('migration target: Domain creation failed (code -3).');
    return 1;
  }
}
