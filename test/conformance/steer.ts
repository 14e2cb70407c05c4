/**
 * Gives an instruction a state in which it does something: registers of its memory operand such that the address is where data is,
 * counts that are not too large, return addresses. Everything else of the state is random and stays.
 */

import { RIP } from '../../src/engine/x86/decoder.ts';
import { FORMS } from '../../src/engine/x86/forms.ts';
import type { Instruction } from '../../src/engine/x86/instruction.ts';
import { OPERANDS } from '../../src/engine/x86/operands.ts';
import { DATA_VA, HIGH_ALIAS, LAST_LOW_PAGE, LAST_PAGE, STATE, TRAPS_VA } from './layout.ts';
import type { Batch } from './machine.ts';
import type { Values } from './values.ts';

const RAX = 0;
const RCX = 1;
const RDX = 2;
const RBX = 3;
const RSP = 4;
const RBP = 5;
const RSI = 6;
const RDI = 7;
const MASK64 = 0xffffffffffffffffn;
const MASK32 = 0xffffffffn;
const IMPLICIT = new Set<string>(['source', 'destination', 'mask-destination', 'translate', 'moffs']);

const isCanonical = (address: bigint): boolean => BigInt.asUintN(64, BigInt.asIntN(48, address)) === (address & MASK64);

/** An address for an access of `size` bytes: mostly good, sometimes at an edge, sometimes bad. */
export function pickAddress(values: Values, size: number, low: boolean): bigint {
  const bits = values.random();
  const choice = bits % 100;
  const base = low || (bits & 0x80000000) !== 0 ? 0n : HIGH_ALIAS;
  const page = (n: number): bigint => base + BigInt(DATA_VA + n * 4096);
  const within = (values.random() & 0xfff) % Math.max(1, 4096 - size);
  // Before an edge by up to `size` bytes.
  const before = BigInt(values.below(size + 2));
  if (choice < 40) return page(1) + BigInt(within & ~15);
  if (choice < 74) return page((bits >>> 8) % 2 === 0 ? 1 : 2) + BigInt(within);
  if (choice < 82) return page(2) - before;
  if (choice < 84) return page(3) - before;
  if (choice < 86) return page(3) + BigInt(within);
  if (choice < 88) return page(4) - before;
  if (choice < 89) return page(4) + BigInt(within);
  if (choice < 90) return page(5) - before;
  if (choice < 91) return page(6) - before;
  if (choice < 92) return page(7) - before;
  if (choice < 93) return page(7) + BigInt(within);
  if (choice < 94) return page(8) - before;
  if (low) return page(1) + BigInt(within & ~7);
  // Never across the end of the canonical addresses: on PVM the emulator would do half of it.
  if (choice < 96) return LAST_LOW_PAGE + 4096n - BigInt(size) - BigInt(within & 0xff);
  if (choice < 98) return (LAST_PAGE + 4096n - before) & MASK64;
  if (choice < 99) return (BigInt(values.random()) << 32n) | BigInt(values.random());
  return 0x800000000000n + BigInt(values.random());
}

export class Steering {
  readonly #batch: Batch;
  readonly #values: Values;

  constructor(batch: Batch, values: Values) {
    this.#batch = batch;
    this.#values = values;
  }

