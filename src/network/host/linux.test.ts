/** Linux itself as the other side: its TCP as the NAT's guest, its bridge and routes for TAP devices. In namespaces of their own. */

import { execFile, spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';

const run = promisify(execFile);
const NAT = fileURLToPath(new URL('./test-linux-nat.ts', import.meta.url));

/** Why this machine cannot, or null. */
function unusable(): string | null {
  if (process.platform !== 'linux') return 'needs Linux';
  const made = spawnSync('unshare', ['-Urn', 'ip', 'tuntap', 'add', 'dev', 'tap9', 'mode', 'tap'], {
    encoding: 'utf8',
  });
  return made.status === 0 ? null : `no network namespace with a TAP: ${made.error?.message ?? made.stderr.trim()}`;
}
const reason = unusable();

for (const { name, words } of [
  { name: 'GSO frames', words: ['0', 'gso', '8388608'] },
  { name: 'GSO frames, one in fifty lost', words: ['2', 'gso', '2000000'] },
  { name: 'plain frames, one in fifty lost', words: ['2', 'plain', '500000'] },
])
  test(`Linux's TCP and UDP through the NAT: ${name}`, async (context) => {
    if (reason !== null) return context.skip(reason);
    const { stdout } = await run('unshare', ['-Urn', process.execPath, NAT, ...words], { timeout: 50_000 });
    const result = JSON.parse(stdout) as Record<string, unknown>;
    const { expected } = result;
    expect(result).toMatchObject({ down: expected, up: expected, forwarded: expected, refused: 'ECONNREFUSED' });
    expect(result['udp']).toEqual([1, 1472, 1473, 30_000]);
    if (words[0] !== '0') expect(result['dropped']).toBeGreaterThan(2);
  });
