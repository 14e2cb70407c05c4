import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { SHUTDOWN_poweroff } from '../abi/xen.ts';
import { createDomain, DOMAIN } from '../hypervisor/domain.ts';
import { domainState } from '../hypervisor/domain-state.ts';
import { createMachineMemory } from '../machine/memory.ts';
import { VCPU, VCPU_STATE_UP } from '../machine/vcpu-block.ts';
import { hostCalls } from './libc.ts';
import { seenState, showState } from './seen-state.ts';
import { domainFolder, seenStatePath } from './state-dir.ts';

const root = mkdtempSync(join(tmpdir(), 'domus-seen-'));
afterAll(() => rmSync(root, { recursive: true, force: true }));

function shown(domid: number) {
  mkdirSync(domainFolder(root, domid), { recursive: true });
  const domain = createDomain(createMachineMemory(64, 64), domid, 2, new Uint8Array(16));
  return { domain, hide: showState(domain, seenStatePath(root, domid)) };
}

test('others see a domain as its own process does, now and when it has changed', (context) => {
  if (hostCalls() === null) context.skip('no koffi here');
  const { domain, hide } = shown(5);
  expect(seenState(5, root)).toMatchObject({ ...domainState(domain), pid: process.pid });
  domain.f64[DOMAIN.bootNs >> 3] = 1;
  domain.i32[DOMAIN.totalPages >> 2] = 60;
  Atomics.store(domain.vcpus[1].i32, VCPU.state >> 2, VCPU_STATE_UP);
  domain.vcpus[1].f64[VCPU.cpuNs >> 3] = 1234;
  const seen = seenState(5, root);
  expect(seen).toMatchObject(domainState(domain));
  expect(seen).toMatchObject({ pages: 60, vcpus: [{ online: false }, { online: true, timeNs: 1234 }] });
  // Of a test's process: some MiB, and some ms.
  expect(seen!.residentBytes).toBeGreaterThan(1 << 20);
  expect(seen!.residentBytes).toBeLessThan(64 * 2 ** 30);
  expect(Math.abs(seen!.backendTimeNs - (process.cpuUsage().user + process.cpuUsage().system) * 1000)).toBeLessThan(
    1e9,
  );
  domain.shutdown(SHUTDOWN_poweroff);
  expect(seenState(5, root)).toMatchObject({ shutdownReason: SHUTDOWN_poweroff });
  hide();
  expect(seenState(5, root)).toBeNull();
  // It may go on without being seen.
  expect(domainState(domain).pages).toBe(60);
});

test('what leads elsewhere is not seen', (context) => {
  if (hostCalls() === null) context.skip('no koffi here');
  const { hide } = shown(6);
  mkdirSync(domainFolder(root, 7));
  const lead = (to: string): void => {
    rmSync(seenStatePath(root, 7), { force: true });
    symlinkSync(to, seenStatePath(root, 7));
  };
  // Another domain's, which has taken the number of a process that has ended.
  lead(seenStatePath(root, 6));
  expect(seenState(7, root)).toBeNull();
  const file = join(root, 'file');
  writeFileSync(file, 'no state');
  lead(file);
  expect(seenState(7, root)).toBeNull();
  lead('/proc/1073741824/fd/3');
  expect(seenState(7, root)).toBeNull();
  expect(seenState(8, root)).toBeNull();
  hide();
});
