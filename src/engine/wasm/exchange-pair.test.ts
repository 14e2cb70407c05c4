/** CMPXCHG16B where there is code: what the conformance suite, whose data have pages of their own, does not come to. */

import { expect, test } from 'vitest';
import { VCPU } from '../../machine/vcpu-block.ts';
import { EXIT_EXCEPTION } from '../engine.ts';
import { CODE_VA } from '../kvm/test-guest.ts';
import { createWasmGuest, type TestGuest } from './test-guest.ts';
import type { WasmVcpu } from './wasm-vcpu.ts';

const RAX = 0;
const RCX = 1;
const RDX = 2;
const RBX = 3;
const RSI = 6;
const RDI = 7;
const ZF = 0x40;
const UD2 = [0x0f, 0x0b];
const CMPXCHG16B_RSI = [0x48, 0x0f, 0xc7, 0x0e];
const OTHER = CODE_VA + 0x1000;

/** MOV EDI, value; UD2; and zeros: 16 bytes. */
const routine = (value: number): Uint8Array => Uint8Array.from([0xbf, value, 0, 0, 0, ...UD2, ...new Array(9).fill(0)]);

function setPair(guest: TestGuest<WasmVcpu>, low: number, high: number, bytes: Uint8Array): void {
  const words = new Uint32Array(bytes.buffer);
  guest.setGpr(low, words[0], words[1]);
  guest.setGpr(high, words[2], words[3]);
}

test.each([
  ['with LOCK', [0xf0]],
  ['without', []],
])('CMPXCHG16B of code that has run, %s: the new code runs, and what is not as expected is told', (_name, lock) => {
  const guest = createWasmGuest();
  guest.machine.u8.set(routine(1), OTHER);
  const answer = (): number => {
    expect(guest.runAt(OTHER)).toBe(EXIT_EXCEPTION);
    return guest.gpr(RDI);
  };
  const exchange = (): boolean => {
    guest.setGpr(RSI, OTHER);
    expect(guest.run([...lock, ...CMPXCHG16B_RSI, ...UD2])).toBe(EXIT_EXCEPTION);
    expect(guest.word(VCPU.rip)).toBe(CODE_VA + lock.length + CMPXCHG16B_RSI.length);
    return (guest.word(VCPU.rflags) & ZF) !== 0;
  };
  expect(answer()).toBe(1);
  setPair(guest, RAX, RDX, routine(1));
  setPair(guest, RBX, RCX, routine(2));
  expect(exchange()).toBe(true);
  expect(answer()).toBe(2);
  // Still with what was there before.
  expect(exchange()).toBe(false);
  expect(guest.gpr(RAX)).toBe(0x2bf);
  expect(answer()).toBe(2);
  setPair(guest, RBX, RCX, routine(3));
  expect(exchange()).toBe(true);
  expect(answer()).toBe(3);
});
