/** RFLAGS.AC: misaligned accesses are #AC. Expected values: Intel SDM vol. 3, interrupt 17. */

import { beforeEach, expect, test } from 'vitest';
import { VCPU } from '../../machine/vcpu-block.ts';
import { EXIT_EXCEPTION } from '../engine.ts';
import { createWasmGuest, type TestGuest } from './test-guest.ts';
import type { WasmVcpu } from './wasm-vcpu.ts';

const RAX = 0;
const RBX = 3;
const RSP = 4;
const STACK_VA = 0x200000;
const DATA_VA = 0x300000;
const INT3 = 0xcc;
const AC = 0x40000;
const ALIGNMENT_CHECK = 17;
const BREAKPOINT = 3;

let guest: TestGuest<WasmVcpu>;
beforeEach(() => {
  guest = createWasmGuest();
  guest.setGpr(RSP, STACK_VA);
  guest.machine.u32[DATA_VA / 4] = 0x04030201;
  guest.machine.u32[DATA_VA / 4 + 1] = 0x08070605;
});

function run(...code: number[]): number {
  expect(guest.run([...code, INT3])).toBe(EXIT_EXCEPTION);
  return guest.word(VCPU.exitVector);
}

const setAc = (): void => {
  guest.block.u32[VCPU.rflags / 4] = 0x202 | AC;
};

test.each([
  ['mov al, [rbx]', [0x8a, 0x03], 1, BREAKPOINT],
  ['mov ax, [rbx]', [0x66, 0x8b, 0x03], 1, ALIGNMENT_CHECK],
  ['mov ax, [rbx]', [0x66, 0x8b, 0x03], 2, BREAKPOINT],
  ['mov eax, [rbx]', [0x8b, 0x03], 2, ALIGNMENT_CHECK],
  ['mov rax, [rbx]', [0x48, 0x8b, 0x03], 4, ALIGNMENT_CHECK],
  ['mov [rbx], rax', [0x48, 0x89, 0x03], 4, ALIGNMENT_CHECK],
  ['mov rax, [rbx]', [0x48, 0x8b, 0x03], 8, BREAKPOINT],
  ['fld tbyte [rbx]', [0xdb, 0x2b], 4, ALIGNMENT_CHECK],
])('%s at an offset of %3$i ends with vector %4$i', (_name, code, offset, vector) => {
  setAc();
  guest.setGpr(RBX, DATA_VA + offset);
  expect(run(...code)).toBe(vector);
  if (vector === ALIGNMENT_CHECK) expect(guest.word(VCPU.exitErrorCode)).toBe(0);
});

test('it begins with the POPF that sets AC, and ends with the one that clears it', () => {
  guest.setGpr(RBX, DATA_VA + 1);
  // mov eax, [rbx]: the page is in the TLB from here on; push AC; popf; push 2; popf; mov eax, [rbx]
  const before = [0x8b, 0x03, 0x68, 0, 0, 4, 0, 0x9d];
  const after = [0x6a, 0x02, 0x9d, 0x8b, 0x03];
  expect(run(...before, ...after)).toBe(BREAKPOINT);
  expect(guest.gpr(RAX)).toBe(0x05040302);
  guest.vcpu.memoryStored(0x100000, 64);
  expect(run(...before, 0x8b, 0x03)).toBe(ALIGNMENT_CHECK);
  expect(guest.gpr(RSP)).toBe(STACK_VA);
});
