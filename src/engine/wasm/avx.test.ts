/** What of AVX and XSAVE the conformance tests do not see: the state that the guest's kernel has not enabled, faults half way. */

import { beforeEach, describe, expect, test } from 'vitest';
import { VCPU } from '../../machine/vcpu-block.ts';
import { EXIT_EXCEPTION } from '../engine.ts';
import { CODE_VA } from '../kvm/test-guest.ts';
import { FORMS } from '../x86/forms.ts';
import { FEATURES_V3 } from '../x86/tables.ts';
import { STATE } from './layout.ts';
import { gatherInstruction } from './rare-gather.ts';
import { avxMeaning, integerMeaning } from './semantics/table.ts';
import { createWasmGuest, type TestGuest } from './test-guest.ts';
import type { WasmVcpu } from './wasm-vcpu.ts';

const INT3 = 0xcc;
const BREAKPOINT = 3;
const INVALID_OPCODE = 6;
const DEVICE_NOT_AVAILABLE = 7;
const STACK_FAULT = 12;
const GENERAL_PROTECTION = 13;
const PAGE_FAULT = 14;

const RSP = 4;

const DATA_VA = 0x300000;
/** The tiny guest's memory ends here. */
const END_VA = 0x400000;
const dword = (value: number): number[] => [value & 0xff, (value >> 8) & 0xff, (value >> 16) & 0xff, value >>> 24];

// Source: Intel SDM vol. 2.
const VPADDD_YMM = [0xc5, 0xf5, 0xfe, 0xc2]; // vpaddd ymm0, ymm1, ymm2
const VPADDD_XMM = [0xc5, 0xf1, 0xfe, 0xc2]; // vpaddd xmm0, xmm1, xmm2
const PADDD = [0x66, 0x0f, 0xfe, 0xc2]; // paddd xmm0, xmm2
const VGATHERDPS = [0xc4, 0xe2, 0x75, 0x92, 0x04, 0x90]; // vgatherdps ymm0, [rax + ymm2 * 4], ymm1
const ANDN = [0xc4, 0xe2, 0x78, 0xf2, 0xc1]; // andn eax, eax, ecx
const XGETBV = [0x0f, 0x01, 0xd0];
const xsave64 = (va: number): number[] => [0x48, 0x0f, 0xae, 0x24, 0x25, ...dword(va)];
const XRSTOR_RSP = [0x48, 0x0f, 0xae, 0x2c, 0x24]; // xrstor64 [rsp]
const xrstor64 = (va: number): number[] => [0x48, 0x0f, 0xae, 0x2c, 0x25, ...dword(va)];

