/** Small functions that are part of the region that calls them: the same as interpreted, whatever they do. */

import { describe, expect, it } from 'vitest';
import { VCPU } from '../../machine/vcpu-block.ts';
import { EXIT_EXCEPTION, EXIT_SYSCALL } from '../engine.ts';
import { CODE_VA, createTestBlock, createTestMachine, pteOffset, STACK_VA, setPte } from '../kvm/test-guest.ts';
import { type Block, discover, INLINE_INSTRUCTIONS_MAX } from './region-graph.ts';
import { TestGuest } from './test-guest.ts';
import { createWasmDomain } from './wasm-domain.ts';
import { WasmVcpu } from './wasm-vcpu.ts';

const [RCX, RDX, RSP, RSI, R8] = [1, 2, 4, 6, 8];
const F = CODE_VA + 0x1000;
const G = CODE_VA + 0x5000;
const H = CODE_VA + 0x9000;
const ELSEWHERE = CODE_VA + 0xa000;
const PTE_RW = 0x67;
const TURNS = 60_000;

const word = (value: number): number[] => [0, 8, 16, 24].map((shift) => (value >>> shift) & 0xff);
const call = (at: number, to: number): number[] => [0xe8, ...word(to - (at + 5))];
const RET = 0xc3;
const SYSCALL = [0x0f, 0x05];
const INC_EDX = [0xff, 0xc2];

/** Calls a function and does something, until ECX is 0. */
function loop(to: number, ...also: number[]): number[] {
  const turn = [...call(CODE_VA, to), ...also, 0xff, 0xc9];
  return [...turn, 0x75, 256 - turn.length - 2, ...SYSCALL];
}

type Guest = TestGuest<WasmVcpu>;

function createGuest(interpretOnly: boolean): Guest {
  const machine = createTestMachine();
  const block = createTestBlock(machine, []);
  const host = { interpretOnly, monotonicNs: () => performance.now() * 1e6 };
  return new TestGuest(machine, block, new WasmVcpu(createWasmDomain(machine, 1), machine, [block], 0, host));
}

const stateOf = ({ block, machine }: Guest): object => ({
  registers: [...block.u32.subarray(VCPU.gpr / 4, VCPU.gpr / 4 + 32)],
  rip: block.u32[VCPU.rip / 4],
  rflags: block.u32[VCPU.rflags / 4],
  vector: block.u32[VCPU.exitVector / 4],
  cr2: block.u32[VCPU.cr2 / 4],
  stack: [...machine.u32.subarray((STACK_VA - 256) / 4, (STACK_VA + 64) / 4)],
});

/** Runs the same on both; what the translating one came to. */
function both(run: (guest: Guest) => void): Guest {
  const [translated, interpreted] = [false, true].map((only) => {
    const guest = createGuest(only);
    guest.setGpr(RCX, TURNS);
    guest.setGpr(RDX, 0);
    guest.setGpr(RSP, STACK_VA);
    run(guest);
    return guest;
  });
  expect(stateOf(translated)).toEqual(stateOf(interpreted));
  expect(translated.vcpu.statistics().join('\n')).toMatch(/regions [1-9]/);
  return translated;
}

const put = (guest: Guest, at: number, ...code: number[]): void => guest.machine.u8.set(code, at);

