/**
 * Accesses that share a look-up: each piece of code runs at each distance from the end of a page, with each kind of page behind it,
 * interpreted and translated. Both must end alike: registers, memory, fault.
 */

import { describe, expect, it } from 'vitest';
import { RBX, RCX, RDI, RDX, RSI, RSP, VCPU } from '../../machine/vcpu-block.ts';
import { CODE_VA, createTestBlock, createTestMachine, PTE_RW, pteOffset, setPte } from '../kvm/test-guest.ts';
import { INTERPRETED, TRANSLATED } from './executed.ts';
import { HOT } from './interpreter.ts';
import { HOT_COUNTS, STATE } from './layout.ts';
import { TestGuest } from './test-guest.ts';
import { createWasmDomain } from './wasm-domain.ts';
import { WasmVcpu } from './wasm-vcpu.ts';

const UD2 = [0x0f, 0x0b];
/** What lies in two pages does so here. */
const EDGE = 0x301000;
const OTHER = 0x310000;
/** Frames of the two pages by their addresses plus HIGH: other ones. */
const HIGH_HI = 0x80;
const HIGH_FRAME = 0x340;
const STACK = 0x320800;
const FRAMES = [0x300, 0x301, 0x308, 0x310, 0x320, HIGH_FRAME, HIGH_FRAME + 1];
const CLEAN = 0x27;
const READ_ONLY = 0x65;
const DISTANCE_MAX = 72;

type Second = 'the next frame' | 'another frame' | 'not there' | 'read-only' | 'with code' | 'clean';
const SECONDS: readonly Second[] = ['the next frame', 'another frame', 'not there', 'read-only', 'with code', 'clean'];

interface Piece {
  readonly code: readonly number[];
  /** Registers that begin at the edge. */
  readonly at: readonly number[];
  /** In the half of the addresses where 32 bits are not all. */
  readonly high?: boolean;
}

const LOAD_RAX = [0x48, 0x8b, 0x03]; // mov rax, [rbx]
const LOAD_RCX = [0x48, 0x8b, 0x4b, 0x08]; // mov rcx, [rbx + 8]
const between = (...code: number[]): number[] => [...LOAD_RAX, ...code, ...LOAD_RCX];

