/** Callees that lead on to other code: by a jump through memory, as the PLT does, and without an end. */

import { expect, it } from 'vitest';
import { VCPU } from '../../machine/vcpu-block.ts';
import { EXIT_INTERRUPTED } from '../engine.ts';
import { CODE_VA, STACK_VA } from '../kvm/test-guest.ts';
import { createWasmGuest } from './test-guest.ts';

const RCX = 1;
const RDX = 2;
const RSP = 4;
const TURNS = 100_000;
const CALLEE = CODE_VA + 0x1000;
const TARGET = CODE_VA + 0x2000;
const POINTER = CODE_VA + 0x3000;

const word = (value: number): number[] => [0, 8, 16, 24].map((shift) => (value >>> shift) & 0xff);
/** JMP [POINTER], at `va`. */
const jumpByPointer = (va: number): number[] => [0xff, 0x25, ...word(POINTER - (va + 6))];

it('comes back from what a callee jumps to, as often as it is called', () => {
  const guest = createWasmGuest();
  guest.machine.u8.set(jumpByPointer(CALLEE), CALLEE);
  guest.machine.u8.set([0xff, 0xc2, 0xc3], TARGET);
  guest.machine.u8.set(word(TARGET), POINTER);
  guest.setGpr(RCX, TURNS);
  guest.setGpr(RDX, 0);
  guest.setGpr(RSP, STACK_VA);
  // CALL callee; DEC ECX; JNZ; SYSCALL
  guest.run([0xe8, ...word(CALLEE - (CODE_VA + 5)), 0xff, 0xc9, 0x75, 0xf7, 0x0f, 0x05]);
  expect(guest.gpr(RDX)).toBe(TURNS);
  expect(guest.gpr(RSP)).toBe(STACK_VA);
  expect(guest.vcpu.statistics().join('\n')).toMatch(/regions [3-9]/);
});

it('looks at the clock in a callee that jumps from code to code without end', () => {
  const guest = createWasmGuest();
  guest.machine.u8.set(jumpByPointer(CALLEE), CALLEE);
  // INC EDX; JMP callee
  guest.machine.u8.set([0xff, 0xc2, 0xe9, ...word(CALLEE - (TARGET + 7))], TARGET);
  guest.machine.u8.set(word(TARGET), POINTER);
  guest.machine.u8.set([0xe8, ...word(CALLEE - (CODE_VA + 5))], CODE_VA);
  guest.setGpr(RSP, STACK_VA);
  guest.setGpr(RDX, 0);
  guest.block.u32[VCPU.rip / 4] = CODE_VA;
  for (let runs = 0; runs < 5; runs++) {
    guest.vcpu.setRunDeadline((performance.now() + 20) * 1e6);
    expect(guest.vcpu.run()).toBe(EXIT_INTERRUPTED);
  }
  expect(guest.gpr(RDX)).toBeGreaterThan(TURNS);
});
