import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { stopDaemon } from '../../host/domusd.ts';
import { openXenstored } from '../../host/xenstored.ts';
import { XenstoreClient } from '../../xenstore/client.ts';
import { main } from './main.ts';

const root = mkdtempSync(join(tmpdir(), 'domus-'));
beforeAll(() => void vi.stubEnv('DOMUS_STATE_DIR', root));
afterAll(async () => {
  vi.unstubAllEnvs();
  await stopDaemon(root);
  rmSync(root, { recursive: true });
});

function makeSnapshot(uuid: string, name: string, domain: string, taken: string, vdevs: readonly string[]): void {
  const folder = join(root, 'snapshots', uuid, name);
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, 'memory'), new Uint8Array(3 << 19));
  const disks = vdevs.map((vdev) => ({ vdev }));
  writeFileSync(join(folder, 'snapshot.json'), JSON.stringify({ version: 1, name, domain, uuid, taken, disks }));
}

async function said(...words: string[]): Promise<string> {
  let text = '';
  const write = vi.spyOn(process.stdout, 'write').mockImplementation((more) => {
    text += String(more);
    return true;
  });
  try {
    expect(await main(words)).toBe(0);
  } finally {
    write.mockRestore();
  }
  return text;
}

test('`domus snapshots` lists those of all domains, by the names that these have now', async () => {
  expect(await said('snapshots')).toBe('Domain  Name  Taken  Memory  Disks\n');
  makeSnapshot('u-2', 'clean', 'web', '2026-01-02T03:04:05.678Z', ['xvda', 'xvdb']);
  makeSnapshot('u-2', '1', 'web', '2026-02-02T03:04:05.678Z', []);
  makeSnapshot('u-1', 'x', 'was-db', '2026-01-01T00:00:00.000Z', ['xvda']);
  // Taking it was cut short.
  mkdirSync(join(root, 'snapshots', 'u-1', 'half'));
  const store = new XenstoreClient(await openXenstored(root));
  await store.write('/local/domain/7/name', 'database');
  await store.write('/local/domain/7/vm', '/vm/u-1');
  store.close();
  expect(await said('snapshots')).toBe(
    [
      'Domain    Name   Taken                    Memory  Disks',
      'database  x      2026-01-01 00:00:00 UTC  2 MiB   xvda',
      'web       clean  2026-01-02 03:04:05 UTC  2 MiB   xvda xvdb',
      'web       1      2026-02-02 03:04:05 UTC  2 MiB   -',
      '',
    ].join('\n'),
  );
  expect(await said('snapshots', 'database')).toBe(
    'Name  Taken                    Memory  Disks\nx     2026-01-01 00:00:00 UTC  2 MiB   xvda\n',
  );
});