const PIECES: Readonly<Record<string, Piece>> = {
  'push, sub, locals, add, pop': {
    code: [
      ...[
        0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57, 0x48, 0x83, 0xec, 0x18, 0x48, 0x89, 0x7c, 0x24, 8,
      ],
      ...[
        0x48, 0x8b, 0x44, 0x24, 0x20, 0x48, 0x83, 0xc4, 0x18, 0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d,
        0x5b,
      ],
    ],
    at: [RSP],
  },
  'push, mov rbp, rsp, locals by both, leave, ret': {
    code: [
      ...[0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x20, 0x48, 0x89, 0x45, 0xf8, 0x48, 0x89, 0x4c, 0x24, 8],
      ...[0x48, 0x8b, 0x55, 0xe8, 0xc9, 0x52, 0x66, 0x50, 0x66, 0x59, 0x58],
    ],
    at: [RSP],
  },
  'fields that are read': {
    code: [...LOAD_RAX, 0x8b, 0x4b, 8, 0x0f, 0xb6, 0x53, 0x13, 0x48, 0x8b, 0x73, 0x18],
    at: [RBX],
  },
  'fields that are written behind others': {
    code: [
      ...LOAD_RAX,
      0x48,
      0x89,
      0x4b,
      8,
      0x01,
      0x53,
      0x10,
      0x48,
      0x8b,
      0x7b,
      0x0c,
      0xf0,
      0x48,
      0x0f,
      0xc1,
      0x43,
      0x18,
    ],
    at: [RBX],
  },
  'from the highest to the lowest': {
    code: [0x48, 0x8b, 0x43, 0x18, 0x48, 0x89, 0x53, 0x10, 0x48, 0x8b, 0x4b, 8, 0x88, 0x13, 0x48, 0x8b, 0x73, 0xf8],
    at: [RBX],
  },
  vectors: {
    code: [0xf3, 0x0f, 0x6f, 0x03, 0xf3, 0x0f, 0x7f, 0x43, 0x10, 0xf3, 0x0f, 0x7e, 0x4b, 0x20, 0x66, 0x0f, 0xd6, 0x0b],
    at: [RBX],
  },
  indexes: {
    code: [
      ...[0x48, 0x8b, 0x04, 0xf3, 0x48, 0x8b, 0x4c, 0xf3, 8, 0x48, 0xff, 0xc6, 0x48, 0x8b, 0x14, 0xf3],
      ...[0x8b, 0x3c, 0xb3, 0x48, 0x83, 0xc6, 0xfe, 0x48, 0x89, 0x04, 0xf3],
    ],
    at: [RBX],
  },
  'the same register moved and copied': {
    code: [
      ...[...LOAD_RAX, 0x48, 0x83, 0xc3, 0x10, ...LOAD_RCX, 0x48, 0x8d, 0x53, 0xf0, 0x88, 0x42, 1, 0x48, 0x89, 0xd7],
      ...[0x48, 0xff, 0xcf, 0x89, 0x4f, 0x11],
    ],
    at: [RBX],
  },
  'a branch over a write, and a read behind': {
    code: [...LOAD_RAX, 0xa8, 1, 0x74, 4, 0x48, 0x89, 0x4b, 8, 0x48, 0x8b, 0x53, 0x10],
    at: [RBX],
  },
  'a base that one of two ways changes': {
    code: [...LOAD_RAX, 0xa8, 1, 0x74, 3, 0x48, 0x89, 0xd3, ...LOAD_RCX, 0x88, 0x43, 9],
    at: [RBX],
  },
  'a loop that moves the base': {
    code: [0x6a, 4, 0x5e, ...LOAD_RAX, 0x48, 0x01, 0x43, 8, 0x48, 0x8d, 0x5b, 8, 0xff, 0xce, 0x75, 0xf1],
    at: [RBX],
  },
  'a loop that moves the base of an access before it': {
    code: [0x6a, 4, 0x5e, ...LOAD_RAX, 0x48, 0x03, 0x43, 8, 0x48, 0x8d, 0x5b, 8, 0xff, 0xce, 0x75, 0xf4],
    at: [RBX],
  },
  'a loop that does not': {
    code: [
      0x6a,
      4,
      0x5e,
      ...LOAD_RAX,
      0x48,
      0x03,
      0x43,
      8,
      0x48,
      0x89,
      0x02,
      0x48,
      0x83,
      0xc2,
      8,
      0xff,
      0xce,
      0x75,
      0xf1,
    ],
    at: [RBX],
  },
  'a callee that changes the base': {
    // jmp over; f: mov rbx, rdx; ret; mov rax, [rbx]; call f; mov rcx, [rbx + 8]
    code: [0xeb, 4, 0x48, 0x89, 0xd3, 0xc3, ...LOAD_RAX, 0xe8, 0xf4, 0xff, 0xff, 0xff, ...LOAD_RCX],
    at: [RBX],
  },
  'a string instruction': { code: [0x48, 0x8b, 0x07, 0x48, 0xab, 0x48, 0x8b, 0x0f, 0x48, 0x89, 0x47, 0xf0], at: [RDI] },
  'a store of where it is': { code: [0x48, 0x89, 0x13, 0x48, 0x8b, 0x1b, ...LOAD_RCX], at: [RBX] },
  'push and pop of memory': { code: [0xff, 0x33, 0xff, 0x73, 8, 0x8f, 0x43, 0x10, 0x8f, 0x44, 0x24, 0xf8], at: [RBX] },
  'push and pop of the stack': { code: [0xff, 0x74, 0x24, 8, 0x8f, 0x44, 0x24, 8, 0x54, 0x5c, 0x50], at: [RSP] },
  'pop of another stack': { code: [0x50, 0x52, 0x5c, 0x50, 0x51], at: [RSP] },
  'and of the stack pointer': { code: [0x50, 0x48, 0x83, 0xe4, 0xf0, 0x51, 0x52, 0x59], at: [RSP] },
  'mov ebx, ebx': { code: between(0x89, 0xdb), at: [RBX], high: true },
  'add ebx, 8': { code: between(0x83, 0xc3, 8), at: [RBX], high: true },
  'lea ebx, [rbx + 8]': { code: between(0x8d, 0x5b, 8), at: [RBX], high: true },
  'inc ebx': { code: between(0xff, 0xc3), at: [RBX], high: true },
  'add bl, 8': { code: between(0x80, 0xc3, 8), at: [RBX], high: true },
  'mov bx, dx': { code: between(0x66, 0x89, 0xd3), at: [RBX], high: true },
  'xchg rbx, rdx': { code: between(0x48, 0x87, 0xd3), at: [RBX], high: true },
  'xadd rbx, rdx': { code: between(0x48, 0x0f, 0xc1, 0xd3), at: [RBX], high: true },
  'cmov rbx, rdx': { code: between(0xa8, 1, 0x48, 0x0f, 0x45, 0xda), at: [RBX], high: true },
  'pop rbx': { code: between(0x5b), at: [RBX], high: true },
  'mov rbx, rdx and back': { code: between(0x48, 0x89, 0xd3, 0x48, 0x8b, 0x33), at: [RBX], high: true },
  '[ebx]': { code: between(0x67, 0x8b, 0x53, 0x10), at: [RBX], high: true },
  'gs:[rbx]': { code: between(0x65, 0x8b, 0x53, 0x10, 0x65, 0x88, 0x43, 0x11), at: [RBX], high: true },
};

