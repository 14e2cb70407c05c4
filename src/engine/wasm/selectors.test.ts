/** MOV from segment registers, interpreted and translated. Source: Intel SDM vol. 2, MOV. */

import { expect, test } from 'vitest';
import { VCPU } from '../../machine/vcpu-block.ts';
import { EXIT_EXCEPTION } from '../engine.ts';
import { FLAT_CS64, FLAT_SS } from '../kvm/hypervisor-area.ts';
import { createWasmGuest } from './test-guest.ts';

const RCX = 1;
const RSI = 6;
const RDI = 7;
const R8 = 8;
/** Xen's own, told apart by their RPL. */
const [ES, DS, FS, GS] = [0xe031, 0xe02a, 0xe021, 0xe028];
const DATA_VA = 0x300000;
const UD2 = [0x0f, 0x0b];
const LOOP = [
  ...[0x41, 0x8c, 0xc0], // mov r8d, es
  ...[0x41, 0x8c, 0xc9], // mov r9d, cs
  ...[0x41, 0x8c, 0xd2], // mov r10d, ss
  ...[0x41, 0x8c, 0xdb], // mov r11d, ds
  ...[0x41, 0x8c, 0xe4], // mov r12d, fs
  ...[0x41, 0x8c, 0xed], // mov r13d, gs
  ...[0x66, 0x8c, 0xc6], // mov si, es
  ...[0x48, 0x8c, 0xef], // mov rdi, gs
  ...[0x8c, 0x24, 0x25, 0, 0, 0x30, 0], // mov [DATA_VA], fs
  ...[0xff, 0xc9], // dec ecx
];
const ALL = [...LOOP, 0x75, 0x100 - LOOP.length - 2, ...UD2];

test.each([
  ['interpreted', 1],
  ['translated', 100_000],
])('MOV from a segment register, %s', (name, turns) => {
  const guest = createWasmGuest();
  for (const [at, selector] of [
    [VCPU.es, ES],
    [VCPU.ds, DS],
    [VCPU.fs, FS],
    [VCPU.gs, GS],
  ])
    guest.block.u32[at / 4] = selector;
  guest.setGpr(RCX, turns);
  for (const register of [RSI, RDI, R8, R8 + 5]) guest.setGpr(register, 0xaaaaaaaa, 0xbbbbbbbb);
  guest.machine.u32[DATA_VA / 4] = 0xcccccccc;
  expect(guest.run(ALL)).toBe(EXIT_EXCEPTION);
  const registers = [0, 1, 2, 3, 4, 5].map((i) => guest.gpr(R8 + i));
  expect(registers).toEqual([ES, FLAT_CS64, FLAT_SS, DS, FS, GS]);
  const high = (register: number): number => guest.word(VCPU.gpr + register * 8 + 4);
  expect([high(R8), high(R8 + 5)]).toEqual([0, 0]);
  expect([guest.gpr(RSI), high(RSI)]).toEqual([0xaaaa0000 + ES, 0xbbbbbbbb]);
  expect([guest.gpr(RDI), high(RDI)]).toEqual([GS, 0]);
  expect(guest.machine.u32[DATA_VA / 4]).toBe(0xcccc0000 + FS);
  const statistics = guest.vcpu.statistics().join('\n');
  expect(statistics).toMatch(name === 'translated' ? /regions [1-9]/ : /regions 0/);
  // By TypeScript nothing but UD2.
  expect(statistics).not.toContain('mov ');
});
