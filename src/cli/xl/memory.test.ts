import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { TestHost, testState } from '../../../test/xl-host.ts';
import { formatProcessId, thisProcess } from '../../host/process-id.ts';
import { controlPath, domainFolder } from '../../host/state-dir.ts';

let host: TestHost;
beforeAll(async () => {
  host = await TestHost.open();
  await host.addDomain(1, 'u1', 'e29e0040-db4b-4e86-9413-deddcaa5c837', 'kernel="k"\nmemory=256\nmaxmem=99999999\n');
});
afterAll(() => host.close());

const done = { code: 0, out: '', err: '' };
const field = (out: string, name: string): number => Number(new RegExp(`^${name} *: (\\d+)$`, 'm').exec(out)?.[1]);

it('what is free, what domains have and domain 0 are all that there is', async () => {
  const { out } = await host.xl('info');
  const [, dom0] = /^Domain-0 +0 +(\d+)/m.exec((await host.xl('list')).out) ?? [];
  const total = field(out, 'total_memory');
  expect(Math.abs(total - field(out, 'free_memory') - 256 - Number(dom0))).toBeLessThan(total / 50);
});

it('what a domain may have and has not touched yet is not free', async () => {
  host.states.set(1, { ...testState(256), residentBytes: 400 << 20 });
  const before = field((await host.xl('info')).out, 'free_memory');
  host.states.set(1, { ...testState(256), promisedPages: 2000 * 256, residentBytes: 400 << 20 });
  const after = field((await host.xl('info')).out, 'free_memory');
  // The host's other programs take and give too.
  expect(before - after).toBeGreaterThan(1000);
});

it('a domain that has shut down is promised nothing', async () => {
  host.states.set(1, { ...testState(256), promisedPages: 8e9, residentBytes: 0 });
  expect(field((await host.xl('info')).out, 'free_memory')).toBe(0);
  host.states.set(1, { ...testState(256), promisedPages: 8e9, residentBytes: 0, shutdownReason: 0 });
  expect(field((await host.xl('info')).out, 'free_memory')).toBeGreaterThan(0);
});

it('mem-set refuses what the host does not have, and tells the guest nothing', async () => {
  host.states.set(1, testState(256));
  expect(await host.xl('mem-max', 'u1', '900000g')).toMatchObject({ code: 1 });
  expect(await host.xl('mem-max', 'u1', '9000000')).toEqual(done);
  const { code, err } = await host.xl('mem-set', 'u1', '8000000');
  expect({ code, err }).toMatchObject({
    code: 1,
    err: expect.stringMatching(
      /^libxl: error: Domain 1:not enough memory: \d+ MiB more are needed, \d+ MiB are free\n$/,
    ),
  });
  expect(await host.store.read('/local/domain/1/memory/target')).toBe('262144');
  expect(await host.xl('mem-set', 'u1', '128')).toEqual(done);
  expect(await host.store.read('/local/domain/1/memory/target')).toBe('131072');
  expect(host.allowed.get(1)).toBe(128 * 256);
});

it('xl list shows a domain that has a process and does not answer yet as one that is being made, not as one that has crashed', async () => {
  await host.addDomain(3, 'u3', 'e29e0040-db4b-4e86-9413-deddcaa5c839', 'kernel="k"\n');
  rmSync(controlPath(host.root, 3));
  expect((await host.xl('list', 'u3')).out).toMatch(/^u3 +3 +0 +0 +---scd +0\.0$/m);
  writeFileSync(join(domainFolder(host.root, 3), 'pid'), formatProcessId(thisProcess()));
  expect((await host.xl('list', 'u3')).out).toMatch(/^u3 +3 +0 +0 +--p--- +0\.0$/m);
});
