/** The tests' own state folder: what they start as a daemon is theirs, and ends with them. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { destroyDomain, domidsIn } from '../src/host/domain-client.ts';
import { stopDaemon } from '../src/host/domusd.ts';

export function setup(): () => Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'domus-state-'));
  process.env['DOMUS_STATE_DIR'] = folder;
  return async () => {
    for (const domid of domidsIn(folder)) await destroyDomain(domid, folder);
    await stopDaemon(folder);
    rmSync(folder, { recursive: true });
  };
}
