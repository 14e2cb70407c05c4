import { describe, expect, it } from 'vitest';
import { DECODE_OK, decode } from '../x86/decoder.ts';
import { Instruction } from '../x86/instruction.ts';
import { type Effects, effectsOf } from './effects.ts';
import { handlerOf, variantOf } from './handlers.ts';

function effects(...bytes: number[]): Effects {
  const instruction = new Instruction();
  const code = Uint8Array.from([...bytes, ...new Array<number>(15).fill(0x90)]);
  expect(decode(code, 0, bytes.length, 64, instruction)).toBe(DECODE_OK);
  const variant = variantOf(handlerOf(instruction));
  if (variant === null) throw new Error('no meaning');
  return effectsOf(variant, instruction);
}

const [RAX, RCX, RDX, RBX, RSP, RSI] = [1, 2, 4, 8, 16, 64];
const xmm = (n: number): number => 1 << (16 + n);

describe('effects of instructions', () => {
  it('mov eax, ebx: reads one, writes all of the other and clears its upper half', () => {
    expect(effects(0x89, 0xd8)).toMatchObject({
      reads: RBX,
      writes: RAX,
      kills: RAX,
      clears: RAX,
      spoils: 0,
      mayLeave: false,
    });
  });
  it('mov rax, [rbx+rcx*4]: reads the address, may leave', () => {
    expect(effects(0x48, 0x8b, 0x04, 0x8b)).toMatchObject({
      reads: RBX | RCX,
      writes: RAX,
      kills: RAX,
      spoils: RAX,
      mayLeave: true,
      leavesLate: false,
    });
  });
  it('mov ah, bl: writes a part, so reads the rest', () => {
    expect(effects(0x88, 0xdc)).toMatchObject({ reads: RBX | RAX, writes: RAX, kills: 0 });
  });
  it('add rax, rbx: all flags; inc eax: keeps CF', () => {
    expect(effects(0x48, 0x01, 0xd8)).toMatchObject({
      writesFlags: true,
      killsFlags: true,
      mergesFlags: false,
      readsFlags: false,
    });
    expect(effects(0xff, 0xc0)).toMatchObject({
      writesFlags: true,
      killsFlags: true,
      mergesFlags: true,
      readsFlags: false,
    });
  });
  it('adc eax, ebx needs CF for its result', () => {
    expect(effects(0x11, 0xd8)).toMatchObject({ readsFlags: true, killsFlags: true });
  });
  it('cmovne rax, rbx writes perhaps; setne al always, but a part', () => {
    expect(effects(0x48, 0x0f, 0x45, 0xc3)).toMatchObject({
      reads: RBX,
      writes: RAX,
      kills: 0,
      readsFlags: true,
      writesFlags: false,
    });
    expect(effects(0x0f, 0x95, 0xc0)).toMatchObject({ reads: RAX, writes: RAX, kills: 0, readsFlags: true });
  });
  it('a shift by an immediate writes flags in any case, by 0 never, by CL perhaps', () => {
    expect(effects(0xc1, 0xe0, 3)).toMatchObject({ killsFlags: true, kills: RAX });
    expect(effects(0xc1, 0xe0, 0)).toMatchObject({ writesFlags: false });
    expect(effects(0xd3, 0xe0)).toMatchObject({ writesFlags: true, killsFlags: false, reads: RAX | RCX });
  });
  it('push rax moves RSP after the store that may leave; div writes two and may leave', () => {
    expect(effects(0x50)).toMatchObject({ reads: RAX | RSP, writes: RSP, mayLeave: true, leavesLate: false });
    expect(effects(0xf7, 0xf3)).toMatchObject({
      reads: RAX | RDX | RBX,
      writes: RAX | RDX,
      mayLeave: true,
      leavesLate: false,
    });
  });
  it('rep movsb has moved registers when it leaves', () => {
    expect(effects(0xf3, 0xa4)).toMatchObject({ leavesLate: true, writes: RCX | RSI | (RSI << 1) });
  });
  it('addps xmm1, xmm2 and movaps xmm1, xmm2', () => {
    expect(effects(0x0f, 0x58, 0xca)).toMatchObject({ reads: xmm(1) | xmm(2), writes: xmm(1) });
    expect(effects(0x0f, 0x28, 0xca)).toMatchObject({ reads: xmm(2), writes: xmm(1), kills: xmm(1) });
  });
});
