import { afterEach, describe, expect, it } from 'vitest';
import { DECODE_GP, DECODE_OK, DECODE_SHORT, DECODE_UD, decode, RIP } from './decoder.ts';
import { FORM_OF_ROW, FORMS, formIndex, mnemonicOf } from './forms.ts';
import { Instruction } from './instruction.ts';
import { FLAG, ROWS } from './opcode-map.ts';
import { FEATURES_ALL, FEATURES_V2, showFeatures } from './tables.ts';

const out = new Instruction();

function bytesOf(hex: string): Uint8Array {
  return Uint8Array.from(hex.replaceAll(' ', '').match(/../g) ?? [], (byte) => Number.parseInt(byte, 16));
}

/** Decodes bytes that are followed by others. */
function status(hex: string, mode: 32 | 64 = 64): number {
  const bytes = new Uint8Array(64);
  bytes.set(bytesOf(hex));
  return decode(bytes, 0, bytes.length, mode, out);
}

/** The key of the form, or what went wrong. */
function form(hex: string, mode: 32 | 64 = 64): string {
  const result = status(hex, mode);
  if (result !== DECODE_OK) return ['', '#UD', '#GP', 'short'][result];
  expect(out.length).toBe(bytesOf(hex).length);
  return FORMS[out.form].key;
}

afterEach(() => showFeatures(FEATURES_V2));

