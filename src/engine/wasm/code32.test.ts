/** 32-bit code: what differs from 64-bit code. Expected values: Intel SDM vol. 2, the page of each mnemonic. */

import { beforeEach, expect, test } from 'vitest';
import { FLAT_RING3_CS32, FLAT_RING3_CS64, FLAT_RING3_SS64 } from '../../abi/xen.ts';
import { VCPU } from '../../machine/vcpu-block.ts';
import { EXIT_EXCEPTION } from '../engine.ts';
import { CODE_VA } from '../kvm/test-guest.ts';
import { createWasmGuest, type TestGuest } from './test-guest.ts';
import type { WasmVcpu } from './wasm-vcpu.ts';

const RAX = 0;
const RCX = 1;
const RDX = 2;
const RBX = 3;
const RSP = 4;
const RSI = 6;
const RDI = 7;
const INT3 = 0xcc;
const DATA_VA = 0x300000;
const STACK_VA = 0x200000;
const CF = 1;
const AF = 0x10;

let guest: TestGuest<WasmVcpu>;
beforeEach(() => {
  guest = createWasmGuest();
  const { u32 } = guest.block;
  u32[VCPU.cs / 4] = FLAT_RING3_CS32;
  u32[VCPU.ss / 4] = FLAT_RING3_SS64;
  guest.setGpr(RSP, STACK_VA);
});

const word = (value: number): number[] => [value & 255, (value >> 8) & 255, (value >> 16) & 255, value >>> 24];
const memory = (va: number): number => guest.machine.u32[va / 4];
/** Runs code up to its INT3, at which `vector` is 3, or to another exception. */
function run(...code: number[]): number {
  // Other code may have been there.
  guest.vcpu.memoryStored(CODE_VA, 64);
  expect(guest.run([...code, INT3])).toBe(EXIT_EXCEPTION);
  return guest.word(VCPU.exitVector);
}

test('40 to 4F are INC and DEC; the same bytes are another instruction in 64-bit code', () => {
  const code = [0x48, 0xff, 0xc0]; // dec eax; inc eax - or inc rax
  guest.setGpr(RAX, 5);
  const { u32 } = guest.block;
  for (const [selector, expected] of [
    [FLAT_RING3_CS64, 6],
    [FLAT_RING3_CS32, 6],
    [FLAT_RING3_CS64, 7],
    [FLAT_RING3_CS32, 7],
  ] as const) {
    u32[VCPU.cs / 4] = selector;
    expect(run(...code)).toBe(3);
    expect(guest.gpr(RAX)).toBe(expected);
  }
});

test('calls, returns, pushes and pops move four bytes', () => {
  // call 1f; mov ecx, esp; int3; 1: mov eax, [esp]; push 7; pop edx; ret
  expect(run(0xe8, ...word(3), 0x89, 0xe1, INT3, 0x8b, 0x04, 0x24, 0x6a, 0x07, 0x5a, 0xc3)).toBe(3);
  expect([guest.gpr(RAX), guest.gpr(RDX), guest.gpr(RCX)]).toEqual([CODE_VA + 5, 7, STACK_VA]);
  // mov eax, 1f; call eax; mov ecx, esp; int3; 1: ret 8
  expect(run(0xb8, ...word(CODE_VA + 10), 0xff, 0xd0, 0x89, 0xe1, INT3, 0xc2, 8, 0)).toBe(3);
  expect(guest.gpr(RCX)).toBe(STACK_VA + 8);
  // push 1f; jmp [esp]; int3; 1: mov edx, 9
  expect(run(0x68, ...word(CODE_VA + 9), 0xff, 0x24, 0x24, INT3, 0xba, ...word(9))).toBe(3);
  expect(guest.gpr(RDX)).toBe(9);
});

test('addresses wrap around at 4 GiB, with the segment and without', () => {
  guest.machine.u32[DATA_VA / 4] = 0x1234;
  guest.block.u32[VCPU.gsBase / 4] = DATA_VA + 0x10;
  expect(run(0x65, 0xa1, ...word(-0x10))).toBe(3); // mov eax, gs:[-16]
  expect(guest.gpr(RAX)).toBe(0x1234);
  guest.setGpr(RBX, 0xfffffff0);
  expect(run(0x65, 0x8b, 0x13)).toBe(3); // mov edx, gs:[ebx]
  expect(run(0x8b, 0x8b, ...word(DATA_VA + 0x10))).toBe(3); // mov ecx, [ebx + DATA_VA + 16]
  expect([guest.gpr(RDX), guest.gpr(RCX)]).toEqual([0x1234, 0x1234]);
  expect(run(0x8d, 0x43, 0x20)).toBe(3); // lea eax, [ebx + 32]
  expect(guest.gpr(RAX)).toBe(0x10);
});