const PAGE_FAULT = 14;

const pattern = (odd: number): Uint8Array =>
  Uint8Array.from({ length: 4096 }, (_, i) => ((i * 37) >> 2) ^ (i & 7 ? 5 : odd));
const EVEN = pattern(0);
const ODD = pattern(1);

class Side {
  readonly guest: TestGuest<WasmVcpu>;

  constructor(translated: boolean) {
    const machine = createTestMachine();
    const [l3, l2, l1] = [900, 901, 902];
    setPte(machine, 4096 + 8, l3, PTE_RW);
    setPte(machine, l3 * 4096, l2, PTE_RW);
    setPte(machine, l2 * 4096 + 8, l1, PTE_RW);
    setPte(machine, l1 * 4096 + (0x100 + 0) * 8, HIGH_FRAME, PTE_RW);
    setPte(machine, l1 * 4096 + (0x100 + 1) * 8, HIGH_FRAME + 1, PTE_RW);
    const block = createTestBlock(machine, []);
    const host = { monotonicNs: () => performance.now() * 1e6, interpretOnly: !translated, countInstructions: true };
    this.guest = new TestGuest(machine, block, new WasmVcpu(createWasmDomain(machine, 1), machine, [block], 0, host));
  }

  /** The page behind the edge; what was known of it is forgotten. */
  second(kind: Second): void {
    const { machine, vcpu } = this.guest;
    const frame = kind === 'another frame' ? 0x308 : 0x301;
    const flags = kind === 'not there' ? 0 : kind === 'read-only' ? READ_ONLY : kind === 'clean' ? CLEAN : PTE_RW;
    setPte(machine, pteOffset(EDGE), frame, flags);
    if (kind === 'clean') setPte(machine, pteOffset(EDGE - 4096), 0x300, CLEAN);
    vcpu.flushTlb();
    if (kind !== 'with code') return;
    machine.u8.set(UD2, EDGE + 0x900);
    this.guest.runAt(EDGE + 0x900);
  }

  restoreFirst(): void {
    setPte(this.guest.machine, pteOffset(EDGE - 4096), 0x300, PTE_RW);
    this.guest.vcpu.flushTlb();
  }