describe('AVX and XSAVE on the wasm engine', () => {
  let guest: TestGuest<WasmVcpu>;
  let codeVa = 0;

  beforeEach(() => {
    guest = createWasmGuest();
    guest.block.u32[VCPU.xcr0 / 4] = 7;
    codeVa = CODE_VA;
  });

  /** Runs code where none has been; gives the vector of the exception that ends it. */
  function vectorOf(...parts: readonly number[][]): number {
    codeVa += 0x40;
    expect(guest.run([...parts.flat(), INT3], codeVa)).toBe(EXIT_EXCEPTION);
    return guest.word(VCPU.exitVector);
  }

  const words = (offset: number, register: number): Uint32Array =>
    guest.block.u32.subarray(offset / 4 + 4 * register, offset / 4 + 4 * register + 4);
  const low = (register: number): Uint32Array => words(STATE.xmm, register);
  const upper = (register: number): Uint32Array => words(STATE.ymmHigh, register);

  test('there is every instruction with VEX of x86-64-v3', () => {
    const forms = FORMS.filter(
      (form) => form.vex && form.feature.split('&').every((name) => FEATURES_V3.includes(name)),
    );
    expect(forms.length).toBeGreaterThan(380);
    const missing = forms.filter((form) => !integerMeaning(form) && !avxMeaning(form) && !gatherInstruction(form));
    expect(missing.map((form) => form.key)).toEqual([]);
  });

  test.each([1, 3, 5])('VEX is #UD while XCR0 is %i, but for general registers', (xcr0) => {
    guest.block.u32[VCPU.xcr0 / 4] = xcr0;
    expect(vectorOf(VPADDD_YMM)).toBe(INVALID_OPCODE);
    expect(guest.word(VCPU.rip)).toBe(codeVa);
    expect(vectorOf(VPADDD_XMM)).toBe(INVALID_OPCODE);
    expect(vectorOf(VGATHERDPS)).toBe(INVALID_OPCODE);
    expect(vectorOf(ANDN)).toBe(BREAKPOINT);
  });

  test('VEX is #NM while CR0.TS is set', () => {
    guest.block.u32[VCPU.cr0Ts / 4] = 8;
    expect(vectorOf(VPADDD_YMM)).toBe(DEVICE_NOT_AVAILABLE);
    expect(vectorOf(VGATHERDPS)).toBe(DEVICE_NOT_AVAILABLE);
    expect(vectorOf(xsave64(DATA_VA))).toBe(DEVICE_NOT_AVAILABLE);
    expect(vectorOf(ANDN)).toBe(BREAKPOINT);
    guest.block.u32[VCPU.xcr0 / 4] = 1;
    expect(vectorOf(VPADDD_YMM)).toBe(INVALID_OPCODE);
  });

  test('SSE keeps the upper half that VEX clears', () => {
    upper(0).fill(7);
    expect(vectorOf(PADDD)).toBe(BREAKPOINT);
    expect([...upper(0)]).toEqual([7, 7, 7, 7]);
    expect(vectorOf(VPADDD_XMM)).toBe(BREAKPOINT);
    expect([...upper(0)]).toEqual([0, 0, 0, 0]);
  });

  test('XSAVE and XRSTOR leave alone what XCR0 does not have', () => {
    const area = guest.machine.u32.subarray(DATA_VA / 4, DATA_VA / 4 + 208);
    area.fill(0xaaaaaaaa);
    guest.setGpr(0, 0xffffffff);
    guest.setGpr(2, 0xffffffff);
    upper(3).fill(5);
    guest.block.u32[VCPU.xcr0 / 4] = 3;
    area.fill(0, 128, 144);
    expect(vectorOf(xsave64(DATA_VA))).toBe(BREAKPOINT);
    expect(area[128]).toBe(3);
    expect([...area.subarray(144)]).toEqual(new Array<number>(64).fill(0xaaaaaaaa));
    guest.block.u32[VCPU.xcr0 / 4] = 7;
    expect(vectorOf(xsave64(DATA_VA))).toBe(BREAKPOINT);
    expect(area[128]).toBe(7);
    expect([...area.subarray(144 + 12, 144 + 16)]).toEqual([5, 5, 5, 5]);
    upper(3).fill(6);
    guest.block.u32[VCPU.xcr0 / 4] = 3;
    expect(vectorOf(xrstor64(DATA_VA))).toBe(GENERAL_PROTECTION);
    area[128] = 3;
    expect(vectorOf(xrstor64(DATA_VA))).toBe(BREAKPOINT);
    expect([...upper(3)]).toEqual([6, 6, 6, 6]);
  });

  test('XRSTOR looks at its alignment, then at the header, and then for what that says is there', () => {
    guest.setGpr(0, 7);
    guest.setGpr(2, 0);
    guest.setGpr(RSP, 0x40, 0x8000);
    expect(vectorOf(XRSTOR_RSP)).toBe(STACK_FAULT);
    guest.setGpr(RSP, 0x48, 0x8000);
    expect(vectorOf(XRSTOR_RSP)).toBe(GENERAL_PROTECTION);
    const at = END_VA - 576;
    const header = guest.machine.u32.subarray(at / 4, at / 4 + 144);
    header.fill(0);
    header[6] = 0x1f80;
    header[128] = 3;
    expect(vectorOf(xrstor64(at))).toBe(BREAKPOINT);
    header[128] = 7;
    expect(vectorOf(xrstor64(at))).toBe(PAGE_FAULT);
    expect(guest.word(VCPU.cr2)).toBe(END_VA);
    header[128] = 8;
    expect(vectorOf(xrstor64(at))).toBe(GENERAL_PROTECTION);
  });

  test('XGETBV tells XCR0, and what of it is in use', () => {
    for (const [index, inUse] of [
      [0, 7],
      [1, 3],
    ]) {
      guest.setGpr(1, index);
      expect(vectorOf(XGETBV)).toBe(BREAKPOINT);
      expect(guest.gpr(0)).toBe(inUse);
    }
    upper(15)[3] = 1;
    expect(vectorOf(XGETBV)).toBe(BREAKPOINT);
    expect(guest.gpr(0)).toBe(7);
    guest.setGpr(1, 2);
    expect(vectorOf(XGETBV)).toBe(GENERAL_PROTECTION);
  });

  test('a gather that faults goes on where it was', () => {
    guest.machine.u32.set([10, 11, 12, 13], END_VA / 4 - 4);
    guest.setGpr(0, END_VA - 16);
    low(2).set([0, 1, 2, 3]);
    upper(2).set([4, 0, 1, 2]);
    low(1).fill(0x80000000);
    upper(1).fill(0x80000000);
    low(0).fill(99);
    upper(0).fill(99);
    expect(vectorOf(VGATHERDPS)).toBe(PAGE_FAULT);
    expect(guest.word(VCPU.cr2)).toBe(END_VA);
    expect([...low(0), ...upper(0)]).toEqual([10, 11, 12, 13, 99, 99, 99, 99]);
    expect([...low(1), ...upper(1)]).toEqual([0, 0, 0, 0, ...new Array<number>(4).fill(0x80000000)]);
    upper(2)[0] = 3;
    expect(guest.runAt(codeVa)).toBe(EXIT_EXCEPTION);
    expect(guest.word(VCPU.exitVector)).toBe(BREAKPOINT);
    expect([...low(0), ...upper(0)]).toEqual([10, 11, 12, 13, 13, 10, 11, 12]);
    expect([...low(1), ...upper(1)]).toEqual(new Array<number>(8).fill(0));
  });
});