test('16-bit addresses', () => {
  guest.machine.u32[0x8010 / 4] = 0x77;
  guest.setGpr(RBX, 0x5000ff00);
  guest.setGpr(RSI, 0x40008100);
  expect(run(0x67, 0x8b, 0x40, 0x10)).toBe(3); // mov eax, [bx + si + 16]
  expect(guest.gpr(RAX)).toBe(0x77);
  guest.setGpr(RDI, 0x12348010);
  guest.setGpr(RCX, 0x50002);
  expect(run(0x67, 0xf3, 0xab)).toBe(3); // rep stosd, at di, cx times
  expect([memory(0x8010), memory(0x8014), memory(0x8018)]).toEqual([0x77, 0x77, 0]);
  expect([guest.gpr(RDI), guest.gpr(RCX)]).toEqual([0x12348018, 0x50000]);
});

test('string instructions use 32 bits of their registers', () => {
  guest.setGpr(RAX, 0x01020304);
  guest.setGpr(RDI, DATA_VA, 1);
  guest.setGpr(RCX, 3, 1);
  expect(run(0xf3, 0xab)).toBe(3); // rep stosd
  expect([memory(DATA_VA), memory(DATA_VA + 8), memory(DATA_VA + 12)]).toEqual([0x01020304, 0x01020304, 0]);
  expect(guest.gpr(RDI)).toBe(DATA_VA + 12);
});

test('PUSHA and POPA', () => {
  for (let n = 0; n < 8; n++) if (n !== RSP) guest.setGpr(n, 0x100 + n);
  expect(run(0x60)).toBe(3);
  const pushed = Array.from({ length: 8 }, (_, i) => memory(STACK_VA - 4 * (i + 1)));
  expect(pushed).toEqual([0x100, 0x101, 0x102, 0x103, STACK_VA, 0x105, 0x106, 0x107]);
  for (let n = 0; n < 8; n++) if (n !== RSP) guest.setGpr(n, 0);
  expect(run(0x61)).toBe(3);
  expect([0, 1, 2, 3, 4, 5, 6, 7].map((n) => guest.gpr(n))).toEqual(pushed);
});

test('decimal arithmetic', () => {
  const ax = (value: number, ...code: number[]): number[] => {
    guest.setGpr(RAX, value);
    expect(run(...code)).toBe(3);
    return [guest.gpr(RAX), guest.word(VCPU.rflags) & (CF | AF)];
  };
  expect(ax(0x79, 0x04, 0x35, 0x27)).toEqual([0x14, CF | AF]); // add al, 35h; daa: 79 + 35 = 114
  expect(ax(0x35, 0x2c, 0x47, 0x2f)).toEqual([0x88, CF | AF]); // sub al, 47h; das
  expect(ax(0x0109, 0x04, 0x08, 0x37)).toEqual([0x0207, CF | AF]); // add al, 8; aaa
  expect(ax(0x0205, 0x2c, 0x08, 0x3f)).toEqual([0x0107, CF | AF]); // sub al, 8; aas
  expect(ax(0x003f, 0xd4, 0x0a)[0]).toBe(0x0603); // aam
  expect(ax(0x0603, 0xd5, 0x0a)[0]).toBe(0x3f); // aad
  expect(run(0xd4, 0x00)).toBe(0); // aam 0
  expect(ax(0x12, 0xf9, 0xd6)[0]).toBe(0xff); // stc; salc
});

test('BOUND, INTO, and LES', () => {
  guest.machine.u32[DATA_VA / 4] = 10;
  guest.machine.u32[DATA_VA / 4 + 1] = 20;
  for (const [index, vector] of [
    [9, 5],
    [10, 3],
    [20, 3],
    [21, 5],
  ] as const) {
    guest.setGpr(RAX, index);
    expect(run(0x62, 0x05, ...word(DATA_VA))).toBe(vector);
  }
  expect(run(0xb0, 0x7f, 0x04, 0x01, 0xce)).toBe(4); // mov al, 127; add al, 1; into
  expect(run(0x30, 0xc0, 0xce)).toBe(3);
  guest.machine.u32[DATA_VA / 4 + 1] = FLAT_RING3_SS64;
  expect(run(0xc4, 0x1d, ...word(DATA_VA), 0x8c, 0xc2)).toBe(3); // les ebx, [DATA_VA]; mov edx, es
  expect([guest.gpr(RBX), guest.gpr(RDX)]).toEqual([10, FLAT_RING3_SS64]);
});