describe('decode()', () => {
  it('takes 66, REX.W and the defaults of stack and branch instructions for the operand size', () => {
    const sizes = (hex: string, mode: 32 | 64 = 64) => {
      expect(status(hex, mode)).toBe(DECODE_OK);
      return out.operandSize;
    };
    expect([sizes('01d8'), sizes('6601d8'), sizes('4801d8'), sizes('664801d8'), sizes('00d8')]).toEqual([
      4, 2, 8, 8, 1,
    ]);
    expect([sizes('50'), sizes('6650'), sizes('50', 32), sizes('6650', 32)]).toEqual([8, 2, 4, 2]);
    expect([sizes('e800000000'), sizes('66e800000000'), sizes('66e80000', 32)]).toEqual([8, 8, 2]);
    expect([sizes('0f20c0'), sizes('0f20c0', 32)]).toEqual([8, 4]);
    expect([sizes('e5 10'), sizes('48e5 10'), sizes('66e5 10')]).toEqual([4, 4, 2]);
  });

  it('knows one form however it is encoded', () => {
    for (const hex of ['80c001', '4080c001', '80050000000001']) expect(form(hex)).toBe('add Eb,Ib');
    expect(form('82c001', 32)).toBe('add Eb,Ib');
    expect(form('d0f0')).toBe('shl Eb,One');
    expect(form('d0e0')).toBe('shl Eb,One');
  });

  it('counts REX only directly before the opcode, and the last of several', () => {
    expect(status('48 66 01d8')).toBe(DECODE_OK);
    expect(out).toMatchObject({ rex: 0, operandSize: 2, length: 4 });
    expect(status('48 41 01d8')).toBe(DECODE_OK);
    expect(out).toMatchObject({ rex: 0x41, operandSize: 4, rm: 8 });
  });

  it('lets F2 and F3 choose the instruction before 66, the last of them', () => {
    expect(form('66f30f10c1')).toBe('movss Vss,Wss');
    expect(out).toMatchObject({ rep: 0 });
    expect(form('f2f30f10c1')).toBe('movss Vss,Wss');
    expect(form('f3f20f10c1')).toBe('movsd Vsd,Wsd');
    expect(form('66f30fb8c1')).toBe('popcnt Gv,Ev');
    expect(out).toMatchObject({ operandSize: 2, rep: 0 });
    expect(form('f3a4')).toBe('movsb Yb,Xb');
    expect(out).toMatchObject({ rep: 0xf3 });
  });

  it('shows FS and GS in 64-bit mode whatever comes after them', () => {
    expect(status('64 2e 8b00')).toBe(DECODE_OK);
    expect(out.segment).toBe(4);
    expect(status('36 8b00')).toBe(DECODE_OK);
    expect(out.segment).toBe(-1);
    expect(status('64 2e 8b00', 32)).toBe(DECODE_OK);
    expect(out.segment).toBe(1);
  });

  it('tells NOP, PAUSE and XCHG apart', () => {
    expect(form('90')).toBe('nop');
    expect(form('4890')).toBe('nop');
    expect(form('f390')).toBe('pause');
    expect(form('4190')).toBe('xchg Zv,rAX');
    expect(out).toMatchObject({ rm: 8, operandSize: 4 });
    expect(form('664990')).toBe('xchg Zv,rAX');
    expect(out).toMatchObject({ rm: 8, operandSize: 8 });
  });

  it('decodes memory operands', () => {
    const none = { base: -1, index: -1, scale: 0, displacement: 0 };
    const cases: readonly (readonly [string, 32 | 64, Partial<Instruction>])[] = [
      ['8b00', 64, { ...none, base: 0, mod: 0 }],
      ['8b05f0ffffff', 64, { ...none, base: RIP, displacement: -16, addressSize: 8 }],
      ['678b05f0ffffff', 64, { ...none, base: RIP, displacement: -16, addressSize: 4 }],
      ['8b05f0ffffff', 32, { ...none, displacement: -16 }],
      ['8b0425f0ffffff', 64, { ...none, displacement: -16 }],
      ['8b4424 80', 64, { ...none, base: 4, displacement: -128 }],
      ['8b04cd00000080', 64, { ...none, index: 1, scale: 3, displacement: -0x80000000 }],
      ['438b04e5 01000000', 64, { ...none, index: 12, scale: 3, displacement: 1 }],
      ['438b44a5 01', 64, { ...none, base: 13, index: 12, scale: 2, displacement: 1 }],
      ['678b00', 32, { ...none, base: 3, index: 6, addressSize: 2 }],
      ['678b06f0ff', 32, { ...none, displacement: -16 }],
      ['678b46f0', 32, { ...none, base: 5, displacement: -16 }],
    ];
    for (const [hex, mode, expected] of cases) {
      expect(form(hex, mode), hex).toBe('mov Gv,Ev');
      expect(out, hex).toMatchObject(expected);
    }
  });

  it('extends immediates as their operand types say', () => {
    const cases: readonly (readonly [string, string, Partial<Instruction>])[] = [
      ['83c0ff', 'add Ev,sIb', { immLo: -1, immHi: -1 }],
      ['c0e0ff', 'shl Eb,Ib', { immLo: 0xff, immHi: 0 }],
      ['4805 00000080', 'add rAX,Iz', { immLo: -0x80000000, immHi: -1 }],
      ['b8 00000080', 'mov Zv,Iv', { immLo: -0x80000000, immHi: 0, rm: 0 }],
      ['49b9 0807060504030201', 'mov Zv,Iv', { immLo: 0x05060708, immHi: 0x01020304, rm: 9 }],
      ['a1 0807060504030281', 'mov rAX,Ov', { immLo: 0x05060708, immHi: 0x81020304 | 0, mod: 3 }],
      ['67a1 080706f5', 'mov rAX,Ov', { immLo: 0xf5060708 | 0, immHi: 0 }],
      ['c8 0102 03', 'enter Iw,Ib', { immLo: 0x201, imm2: 3, operandSize: 8 }],
      ['c2 ff ff', 'ret Iw', { immLo: 0xffff, immHi: 0 }],
      ['6a80', 'push sIb', { immLo: -128, immHi: -1 }],
      ['eb80', 'jmp Jb', { immLo: -128, immHi: -1 }],
    ];
    for (const [hex, key, expected] of cases) {
      expect(form(hex), hex).toBe(key);
      expect(out, hex).toMatchObject(expected);
    }
    expect(form('9a 04030201 0605', 32)).toBe('call Ap');
    expect(out).toMatchObject({ immLo: 0x01020304, imm2: 0x0506 });
  });

  it('gives the registers of three bits without REX.R and REX.B', () => {
    expect(form('4d0f6fc9')).toBe('movq Pq,Qq');
    expect(out).toMatchObject({ reg: 1, rm: 1 });
    expect(form('4d8cd9')).toBe('mov RvMw,Sw');
    expect(out).toMatchObject({ reg: 3, rm: 9 });
    expect(form('41d8c1')).toBe('fadd ST0,STi');
    expect(out).toMatchObject({ rm: 1 });
  });

  it('says #UD for LOCK where it does not belong', () => {
    expect(form('f00101')).toBe('add Ev,Gv');
    expect(out.lock).toBe(true);
    for (const hex of ['f001c1', 'f00301', 'f03901', 'f090', 'f08b00', 'f00fa301', 'f00f20c0'])
      expect(form(hex)).toBe('#UD');
  });

  it('says #UD for what does not exist', () => {
    const invalid64 = '06 07 0e 16 17 1e 1f 27 2f 37 3f 60 61 62 82c0 9a ce d4 d5 d6 ea'.split(' ');
    for (const hex of invalid64) expect(form(hex), hex).toBe('#UD');
    // Digits, forms of memory and register, segment, control and debug registers, mandatory prefixes, 3DNow!, EVEX, XOP.
    const invalid = `feD0 ffF8 8fC8 c6C8 0f00F0 8dC0 0f01D8 0fC7C8 8eC8 8eF0 8cF8 0f20C8 0f20E8 440f21C0 f20f28C1
      660f2bC1 0f0f00 62f17c48 8fe97800 0f04 0f0a 0f24C0 0fa6C0 0f3a00C0 f30f5000`;
    for (const hex of invalid.split(/\s+/)) expect(status(hex), hex).toBe(DECODE_UD);
  });

  it('says #GP for more than 15 bytes and takes 15', () => {
    expect(status('66'.repeat(13) + '01d8')).toBe(DECODE_OK);
    expect(out.length).toBe(15);
    expect(status('66'.repeat(14) + '01d8')).toBe(DECODE_GP);
    expect(status('66'.repeat(20))).toBe(DECODE_GP);
    expect(status('2e'.repeat(11) + '81c0 01020304')).toBe(DECODE_GP);
  });

  it('asks for more bytes at every place where an instruction can be cut', () => {
    showFeatures(FEATURES_ALL);
    const whole = `01d8 4801d8 8b84cd01020304 48b80102030405060708 a10102030405060708 c8010203 66f30fb8c1 f00fb10b 0f01d0
      660f3a0f450102 c4e2790c840001020304 c5f970d001 66680102 d9e8 e801020304 0f8401020304 c7050102030405060708`;
    for (const hex of whole.split(/\s+/)) {
      const bytes = new Uint8Array(32);
      bytes.set(bytesOf(hex));
      expect(decode(bytes, 0, 32, 64, out), hex).toBe(DECODE_OK);
      const { length } = out;
      expect(length, hex).toBe(hex.length / 2);
      expect(decode(bytes, 0, length, 64, out), hex).toBe(DECODE_OK);
      for (let end = 0; end < length; end++)
        expect(decode(bytes, 0, end, 64, out), `${hex} at ${end}`).toBe(DECODE_SHORT);
    }
  });

  it('decodes LES and LDS, or VEX, by the next byte in 32-bit mode', () => {
    showFeatures(FEATURES_ALL);
    expect(form('c400', 32)).toBe('les Gz,Mp');
    expect(form('c500', 32)).toBe('lds Gz,Mp');
    expect(form('c5f877', 32)).toBe('vzeroupper');
    expect(form('c5f877')).toBe('vzeroupper');
    expect(form('c4c178 58c1')).toBe('vaddps Vps,Hps,Wps');
    expect(out).toMatchObject({ rm: 9, vvvv: 0, vexL: 0, rex: 0 });
    for (const prefix of ['66', 'f2', 'f3', 'f0', '40']) expect(form(prefix + 'c5f877'), prefix).toBe('#UD');
  });
});

