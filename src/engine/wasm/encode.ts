/** Decoded instructions as micro-ops (micro-op.ts). */

import { VCPU } from '../../machine/vcpu-block.ts';
import { RIP } from '../x86/decoder.ts';
import { FORMS } from '../x86/forms.ts';
import type { Instruction } from '../x86/instruction.ts';
import { OPERANDS, type OperandPlace } from '../x86/operands.ts';
import { flagsAfter } from './effects.ts';
import { FLAGS_RESULT, FLAGS_STEP, FLAGS_SUB } from './flags.ts';
import {
  ADDRESS,
  ADDRESS_WRAPPED,
  ADDRESS16,
  ADDRESS32,
  CALL,
  CALL_32,
  CALL_INDIRECT,
  CALL_INDIRECT_32,
  CALL_MEMORY,
  CALL_MEMORY_32,
  handlerOf,
  isConditional,
  isString,
  isWide,
  JCC,
  JCC_RESULT,
  JCC_SUB,
  JRCXZ,
  JUMP,
  LOOP,
  RARE,
  RETURN,
  RETURN_32,
  variantOf,
} from './handlers.ts';
import { STATE } from './layout.ts';
import { MICRO_OP } from './micro-op.ts';
import { ANY_KIND } from './region-flags.ts';
import { stem } from './semantics/table.ts';

/** Condition codes, without their lowest bit. */
const BELOW = 1;
const BELOW_OR_EQUAL = 3;
const PARITY = 5;

const RSP = 4;
const NO_REGISTER = 0;
const GPR = 1;
const GPR8 = 2;
/** Registers of 16 bytes. */
const WIDE = 3;
const SEGMENT = 4;
/** In the block, of ES CS SS DS FS GS. */
export const SELECTORS: readonly number[] = [VCPU.es, VCPU.cs, VCPU.ss, VCPU.ds, VCPU.fs, VCPU.gs];

function registerKinds(place: OperandPlace): Uint8Array {
  return Uint8Array.from(FORMS, (form) => {
    for (const type of form.operands) {
      const info = OPERANDS[type];
      if (info.place !== place) continue;
      if (info.class === 'gpr') return info.size === 1 ? GPR8 : GPR;
      if (info.class === 'xmm' || info.class === 'mmx') return WIDE;
      if (info.class === 'segment') return SEGMENT;
    }
    return NO_REGISTER;
  });
}

const REG_KINDS = registerKinds('reg');
const RM_KINDS = registerKinds('rm');
const VVVV_KINDS = registerKinds('vvvv');
/** LEA: an address without a segment. */
const NO_SEGMENT = Uint8Array.from(FORMS, (form) => (stem(form) === 'lea' ? 1 : 0));

function registerOffset(kind: number, number: number, rex: number): number {
  if (kind === WIDE) return number << 4;
  if (kind === SEGMENT) return SELECTORS[number];
  if (kind === GPR8 && rex === 0 && number >= 4 && number < 8) return ((number - 4) << 3) | 1;
  return number << 3;
}

/** The most bytes that `encode` writes. */
export const ENCODED_MAX = 3 * MICRO_OP.WIDE_SIZE;

export class Encoder {
  /** Of the code that is encoded. */
  bits: 32 | 64 = 64;
  readonly #u8: Uint8Array;
  readonly #view: DataView;
  /** `knownKind` of the flags here. */
  #flags = ANY_KIND;

  constructor(buffer: SharedArrayBuffer) {
    this.#u8 = new Uint8Array(buffer);
    this.#view = new DataView(buffer);
  }

  /** A record without operands. Returns where the next goes. */
  plain(at: number, handler: number, offset: number, displacement: number, immediate: number): number {
    const view = this.#view;
    view.setUint16(at + MICRO_OP.handler, handler, true);
    view.setUint32(at + MICRO_OP.register1, 0, true);
    view.setUint16(at + MICRO_OP.scale, offset << 4, true);
    view.setInt32(at + MICRO_OP.displacement, displacement, true);
    view.setInt32(at + MICRO_OP.immediate, immediate, true);
    return at + MICRO_OP.SIZE;
  }

  /** A run starts: nothing is known of the flags. */
  restart(): void {
    this.#flags = ANY_KIND;
  }

