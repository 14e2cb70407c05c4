/** The tests' own state folder: what they start as a daemon is theirs, and ends with them. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export function setup(): () => Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'domus-state-'));
  process.env['DOMUS_STATE_DIR'] = folder;
  return async () => {
    await stopDaemon(folder);
    rmSync(folder, { recursive: true });
  };
}

/** Ends the daemon of a state folder, if there is one, and waits for its end. */
export async function stopDaemon(folder: string): Promise<void> {
  let pid: number;
  try {
    pid = Number(readFileSync(join(folder, 'domusd.pid'), 'utf8'));
    // 0 would be the tests themselves.
    if (!(pid > 1)) throw new Error(`${folder}/domusd.pid holds no process id`);
    process.kill(pid, 'SIGTERM');
  } catch {
    return;
  }
  for (let i = 0; i < 500; i++) {
    try {
      process.kill(pid, 0);
    } catch {
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  throw new Error(`the daemon of ${folder}, process ${pid}, does not end`);
}