describe('showFeatures()', () => {
  it('hides what the CPU does not have, or shows what it was before', () => {
    expect(form('f30fbcc1')).toBe('bsf Gv,Ev');
    expect(form('f30fbdc1')).toBe('bsr Gv,Ev');
    expect(form('c5f877')).toBe('#UD');
    showFeatures([...FEATURES_V2, 'BMI1', 'AVX']);
    expect(form('f30fbcc1')).toBe('tzcnt Gv,Ev');
    expect(form('f30fbdc1')).toBe('bsr Gv,Ev');
    expect(form('c5f877')).toBe('vzeroupper');
  });

  it('takes AVX2 for the 256-bit forms of integers', () => {
    showFeatures([...FEATURES_V2, 'AVX']);
    expect(form('c5f9fec1')).toBe('vpaddd Vx,Hx,Wx');
    expect(form('c5fdfec1')).toBe('#UD');
    showFeatures([...FEATURES_V2, 'AVX', 'AVX2']);
    expect(form('c5fdfec1')).toBe('vpaddd Vx,Hx,Wx');
  });

  it('refuses names that it does not know', () => {
    expect(() => showFeatures(['SSE5'])).toThrow('no row has the feature SSE5');
  });
});

describe('FORMS', () => {
  it('have one meaning for all rows', () => {
    ROWS.forEach((row, i) => {
      const { key, privilege, lockable, sizeRule, ...flags } = FORMS[FORM_OF_ROW[i]];
      expect(row, key).toMatchObject({
        sizeRule,
        privilege,
        lockable,
        flags: { read: flags.flagsRead, written: flags.flagsWritten, undefined: flags.flagsUndefined },
      });
    });
  });

  it('are found by key and named by width', () => {
    const convert = FORMS[formIndex('cbw/cwde/cdqe')];
    expect([2, 4, 8].map((size) => mnemonicOf(convert, size, 8))).toEqual(['cbw', 'cwde', 'cdqe']);
    const jump = FORMS[formIndex('jcxz/jecxz/jrcxz Jb')];
    expect(mnemonicOf(jump, 8, 4)).toBe('jecxz');
    expect(() => formIndex('add Ev')).toThrow('no form "add Ev"');
  });

  it('say what the flags do', () => {
    const { CF, PF, AF, ZF, SF, OF, DF } = FLAG;
    const all = CF | PF | AF | ZF | SF | OF;
    expect(FORMS[formIndex('adc Ev,Gv')]).toMatchObject({ flagsRead: CF, flagsWritten: all, flagsUndefined: 0 });
    expect(FORMS[formIndex('and Ev,Gv')]).toMatchObject({
      flagsWritten: all & ~AF,
      flagsCleared: OF | CF,
      flagsUndefined: AF,
    });
    expect(FORMS[formIndex('shl Ev,CL')]).toMatchObject({ flagsConditional: true, flagsUndefined: OF | AF });
    expect(FORMS[formIndex('std')]).toMatchObject({ flagsWritten: DF, flagsSet: DF });
    expect(FORMS[formIndex('jle Jb')]).toMatchObject({ flagsRead: ZF | SF | OF });
  });
});