  /** Runs a piece of code that is there already. What it has done but for memory, to be compared. */
  run({ at, high }: Piece, distance: number, odd: number): string {
    const { guest } = this;
    const { u32, u8, f64 } = guest.block;
    for (const frame of FRAMES) guest.machine.u8.set(odd === 0 ? EVEN : ODD, frame * 4096);
    for (let register = 0; register < 16; register++) guest.setGpr(register, 0x11111111 * register, 0x22222222);
    guest.setGpr(RSP, STACK);
    guest.machine.u32[STACK / 4] = OTHER;
    guest.machine.u32[STACK / 4 + 1] = 0;
    guest.setGpr(RDX, OTHER + 0x100);
    guest.setGpr(RSI, 1);
    for (const register of at) guest.setGpr(register, EDGE - distance, high === true ? HIGH_HI : 0);
    u32[VCPU.rflags / 4] = 0x202;
    u32[VCPU.gsBase / 4] = 0x40;
    u32[VCPU.cr2 / 4] = 0;
    u32[VCPU.exitErrorCode / 4] = 0;
    f64[(STATE.executed + TRANSLATED) / 8] = 0;
    const exit = guest.runAt(CODE_VA);
    const state = [VCPU.exitVector, VCPU.exitErrorCode, VCPU.cr2, VCPU.rip, VCPU.rflags];
    const registers = u32.subarray(VCPU.gpr / 4, VCPU.gpr / 4 + 32);
    return [
      exit,
      ...state.map((offset) => guest.word(offset)),
      ...registers,
      ...u8.subarray(STATE.xmm, STATE.xmm + 32),
    ].join(' ');
  }

  frame(number: number): Uint8Array {
    return this.guest.machine.u8.subarray(number * 4096, number * 4096 + 4096);
  }

  executed(which: number): number {
    return this.guest.block.f64[(STATE.executed + which) / 8];
  }
}

describe('accesses by the same register end as if each had looked for itself', () => {
  it.each(Object.entries(PIECES))('%s', (_name, piece) => {
    const sides = [new Side(false), new Side(true)];
    for (const side of sides) {
      side.guest.machine.u8.set([...piece.code, ...UD2], CODE_VA);
      side.run(piece, 0x800, 0);
      side.run(piece, 0x800, 1);
      side.guest.block.u32.fill(HOT - 1, STATE.hotCounts / 4, STATE.hotCounts / 4 + HOT_COUNTS);
      // Until the region that is wanted now is made.
      for (let i = 0; i < 70; i++) side.run(piece, 0x800, i & 1);
    }
    expect(sides[0].executed(TRANSLATED)).toBe(0);
    expect(sides[1].executed(TRANSLATED)).toBeGreaterThan(2);
    let faults = 0;
    for (const kind of SECONDS)
      for (let distance = -8; distance < DISTANCE_MAX; distance++) {
        for (const side of sides) side.second(kind);
        // The second time with what the first one has left in the TLB.
        for (const odd of [0, 1]) {
          const [expected, found] = sides.map((side) => side.run(piece, distance, odd));
          const where = `${kind}, ${distance}, ${odd}: `;
          if (found !== expected) expect(where + found).toBe(where + expected);
          for (const frame of FRAMES)
            if (Buffer.compare(sides[0].frame(frame), sides[1].frame(frame)) !== 0)
              throw new Error(`${where}frame ${frame} differs`);
          if (sides[0].guest.word(VCPU.exitVector) === PAGE_FAULT) faults++;
        }
        for (const side of sides) side.restoreFirst();
      }
    if (piece.high !== true) expect(faults).toBeGreaterThan(0);
  });
});

it('code whose accesses often lie in two pages that are no neighbours stays translated', () => {
  const side = new Side(true);
  const { guest } = side;
  const turns = 20_000;
  // mov rax, [rbx]; mov rcx, [rbx + 8]; dec esi; jnz
  guest.machine.u8.set([...LOAD_RAX, ...LOAD_RCX, 0xff, 0xce, 0x75, 0xf5, ...UD2], CODE_VA);
  const interpreted = (distance: number): number => {
    guest.setGpr(RBX, EDGE - distance);
    guest.setGpr(RSI, turns);
    const before = side.executed(INTERPRETED);
    guest.runAt(CODE_VA);
    expect(guest.gpr(RSI)).toBe(0);
    return side.executed(INTERPRETED) - before;
  };
  side.second('another frame');
  interpreted(0x800);
  expect(interpreted(0x800)).toBeLessThan(turns / 4);
  expect(interpreted(8)).toBeGreaterThan(turns / 4);
  for (let i = 0; i < 3; i++) interpreted(8);
  expect(interpreted(8)).toBeLessThan(turns / 4);
  guest.machine.u32[(0x308 * 4096) / 4] = 77;
  interpreted(8);
  expect(guest.gpr(RCX)).toBe(77);
});
