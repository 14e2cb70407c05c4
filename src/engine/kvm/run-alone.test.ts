import { afterEach, beforeEach, expect, test } from 'vitest';
import type { MachineMemory } from '../../machine/memory.ts';
import { FLAG_EVENT, FLAG_STOP, VCPU } from '../../machine/vcpu-block.ts';
import { EXIT_INTERRUPTED } from '../engine.ts';
import { monotonicNs } from './host.ts';
import { PORT_EXCEPTION, STUB_BYTES } from './hypervisor-area.ts';
import { createKvmKicker } from './kicker.ts';
import { closeKvmDomain, createKvmDomain } from './kvm-domain.ts';
import { openKvmVcpu } from './kvm-vcpu.ts';
import { probeKvm } from './self-test.ts';
import { createTestBlock, createTestMachine, prepareTestRoot, pteOffset } from './test-guest.ts';
import { startTestVcpu, until } from './test-vcpu.ts';
import type { KvmDomainHandle } from './vm.ts';

const probe = probeKvm();
const PAGE = 4096;
const VECTOR_BP = 3;

let machine: MachineMemory;
let domain: KvmDomainHandle;

beforeEach((context) => {
  if (!probe.usable) context.skip(probe.reason);
  machine = createTestMachine();
  domain = createKvmDomain(machine, 1);
});

afterEach(() => {
  if (probe.usable) closeKvmDomain(domain);
});

/** As a guest could that maps the area by page tables of its own: the stub of INT3 is a jump to itself. */
function breakProbes(): void {
  const area = new Uint8Array(domain.area.memory.buffer);
  const isStub = (at: number): boolean => area[at] === 0xe6 && area[at + 1] === PORT_EXCEPTION && area[at + 2] === 0xf4;
  let stubs = 0;
  while (!(isStub(stubs) && isStub(stubs + STUB_BYTES))) stubs += PAGE;
  area.set([0xeb, 0xfe], stubs + VECTOR_BP * STUB_BYTES);
}

test('FLAG_STOP and a kick end code of the engine that runs for ever', async () => {
  breakProbes();
  const block = createTestBlock(machine, [0xeb, 0xfe]);
  const { report, exited } = await startTestVcpu(domain, machine, block, { work: 'readTsc' });
  const kicker = createKvmKicker(domain);
  // As notifyVcpu() does: only a vCPU that says so is kicked.
  await until(() => Atomics.load(block.i32, VCPU.inGuest / 4) === 1);
  for (let i = 0; i < 20; i++) {
    Atomics.or(block.i32, VCPU.flags / 4, FLAG_EVENT);
    kicker.kick(0);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
  expect(Atomics.load(block.i32, VCPU.inGuest / 4), 'any other kick changes nothing').toBe(1);
  Atomics.or(block.i32, VCPU.flags / 4, FLAG_STOP);
  const start = monotonicNs();
  kicker.kick(0);
  expect(await report).toEqual({ exits: 1, lastExit: EXIT_INTERRUPTED, error: '' });
  expect((monotonicNs() - start) / 1e6).toBeLessThan(1000);
  await exited;
});

test('a vCPU that is to stop starts no code of the engine', () => {
  breakProbes();
  const block = createTestBlock(machine, []);
  const vcpu = openKvmVcpu(domain, machine, block);
  prepareTestRoot(vcpu);
  Atomics.or(block.i32, VCPU.flags / 4, FLAG_STOP);
  expect(vcpu.readTsc()).toMatchObject({ tscLo: 0, tscHi: 0 });
  for (let page = 0; page < 5000; page++) vcpu.pageTableStored(pteOffset((page % 1024) * PAGE));
  expect(vcpu.run()).toBe(EXIT_INTERRUPTED);
  expect(Atomics.load(block.i32, VCPU.inGuest / 4)).toBe(0);
  vcpu.close();
});

test('signals at any time leave the results right', () => {
  const block = createTestBlock(machine, [0xeb, 0xfe]);
  const vcpu = openKvmVcpu(domain, machine, block);
  prepareTestRoot(vcpu);
  // A deadline that has passed: the timer repeats each millisecond.
  vcpu.setRunDeadline(1);
  expect(vcpu.run()).toBe(EXIT_INTERRUPTED);
  let last = 0;
  const end = monotonicNs() + 300e6;
  while (monotonicNs() < end) {
    const { tscLo, tscHi } = vcpu.readTsc();
    const tsc = tscHi * 2 ** 32 + tscLo;
    expect(tsc).toBeGreaterThan(last);
    last = tsc;
  }
  vcpu.close();
});