describe('a function that is part of its caller', () => {
  it('comes back, with those that it calls itself', () => {
    const guest = both((it) => {
      put(it, F, ...INC_EDX, ...call(F + 2, G), RET);
      put(it, G, ...INC_EDX, ...call(G + 2, H), ...call(G + 7, H), RET);
      put(it, H, ...INC_EDX, RET);
      expect(it.run(loop(F))).toBe(EXIT_SYSCALL);
    });
    expect(guest.gpr(RDX)).toBe(4 * TURNS);
    expect(guest.gpr(RSP)).toBe(STACK_VA);
  });

  it('leaves flags as they are, and the return address below the stack', () => {
    // CALL; JZ +2; INC EDX, with ZF of the turn before.
    both((it) => {
      put(it, F, 0x89, 0xc8, RET);
      it.run(loop(F, 0x74, 0x02, ...INC_EDX));
    });
  });

  it('goes where the stack says', () => {
    const guest = both((it) => {
      // CMP ECX, 5; JNE +5; ADD qword [RSP], 2; RET: once, the INC EDX behind the call is left out.
      put(it, F, 0x83, 0xf9, 0x05, 0x75, 0x05, 0x48, 0x83, 0x04, 0x24, 0x02, RET);
      it.run(loop(F, ...INC_EDX));
    });
    expect(guest.gpr(RDX)).toBe(TURNS - 1);
  });

  it('takes words from the stack when it returns', () => {
    both((it) => {
      put(it, F, ...INC_EDX, 0xc2, 0x08, 0x00);
      const turn = [0x52, ...call(CODE_VA + 1, F), 0xff, 0xc9];
      it.run([...turn, 0x75, 256 - turn.length - 2, ...SYSCALL]);
    });
  });

  it('faults where it stands', () => {
    const guest = both((it) => {
      const last = 0x200000;
      setPte(it.machine, pteOffset(last), 0, 0);
      it.setGpr(RSI, last - 4 * (TURNS - 7));
      // PUSH RDX; MOV EAX, [RSI]; POP RDX; ADD RSI, 4; RET
      put(it, F, 0x52, 0x8b, 0x06, 0x5a, 0x48, 0x83, 0xc6, 0x04, RET);
      expect(it.run(loop(F, ...INC_EDX))).toBe(EXIT_EXCEPTION);
    });
    expect(guest.word(VCPU.rip)).toBe(F + 1);
    expect(guest.gpr(RCX)).toBe(7);
    expect(guest.gpr(RSP)).toBe(STACK_VA - 16);
  });

  it('is not entered where its return address cannot be pushed', () => {
    const guest = both((it) => {
      setPte(it.machine, pteOffset(STACK_VA - 0x1000), 0, 0);
      put(it, F, ...INC_EDX, RET);
      // CMP ECX, 3; JNE +7; MOV RSP, the page's start
      const turn = [
        0x83,
        0xf9,
        0x03,
        0x75,
        0x07,
        0x48,
        0xc7,
        0xc4,
        ...word(STACK_VA),
        ...call(CODE_VA + 12, F),
        0xff,
        0xc9,
      ];
      it.setGpr(RSP, STACK_VA + 32);
      expect(it.run([...turn, 0x75, 256 - turn.length - 2, ...SYSCALL])).toBe(EXIT_EXCEPTION);
    });
    expect(guest.word(VCPU.rip)).toBe(CODE_VA + 12);
    expect(guest.gpr(RDX)).toBe(TURNS - 3);
  });

  it('is what it has become when its code changes', () => {
    const guest = both((it) => {
      // ADD EDX, 1
      put(it, F, 0x83, 0xc2, 0x01, RET);
      it.setGpr(R8, F + 2);
      // CMP ECX, 9; JNE +4; MOV byte [R8], 7
      it.run(loop(F, 0x83, 0xf9, 0x09, 0x75, 0x04, 0x41, 0xc6, 0x00, 0x07));
    });
    expect(guest.gpr(RDX)).toBe(TURNS - 8 + 7 * 8);
  });

  it('may change itself while it runs', () => {
    const guest = both((it) => {
      it.setGpr(R8, F + 11);
      // CMP ECX, 9; JNE +4; MOV byte [R8], 7; ADD EDX, 1
      put(it, F, 0x83, 0xf9, 0x09, 0x75, 0x04, 0x41, 0xc6, 0x00, 0x07, 0x83, 0xc2, 0x01, RET);
      it.run(loop(F));
    });
    expect(guest.gpr(RDX)).toBe(TURNS - 9 + 7 * 9);
  });

  it('is that of the page that is mapped there now', () => {
    const guest = both((it) => {
      put(it, F, 0x83, 0xc2, 0x01, RET);
      put(it, ELSEWHERE, 0x83, 0xc2, 0x03, RET);
      it.run(loop(F));
      setPte(it.machine, pteOffset(F), ELSEWHERE / 4096, PTE_RW);
      it.vcpu.invalidatePage(F, 0);
      it.setGpr(RCX, TURNS);
      it.runAt(CODE_VA);
    });
    expect(guest.gpr(RDX)).toBe(4 * TURNS);
  });
});