test('far jumps and IRET go from one code size to the other', () => {
  // jmp 0xe033:1f; 1: mov rax, imm64; int3
  const there = CODE_VA + 7;
  expect(run(0xea, ...word(there), 0x33, 0xe0, 0x48, 0xb8, ...word(1), ...word(2))).toBe(3);
  expect([guest.gpr(RAX), guest.word(VCPU.gpr + 4), guest.word(VCPU.cs)]).toEqual([1, 2, FLAT_RING3_CS64]);
  // In 64-bit code: push 0xe023; push 1f; retfq; 1: (48) dec eax
  const back = CODE_VA + 12;
  expect(run(0x68, ...word(FLAT_RING3_CS32), 0x68, ...word(back), 0x48, 0xcb, 0x48)).toBe(3);
  expect([guest.gpr(RAX), guest.word(VCPU.cs)]).toEqual([0, FLAT_RING3_CS32]);
  // pushf; push 0xe033; push 1f; iret; 1: inc rax
  const again = CODE_VA + 12;
  expect(run(0x9c, 0x68, ...word(FLAT_RING3_CS64), 0x68, ...word(again), 0xcf, 0x48, 0xff, 0xc0)).toBe(3);
  expect([guest.gpr(RAX), guest.word(VCPU.cs), guest.gpr(RSP)]).toEqual([1, FLAT_RING3_CS64, STACK_VA]);
});

test('a branch over the end of the address space comes out at its start', () => {
  // A page fault where nothing is mapped: at 4 GiB - 16.
  expect(run(0xe9, ...word(-16 - (CODE_VA + 5)))).toBe(14);
  expect([guest.word(VCPU.cr2), guest.word(VCPU.rip), guest.word(VCPU.rip + 4)]).toEqual([0xfffffff0, 0xfffffff0, 0]);
});

test('SYSCALL is #UD, SYSENTER is the hypervisor’s, INT 80 is the kernel’s', () => {
  expect(run(0x0f, 0x05)).toBe(6);
  expect(run(0x0f, 0x34)).toBe(13);
  expect(run(0xcd, 0x80)).toBe(0x80);
  expect(guest.word(VCPU.rip)).toBe(CODE_VA + 2);
});

test('LOOP and JECXZ count in ECX, or in CX', () => {
  guest.setGpr(RCX, 3, 7);
  guest.setGpr(RAX, 0);
  expect(run(0x40, 0xe2, 0xfd)).toBe(3); // 1: inc eax; loop 1b
  expect([guest.gpr(RAX), guest.gpr(RCX)]).toEqual([3, 0]);
  expect(run(0xe3, 0x01, 0x40)).toBe(3); // jecxz over inc eax
  expect(guest.gpr(RAX)).toBe(3);
  guest.setGpr(RCX, 0x70002);
  expect(run(0x40, 0x67, 0xe2, 0xfc)).toBe(3); // 1: inc eax; loop 1b, by cx
  expect([guest.gpr(RAX), guest.gpr(RCX)]).toEqual([5, 0x70000]);
  expect(run(0x67, 0xe3, 0x01, 0x40)).toBe(3); // jcxz over inc eax
  expect(guest.gpr(RAX)).toBe(5);
});

test.each([
  ['FXSAVE', [0x0f, 0xae, 0x05], 288],
  ['XSAVE', [0x0f, 0xae, 0x25], 288],
])('%s has eight XMM registers, and leaves the bytes of the others alone', (_name, opcode, end) => {
  const at = DATA_VA / 4;
  guest.block.u32[VCPU.xcr0 / 4] = 7;
  guest.machine.u32.fill(0x5a5a5a5a, at, at + 128);
  guest.machine.u32.fill(0, at + 128, at + 144);
  // pcmpeqd xmm7, xmm7; mov eax, 7; xor edx, edx; xsave [DATA_VA]
  expect(run(0x66, 0x0f, 0x76, 0xff, 0xb8, ...word(7), 0x31, 0xd2, ...opcode, ...word(DATA_VA))).toBe(3);
  expect(memory(DATA_VA + end - 4)).toBe(0xffffffff);
  for (let offset = end; offset < 416; offset += 4) expect(memory(DATA_VA + offset)).toBe(0x5a5a5a5a);
});
