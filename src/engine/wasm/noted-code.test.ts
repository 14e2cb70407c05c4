/** A vCPU that goes on with what another one has run: it finds its code prepared, from its own memory, whatever it was told. */

import { beforeEach, expect, test } from 'vitest';
import { RAX, RCX, VCPU } from '../../machine/vcpu-block.ts';
import { EXIT_EXCEPTION } from '../engine.ts';
import { CODE_VA, createTestBlock, createTestMachine } from '../kvm/test-guest.ts';
import { createForeignStores } from './foreign-stores.ts';
import { decodeNoted } from './noted-code.ts';
import { TestGuest } from './test-guest.ts';
import { createWasmDomain } from './wasm-domain.ts';
import { WasmVcpu } from './wasm-vcpu.ts';

const TURNS = 20_000;
/** xor eax, eax; mov ecx, TURNS; 1: add eax, 3; dec ecx; jnz 1b; ud2 */
const CODE = [0x31, 0xc0, 0xb9, TURNS & 255, TURNS >> 8, 0, 0, 0x83, 0xc0, 3, 0xff, 0xc9, 0x75, 0xf9, 0x0f, 0x0b];
/** The immediate of its ADD. */
const STEP = 9;

function create(): { guest: TestGuest<WasmVcpu>; stored: (offset: number, size: number) => void } {
  const machine = createTestMachine();
  const block = createTestBlock(machine, []);
  const domain = createWasmDomain(machine, 1);
  const vcpu = new WasmVcpu(domain, machine, [block], 0, { monotonicNs: () => performance.now() * 1e6 });
  machine.u8.set(CODE, CODE_VA);
  return { guest: new TestGuest(machine, block, vcpu), stored: createForeignStores(domain, [block]) };
}

const counted = ({ vcpu }: TestGuest<WasmVcpu>, what: string): number =>
  Number(new RegExp(`${what} (\\d+)`).exec(vcpu.statistics()[0])?.[1]);

function sum(guest: TestGuest<WasmVcpu>): number {
  expect(guest.runAt(CODE_VA)).toBe(EXIT_EXCEPTION);
  expect(guest.gpr(RCX)).toBe(0);
  return guest.gpr(RAX);
}

let noted: Uint32Array;

beforeEach(() => {
  const { guest } = create();
  expect(guest.vcpu.notedCode()).toHaveLength(0);
  // Some runs are interpreted before there is a region.
  for (let i = 0; i < 3; i++) sum(guest);
  expect(counted(guest, 'regions')).toBeGreaterThan(0);
  noted = guest.vcpu.notedCode();
});

test('what has run is decoded and translated before it is run elsewhere', () => {
  const { starts, regions } = decodeNoted(noted, 1024);
  expect(starts).toContain(CODE_VA);
  expect(regions.map(({ frame }) => frame)).toContain(CODE_VA / 4096);
  const { guest } = create();
  guest.vcpu.prepareCode(noted);
  const decoded = counted(guest, 'instructions decoded');
  expect(decoded).toBeGreaterThan(5);
  expect(counted(guest, 'regions')).toBe(regions.length);
  expect(sum(guest)).toBe(TURNS * 3);
  expect(counted(guest, 'regions')).toBe(regions.length);
});

test('since the last look, nothing has run', () => {
  const { guest } = create();
  guest.vcpu.notedCode();
  sum(guest);
  expect(guest.vcpu.notedCode().length).toBeGreaterThan(1);
  expect([...guest.vcpu.notedCode()]).toEqual([0]);
});

test('code that has changed since it was prepared is run as it is then', () => {
  const { guest, stored } = create();
  guest.vcpu.prepareCode(noted);
  guest.machine.u8[CODE_VA + STEP] = 5;
  stored(CODE_VA & ~4095, 4096);
  // The run loop takes what has been asked.
  Atomics.store(guest.block.i32, VCPU.flags >> 2, 0);
  expect(sum(guest)).toBe(TURNS * 5);
});

test('the memory here counts, not the one there', () => {
  const { guest } = create();
  guest.machine.u8[CODE_VA + STEP] = 7;
  guest.vcpu.prepareCode(noted);
  expect(sum(guest)).toBe(TURNS * 7);
});

test('numbers that cannot be are left out', () => {
  const { guest } = create();
  const { nameableFrames } = guest.machine.layout;
  const far = nameableFrames * 4096;
  const nonsense = [
    [],
    [0xffffffff],
    [5, far, far + 1, 0xffffffff, 3, CODE_VA],
    [1, CODE_VA, CODE_VA, 1, CODE_VA, 0xffffffff, 0],
    [0, CODE_VA, 1, CODE_VA, 1, 0, nameableFrames],
    [0, CODE_VA, 1, CODE_VA + 1, 1, 0, CODE_VA / 4096],
    [0, far, 0, far, 1, 0, nameableFrames],
    // Pages that are not code, and one that stands for two.
    [2, 0, 4095, CODE_VA, 1, CODE_VA, 2, 0, CODE_VA / 4096, 1, CODE_VA / 4096],
    ...Array.from({ length: 20 }, (_, i) =>
      Array.from({ length: 40 }, (__, word) => Math.imul(i * 40 + word + 1, 0x9e3779b1) >>> (word % 3 === 0 ? 24 : 8)),
    ),
  ];
  for (const words of nonsense) guest.vcpu.prepareCode(Uint32Array.from(words));
  expect(sum(guest)).toBe(TURNS * 3);
});