  /** Writes the run's next instruction, at `offset` of its page. Returns where the next goes. */
  encode(at: number, instruction: Instruction, offset: number): number {
    const i = instruction;
    let handler = handlerOf(i);
    if (handler >= JCC && handler < JCC + 16) handler = this.#specialized(handler - JCC);
    else {
      const variant = variantOf(handler);
      if (variant !== null) this.#flags = flagsAfter(variant, instruction, this.#flags);
      else if (handler === RARE) this.#flags = ANY_KIND;
    }
    const after = offset + i.length;
    if (handler === RARE) return this.plain(at, RARE, offset, 0, 0);
    const isCall = handler === CALL || handler === CALL_32;
    if (handler === JUMP || isCall || isConditional(handler)) {
      const target = after + i.immLo;
      // A branch over nearly 2 GiB, in either direction.
      if (target !== (target | 0)) return this.plain(at, RARE, offset, 0, 0);
      const next = this.plain(at, handler, offset, 0, target);
      if (isCall) this.#view.setUint16(at + MICRO_OP.nextOffset, after, true);
      if (handler >= LOOP && handler <= JRCXZ) this.#u8[at + MICRO_OP.register1] = i.addressSize === 4 ? 1 : 0;
      return next;
    }
    if (handler === RETURN || handler === RETURN_32) return this.plain(at, handler, offset, 0, i.immLo & 0xffff);

    let to = at;
    let base = i.base === -1 ? STATE.zero : i.base === RIP ? STATE.codePage : i.base << 3;
    let index = i.index === -1 ? STATE.zero : i.index << 3;
    let scale = i.scale;
    let displacement = i.displacement;
    if (i.mod !== 3) {
      if (i.base === RIP) {
        displacement += after;
        if (displacement !== (displacement | 0)) {
          to = this.#address(to, ADDRESS, STATE.zero, base, index, 0, i.displacement, offset);
          base = STATE.address;
          displacement = after;
        }
      }
      const segment = NO_SEGMENT[i.form] !== 0 ? -1 : i.segment;
      // The stack pointer wraps around for nobody.
      const isStack = this.bits === 32 && i.addressSize === 4 && i.base === RSP && i.index === -1;
      if (segment >= 4 || (i.addressSize !== 8 && !isStack)) {
        const slot = segment === 4 ? VCPU.fsBase : segment === 5 ? VCPU.gsBase : STATE.zero;
        const kind =
          this.bits === 32
            ? i.addressSize === 2
              ? ADDRESS16
              : ADDRESS_WRAPPED
            : i.addressSize === 4
              ? ADDRESS32
              : ADDRESS;
        to = this.#address(to, kind, slot, base, index, scale, displacement, offset);
        base = STATE.address;
        index = STATE.zero;
        scale = 0;
        displacement = 0;
      }
    }
    const view = this.#view;
    const u8 = this.#u8;
    view.setUint16(to + MICRO_OP.handler, handler, true);
    u8[to + MICRO_OP.register1] = isString(i) ? Math.min(i.rep, 1) : registerOffset(REG_KINDS[i.form], i.reg, i.rex);
    u8[to + MICRO_OP.register2] = registerOffset(RM_KINDS[i.form], i.rm, i.rex);
    u8[to + MICRO_OP.base] = base;
    u8[to + MICRO_OP.index] = index;
    view.setUint16(to + MICRO_OP.scale, scale | (offset << 4), true);
    view.setInt32(to + MICRO_OP.displacement, displacement, true);
    view.setInt32(
      to + MICRO_OP.immediate,
      handler === CALL_INDIRECT || handler === CALL_MEMORY || handler === CALL_INDIRECT_32 || handler === CALL_MEMORY_32
        ? after
        : i.immLo,
      true,
    );
    if (VVVV_KINDS[i.form] !== NO_REGISTER)
      u8[to + MICRO_OP.register3] = registerOffset(VVVV_KINDS[i.form], i.vvvv, i.rex);
    if (!isWide(handler)) return to + MICRO_OP.SIZE;
    view.setInt32(to + MICRO_OP.wide, i.immLo, true);
    view.setInt32(to + MICRO_OP.wide + 4, i.immHi, true);
    return to + MICRO_OP.WIDE_SIZE;
  }

  /** The handler of a condition for what is known of the flags. */
  #specialized(code: number): number {
    const known = this.#flags;
    const isCarry = code >> 1 === BELOW || code >> 1 === BELOW_OR_EQUAL;
    if (known === ANY_KIND || code >> 1 === PARITY || ((known & FLAGS_STEP) !== 0 && isCarry)) return JCC + code;
    const kind = known & 3;
    return (kind === FLAGS_SUB ? JCC_SUB : kind === FLAGS_RESULT ? JCC_RESULT : JCC) + code;
  }

  #address(
    at: number,
    handler: number,
    segmentSlot: number,
    base: number,
    index: number,
    scale: number,
    displacement: number,
    offset: number,
  ): number {
    const next = this.plain(at, handler, offset, displacement, 0);
    this.#u8[at + MICRO_OP.register1] = segmentSlot;
    this.#u8[at + MICRO_OP.base] = base;
    this.#u8[at + MICRO_OP.index] = index;
    this.#view.setUint16(at + MICRO_OP.scale, scale | (offset << 4), true);
    return next;
  }
}