describe('a region', () => {
  const [RBX, R9] = [3, 9];

  it('knows of what a loop changes out of its line', () => {
    const [a, b] = [0x300000, 0x300100];
    const guest = both((it) => {
      it.machine.u32[(a + 8) / 4] = 3;
      it.machine.u32[(b + 8) / 4] = 5;
      it.setGpr(RSI, 0);
      it.setGpr(RBX, a);
      it.setGpr(R9, b);
      const code = [
        ...[0x41, 0xb8, 4, 0, 0, 0], // mov r8d, 4
        ...[0x48, 0x8b, 0x03], // mov rax, [rbx]
        ...[0x48, 0x8b, 0x7b, 0x08], // 9: mov rdi, [rbx + 8]
        ...[0x01, 0xfe], // add esi, edi
        ...[0x85, 0xd2], // 15: test edx, edx
        ...[0x75, 0x0b], // jnz 30
        ...[0xba, 1, 0, 0, 0], // mov edx, 1
        ...[0x41, 0xff, 0xc8], // dec r8d
        ...[0x75, 0xec], // jnz 9
        RET,
        ...[0x4c, 0x87, 0xcb], // 30: xchg rbx, r9
        ...[0x31, 0xd2], // xor edx, edx
        ...[0xeb, 0xea], // jmp 15
      ];
      put(it, F, ...code);
      it.run(loop(F));
    });
    expect(guest.gpr(RSI)).toBe(8 * 2 * TURNS - 2);
  });

  it('is not written twice behind a branch that goes where it stands', () => {
    const turn = [...Array.from({ length: 30 }, () => [...INC_EDX, 0x70, 0x00]).flat(), 0xff, 0xc9];
    const guest = both((it) => it.run([...turn, 0x0f, 0x85, ...word(-turn.length - 6), ...SYSCALL]));
    expect(guest.gpr(RDX)).toBe(30 * TURNS);
  });
});

describe('the graph of a region', () => {
  const ends = (...functions: [at: number, code: number[]][]): Block['end']['kind'][] => endsOf(false, functions);
  const endsOf = (isUser: boolean, functions: [at: number, code: number[]][]): Block['end']['kind'][] => {
    const { u8 } = createTestMachine();
    for (const [at, code] of functions) u8.set(code, at);
    const page = CODE_VA / 4096;
    const graph = discover(
      { u8, frame: (relative) => page + relative, isUser, isWarm: () => true, large: new Set() },
      0,
    );
    return (graph?.blocks ?? []).map(({ end }) => end.kind);
  };
  const NOP = 0x90;

  it('has small functions in it, and none that calls itself or does not come back', () => {
    expect(ends([CODE_VA, loop(F)], [F, [RET]])).toContain('enter');
    expect(ends([CODE_VA, loop(F)], [F, [...Array<number>(INLINE_INSTRUCTIONS_MAX - 1).fill(NOP), RET]])).toContain(
      'enter',
    );
    expect(ends([CODE_VA, loop(F)], [F, [...Array<number>(INLINE_INSTRUCTIONS_MAX).fill(NOP), RET]])).not.toContain(
      'enter',
    );
    expect(ends([CODE_VA, loop(F)], [F, [0xeb, 0xfe]])).not.toContain('enter');
    const recursive = ends([CODE_VA, loop(F)], [F, [...call(F, F), RET]]);
    expect(recursive.filter((kind) => kind === 'enter').length).toBe(1);
    expect(recursive).toContain('call');
  });

  it('has in programs no pages for what it calls', () => {
    expect(
      endsOf(true, [
        [CODE_VA, loop(F)],
        [F, [RET]],
      ]),
    ).not.toContain('enter');
    const near = CODE_VA + 0x800;
    expect(
      endsOf(true, [
        [CODE_VA, loop(near)],
        [near, [RET]],
      ]),
    ).toContain('enter');
  });

  it('has each call with a copy, but not without end', () => {
    const calls = Array.from({ length: 40 }, (_, i) => call(CODE_VA + 5 * i, F)).flat();
    const kinds = ends([CODE_VA, [...calls, ...SYSCALL]], [F, [...Array<number>(19).fill(NOP), RET]]);
    const entered = kinds.filter((kind) => kind === 'enter').length;
    expect(entered).toBeGreaterThan(4);
    expect(entered).toBeLessThan(20);
    expect(kinds.filter((kind) => kind === 'call').length).toBe(40 - entered);
  });
});