  #at(slot: number, reg: number): number {
    return (slot * STATE.SIZE) / 8 + reg;
  }

  gpr(slot: number, reg: number): bigint {
    return this.#batch.states64[this.#at(slot, reg)];
  }

  set(slot: number, reg: number, value: bigint): void {
    this.#batch.states64[this.#at(slot, reg)] = value;
  }

  #hasVectorOfIndexes(i: Instruction): boolean {
    return FORMS[i.form].operands.some((type) => OPERANDS[type].class === 'vsib');
  }

  /** The address of the memory operand, without a segment. `next`: address behind the instruction. */
  offset(slot: number, i: Instruction, next: number): bigint {
    let sum = BigInt(i.displacement);
    if (i.base === RIP) sum += BigInt(next);
    else if (i.base >= 0) sum += this.gpr(slot, i.base);
    if (i.index >= 0 && !this.#hasVectorOfIndexes(i)) sum += this.gpr(slot, i.index) << BigInt(i.scale);
    return sum & (i.addressSize === 4 ? MASK32 : MASK64);
  }

  /** The address of the memory operand as the state has it. */
  effective(slot: number, i: Instruction, next: number): bigint {
    const sum = this.offset(slot, i, next);
    const segment = i.segment === 4 ? this.#batch.fsBase : i.segment === 5 ? this.#batch.gsBase : 0n;
    return (sum + segment) & MASK64;
  }

  /** Makes the memory operand's address `target` by changing its base or index. */
  address(slot: number, i: Instruction, target: bigint): void {
    const segment = i.segment === 4 ? this.#batch.fsBase : i.segment === 5 ? this.#batch.gsBase : 0n;
    let wanted = (target - segment - BigInt(i.displacement)) & MASK64;
    const isVector = this.#hasVectorOfIndexes(i);
    if (i.base === RIP || (i.base < 0 && (i.index < 0 || isVector))) return;
    if (i.addressSize === 4) wanted = (wanted & MASK32) | (BigInt(this.#values.random()) << 32n);
    if (i.base < 0) {
      this.set(slot, i.index, wanted >> BigInt(i.scale));
      return;
    }
    if (i.index === i.base && !isVector) {
      // Twice the register, or an odd multiple: near enough.
      if (i.scale === 0) this.set(slot, i.base, wanted >> 1n);
      else this.set(slot, i.base, (wanted * inverse(1 + (1 << i.scale))) & MASK64);
      return;
    }
    if (i.index >= 0 && !isVector) wanted -= this.gpr(slot, i.index) << BigInt(i.scale);
    this.set(slot, i.base, wanted & MASK64);
  }

  /**
   * Whether the CPU's answer would not be what the manuals say:
   * - AMD CPUs raise #GP also when the offset is not canonical, but offset and base together are.
   * - PVM's emulator makes the #GP of CMPS, and reads the first operand first; the CPU reads the second first.
   * - PVM's emulator takes prefixes of ES, CS, SS and DS seriously when it makes #GP or #SS.
   */
  isPeculiar(slot: number, i: Instruction, next: number, ignoredSegment: boolean): boolean {
    if (FORMS[i.form].mnemonic.startsWith('cmps') && !this.#isNear(slot, i)) return true;
    if (i.segment < 4 && !ignoredSegment) return false;
    if (FORMS[i.form].operands.some((type) => IMPLICIT.has(OPERANDS[type].class)))
      return ignoredSegment || !this.#isNear(slot, i);
    if (i.mod === 3) return false;
    if (ignoredSegment && /^bt[src]? Ev,Gv$/.test(FORMS[i.form].key)) return true;
    const offset = this.offset(slot, i, next);
    return !isCanonical(offset) || (ignoredSegment && !isCanonical(offset + 512n));
  }

  /** Implicit operands are at canonical offsets. */
  #isNear(slot: number, i: Instruction): boolean {
    const immediate = (BigInt(i.immHi >>> 0) << 32n) | BigInt(i.immLo >>> 0);
    const isAbsolute = FORMS[i.form].operands.some((type) => OPERANDS[type].class === 'moffs');
    if (isAbsolute) return isCanonical(immediate);
    return [RSI, RDI, RBX].every((reg) => isCanonical(this.gpr(slot, reg)));
  }

  /** A count for REP: small, zero, or more than there is memory. */
  #count(slot: number): void {
    const bits = this.#values.random();
    const few = BigInt((bits >>> 8) % 40);
    const count = (bits & 7) === 0 ? 0n : (bits & 0x1f) === 1 ? BigInt(bits >>> 12) : few;
    const upper = (bits & 0xe0) === 0 ? BigInt(this.#values.random()) << 32n : 0n;
    this.set(slot, RCX, count | upper);
  }

  /** What the form asks for beside its ModRM operand, then that. `next`: address behind the instruction. */
  prepare(slot: number, i: Instruction): void {
    const form = FORMS[i.form];
    const values = this.#values;
    const name = form.mnemonic.split('/')[0];
    const low = i.addressSize === 4;
    const size = i.operandSize;
    const pick = (bytes: number, onlyLow = low): bigint => pickAddress(values, bytes, onlyLow);
    for (const type of form.operands) {
      switch (OPERANDS[type].class) {
        case 'source':
          this.set(slot, RSI, pick(size));
          if (i.rep !== 0) this.#count(slot);
          break;
        case 'destination':
          this.set(slot, RDI, pick(size));
          if (i.rep !== 0) this.#count(slot);
          break;
        case 'mask-destination':
          this.set(slot, RDI, pick(OPERANDS[type].size as number));
          break;
        case 'translate':
          this.set(slot, RBX, (pick(1) - (this.gpr(slot, RAX) & 0xffn)) & MASK64);
          break;
        default:
          break;
      }
    }
    // On PVM VEX and XSAVE are #UD while RSP is not canonical.
    if (form.vex || form.feature.startsWith('XSAVE'))
      this.set(slot, RSP, BigInt.asUintN(64, BigInt.asIntN(48, this.gpr(slot, RSP))));
    // The host may have more state than the wasm engine: not asked for.
    if (form.feature.startsWith('XSAVE')) this.set(slot, RAX, this.gpr(slot, RAX) & ~0xf8n);
    if (this.#hasVectorOfIndexes(i)) this.#indexes(slot, i);
    const memory = i.mod !== 3 && (i.base >= 0 || i.index >= 0);
    switch (name) {
      case 'push':
      case 'pop':
      case 'pushf':
      case 'popf':
      case 'call':
      case 'ret':
      case 'retf':
      case 'iret':
      case 'enter':
        this.set(slot, RSP, pick(name === 'ret' ? 1 : 8, false) & ~(values.once(4) ? 0n : 7n));
        if (name === 'enter') this.set(slot, RBP, pick(8, false));
        break;
      case 'leave':
        this.set(slot, RBP, pick(8, false));
        break;
      case 'div':
      case 'idiv':
        if (!values.once(3)) {
          // A quotient that fits, mostly.
          const negative = name === 'idiv' && values.once(2);
          this.set(slot, RDX, negative ? MASK64 : BigInt(values.below(4)));
          if (i.operandSize === 1) this.set(slot, RAX, BigInt(values.below(0x800)));
        }
        break;
      case 'bt':
      case 'bts':
      case 'btr':
      case 'btc':
        if (memory && form.operands[1] === 'Gv' && !values.once(8))
          this.set(slot, i.reg, BigInt.asUintN(64, BigInt((values.random() & 0x1fff) - 0x1000)));
        break;
      case 'loop':
      case 'loope':
      case 'loopne':
      case 'jcxz':
        if (values.once(2)) this.set(slot, RCX, BigInt(values.below(3)) | (values.once(4) ? 0x100000000n : 0n));
        break;
      default:
        break;
    }
    if ((name === 'jmp' || name === 'call') && i.mod === 3 && form.operands[0] === 'Ev')
      this.set(slot, i.rm, this.#target());
    if (memory) this.address(slot, i, pick(Math.max(1, memorySize(i))));
    if (name === 'cmpxchg' && values.once(2)) {
      if (i.mod === 3) this.set(slot, RAX, this.gpr(slot, i.rm));
    }
  }

  /** Indexes near 0, and now and then one that is far away. */
  #indexes(slot: number, i: Instruction): void {
    const words = this.#batch.states32;
    const at = (slot * STATE.SIZE) / 4;
    const isWide = FORMS[i.form].operands.some((type) => type.startsWith('VMq'));
    for (let n = 0; n < 8; n++) {
      const word = at + (n < 4 ? (STATE.fx + 160) / 4 : STATE.upper / 4 - 4) + 4 * i.index + n;
      const near = ((this.#values.random() << 21) >> 21) >> i.scale;
      if (!isWide) words[word] = this.#values.once(40) ? this.#values.random() : near;
      else if ((n & 1) === 0) {
        words[word] = near;
        words[word + 1] = this.#values.once(40) ? this.#values.random() : near >> 31;
      }
    }
  }

  /** Where an indirect branch goes. */
  #target(): bigint {
    const bits = this.#values.random();
    switch (bits & 15) {
      case 0:
        return BigInt(DATA_VA + 0x1000 + (bits >>> 20));
      case 1:
        return BigInt(DATA_VA + 0x4000 + (bits >>> 20));
      case 2:
        return (BigInt(bits) << 32n) | BigInt(this.#values.random());
      case 3:
        return HIGH_ALIAS + BigInt(TRAPS_VA + (bits >>> 20));
      default:
        return BigInt(TRAPS_VA + ((bits >>> 8) & 0xfff));
    }
  }
}

function inverse(odd: number): bigint {
  // Newton's iteration doubles the bits that are right.
  let x = BigInt(odd);
  for (let i = 0; i < 6; i++) x = (x * (2n - BigInt(odd) * x)) & MASK64;
  return x;
}

/** Bytes of the ModRM operand in memory. */
export function memorySize(i: Instruction): number {
  for (const type of FORMS[i.form].operands) {
    const info = OPERANDS[type];
    if (info.place !== 'rm' || type.startsWith('Z')) continue;
    const size = info.mod === 'memory' ? info.size : info.memorySize;
    switch (size) {
      case 'v':
      case 'y':
        return i.operandSize;
      case 'z':
        return Math.min(4, i.operandSize);
      case '2y':
        return 2 * i.operandSize;
      case 'p':
        return i.operandSize + 2;
      case 'env':
        return 28;
      case 'state':
        return 108;
      case 'x':
        return 16 << i.vexL;
      case 'h':
        return 8 << i.vexL;
      case 'f':
        return 4 << i.vexL;
      case 'e':
        return 2 << i.vexL;
      default:
        return typeof size === 'number' ? size : 8;
    }
  }
  return 0;
}
