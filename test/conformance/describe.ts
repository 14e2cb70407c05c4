/** Cases as text: for reports of differences. */

import { RIP } from '../../src/engine/x86/decoder.ts';
import { FORMS, mnemonicOf } from '../../src/engine/x86/forms.ts';
import type { Instruction } from '../../src/engine/x86/instruction.ts';
import { OPERANDS, type OperandType } from '../../src/engine/x86/operands.ts';

export const GPR_NAMES = 'rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15'.split(' ');
const LEGACY_BYTES = 'al cl dl bl ah ch dh bh'.split(' ');
const SEGMENTS = 'es cs ss ds fs gs'.split(' ');

export const hexBytes = (bytes: Uint8Array): string =>
  Array.from(bytes, (b) => b.toString(16).padStart(2, '0')).join(' ');

export function gprName(number: number, size: number, rex: number): string {
  if (size === 1 && rex === 0 && number < 8) return LEGACY_BYTES[number];
  const name = GPR_NAMES[number];
  if (size === 8) return name;
  if (number >= 8) return name + (size === 4 ? 'd' : size === 2 ? 'w' : 'b');
  return size === 4 ? `e${name.slice(1)}` : size === 2 ? name.slice(1) : `${name.slice(1).replace('x', '')}l`;
}

function memoryText(i: Instruction): string {
  const parts: string[] = [];
  const size = i.addressSize;
  if (i.base === RIP) parts.push('rip');
  else if (i.base >= 0) parts.push(gprName(i.base, size, 1));
  if (i.index >= 0) parts.push(`${gprName(i.index, size, 1)}*${1 << i.scale}`);
  if (i.displacement !== 0 || parts.length === 0)
    parts.push((i.displacement < 0 ? '-0x' : '0x') + Math.abs(i.displacement).toString(16));
  return `${i.segment >= 4 ? `${SEGMENTS[i.segment]}:` : ''}[${parts.join(' + ')}]`;
}

function operandText(type: OperandType, i: Instruction): string {
  const info = OPERANDS[type];
  const number =
    info.place === 'fixed'
      ? info.fixed
      : info.place === 'reg'
        ? i.reg
        : info.place === 'vvvv'
          ? i.vvvv
          : info.class === 'xmm' && info.place === 'imm'
            ? i.immLo >> 4
            : i.rm;
  if (info.place === 'rm' && !type.startsWith('Z') && i.mod !== 3) return memoryText(i);
  const size =
    info.size === 'v' || info.size === 'y' ? i.operandSize : info.size === 'z' ? Math.min(4, i.operandSize) : info.size;
  switch (info.class) {
    case 'gpr':
      return gprName(number, typeof size === 'number' ? size : 8, i.rex);
    case 'mmx':
      return `mm${number}`;
    case 'xmm':
      return `${info.size === 32 || (i.vexL !== 0 && 'xhfe'.includes(String(info.size))) ? 'y' : 'x'}mm${number}`;
    case 'st':
      return `st${number}`;
    case 'segment':
      return SEGMENTS[number] ?? type;
    case 'immediate':
      return `0x${(i.immLo >>> 0).toString(16)}`;
    case 'relative':
      return `$+${i.length + i.immLo}`;
    case 'one':
      return '1';
    default:
      return type;
  }
}

/** Mnemonic and operands, as in Intel's syntax. */
export function disassemble(i: Instruction): string {
  const form = FORMS[i.form];
  const prefixes = `${i.lock ? 'lock ' : ''}${i.rep === 0xf3 ? 'rep ' : i.rep === 0xf2 ? 'repne ' : ''}`;
  const operands = form.operands.map((type) => operandText(type, i)).join(', ');
  return (
    `${prefixes}${mnemonicOf(form, i.operandSize, i.addressSize)} ${operands}`.trim() +
    `   {${form.key} size ${i.operandSize}}`
  );
}
