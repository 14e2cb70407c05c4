/** The `Cpu` of the interpreter: registers are in memory 1, where they are is read from the micro-op at run time. */

import { ENGINE_LOCK } from '../../machine/memory.ts';
import { VCPU } from '../../machine/vcpu-block.ts';
import { TWO_HALVES } from '../x86/sse-operations.ts';
import { X87_STATE } from '../x86/x87/state.ts';
import type { Access, Cpu, Modification, Operand, Pair, RegisterField } from './cpu.ts';
import { type FlagLocals, type Flags, type IntegerSize, LazyFlags } from './flags.ts';
import type { FunctionBuilder } from './function-builder.ts';
import { CPU, GUEST, STATE, TLB_ADDEND, TLB_MASK, TLB_READ, TLB_WRITE } from './layout.ts';
import { MICRO_OP } from './micro-op.ts';
import { atomicRmw, call, globalGet, I32, I64, i32, i64, type Node, select, simd, simdLoad } from './nodes.ts';

/** Indexes of what the interpreter's module imports and defines. */
export interface Runtime {
  /** (addressLo, addressHi, size | access << 8) -> offset in memory 0 or -1, with the fault in the block. */
  readonly miss: number;
  /** (offset, size): what was written to the scratch area goes where it belongs. */
  readonly commit: number;
  /** (signed, high, low, divisor) -> 0, or 1 for #DE; results at STATE.helper. */
  readonly divide: number;
  /** (operation) -> 0, or 1 for #XM; operands and result at STATE.vector. x86/sse-exact.ts */
  readonly vector: number;
  /** () -> nothing: the others execute nothing until `start` (world.ts). */
  readonly stop: number;
  readonly start: number;
  readonly computeFlags: number;
  /** Global: first byte of the scratch area in memory 0. */
  readonly scratch: number;
}

/** XCR0: SSE and AVX. */
export const XCR0_SSE_AVX = 6;

export const ACCESS_READ = 0;
export const ACCESS_WRITE = 1;

/** What differs between the big function and a function of one instruction. */
export interface Frame {
  readonly f: FunctionBuilder;
  readonly flagLocals: FlagLocals;
  /** Local: the micro-op. */
  readonly pc: Node;
  /** Local: byte offset of the mode's TLB. */
  readonly tlb: Node;
  /** Leaves with the exception that the block describes. */
  readonly leave: () => void;
  /** Leaves with EXIT_INTERRUPTED. */
  readonly pause: () => void;
}

const zeroAddress = i32.const(0);

function loadInteger(memory: number, size: IntegerSize, at: Node, offset: number): Node {
  switch (size) {
    case 1:
      return i64.load8U(memory, at, offset);
    case 2:
      return i64.load16U(memory, at, offset);
    case 4:
      return i64.load32U(memory, at, offset);
    default:
      return i64.load(memory, at, offset);
  }
}

export class InterpreterCpu implements Cpu {
  readonly f: FunctionBuilder;
  readonly flags: Flags;
  protected readonly frame: Frame;
  readonly #runtime: Runtime;
  #wide = false;
  operands: readonly Operand[] = [];
  instructionSize: IntegerSize = 4;
  size: IntegerSize = 4;
  locked = false;

  constructor(frame: Frame, runtime: Runtime, flags: Flags = new LazyFlags(frame.f, frame.flagLocals)) {
    this.f = frame.f;
    this.frame = frame;
    this.#runtime = runtime;
    this.flags = flags;
  }

  /** Sets up for a form's variant. `wide`: the immediate is the constant of a wide micro-op. */
  begin(operands: readonly Operand[], instructionSize: number, locked: boolean, wide: boolean): void {
    this.operands = operands;
    this.#wide = wide;
    this.instructionSize = instructionSize as IntegerSize;
    this.locked = locked;
    const first = operands[0];
    this.size = (
      first === undefined || first.kind === 'other' || first.kind === 'one' ? instructionSize : first.size
    ) as IntegerSize;
  }

  /** Where a register operand stands: byte offset from the start of its table. */
  protected field(field: RegisterField): Node {
    const { pc } = this.frame;
    if (field < 2) return i32.load8U(CPU, pc, MICRO_OP.register1 + field);
    if (field === 2) return i32.load8U(CPU, pc, MICRO_OP.register3);
    return i32.and(i32.load8U(CPU, pc, MICRO_OP.immediate), i32.const(0xf0));
  }

  /** Where the selector of a segment operand is. */
  protected selector(): Node {
    return this.field(0);
  }

  immediate(): Node {
    if (this.#wide) return i64.load(CPU, this.frame.pc, MICRO_OP.wide);
    return i64.load32S(CPU, this.frame.pc, MICRO_OP.immediate);
  }

  read(index: number): Node {
    const operand = this.operands[index];
    switch (operand.kind) {
      case 'gpr':
        return this.readRegister(operand.field, operand.size);
      case 'fixed':
        return this.gpr(operand.gpr, operand.size);
      case 'immediate':
        return this.immediate();
      case 'one':
        return i64.small(1);
      case 'segment':
        return i64.load16U(CPU, this.selector(), 0);
      case 'memory': {
        const size = operand.size as IntegerSize;
        return this.load(this.translate(this.address(index), size, 'read'), size);
      }
      default:
        throw new Error(`bug: a ${operand.kind} operand is no integer`);
    }
  }

  write(index: number, value: Node): void {
    const operand = this.operands[index];
    switch (operand.kind) {
      case 'gpr':
        this.writeRegister(operand.field, operand.size, value);
        return;
      case 'fixed':
        this.setGpr(operand.gpr, operand.size, value);
        return;
      case 'memory': {
        const size = operand.size as IntegerSize;
        const kept = this.f.let(value);
        this.store(this.translate(this.address(index), size, 'write'), size, kept);
        return;
      }
      default:
        throw new Error(`bug: cannot write a ${operand.kind} operand`);
    }
  }

  protected readRegister(field: RegisterField, size: IntegerSize): Node {
    return loadInteger(CPU, size, this.field(field), 0);
  }

  protected writeRegister(field: RegisterField, size: IntegerSize, value: Node): void {
    const at = this.field(field);
    if (size === 4) this.f.store(8, CPU, at, 0, i64.and(value, i64.const(-1, 0)));
    else this.f.store(size, CPU, at, 0, value);
  }

  modify(index: number, operation: Modification, value: Node, replacement?: Node): Node {
    const operand = this.operands[index];
    if (operand.kind === 'memory') {
      const size = operand.size as IntegerSize;
      const address = this.address(index);
      const at = this.translate(address, size, 'modify');
      return this.modifyAt(address, at, size, operation, value, replacement);
    }
    const old = this.f.let(this.read(index));
    this.write(index, this.#changed(operation, old, value, replacement));
    return old;
  }

  #changed(operation: Modification, old: Node, value: Node, replacement: Node | undefined): Node {
    switch (operation) {
      case 'xchg':
        return value;
      case 'negate':
        return i64.sub(i64.small(0), old);
      case 'cmpxchg':
        if (replacement === undefined) throw new Error('bug: cmpxchg needs two values');
        return select(replacement, old, i64.eq(old, value));
      default:
        return i64[operation](old, value);
    }
  }

  modifyAt(address: Node, at: Node, size: IntegerSize, operation: Modification, value: Node, replacement?: Node): Node {
    const { f } = this;
    if (!this.locked || operation === 'negate') {
      const old = this.load(at, size);
      this.store(at, size, this.#changed(operation, old, value, replacement));
      return old;
    }
    const old = f.temporary(I64);
    const values = replacement === undefined ? [value] : [value, replacement];
    const aligned = i32.eqz(i32.and(at, i32.const(size - 1)));
    const direct = i32.and(aligned, i32.ltU(at, globalGet(this.#runtime.scratch, I32)));
    f.if(
      direct,
      () => f.set(old, atomicRmw(operation, size, GUEST, at, ...values)),
      () =>
        this.alone(address, size, (there) => {
          f.set(old, loadInteger(GUEST, size, there, 0));
          this.store(there, size, this.#changed(operation, old, value, replacement));
        }),
    );
    return old;
  }

  /** What WebAssembly's atomics cannot do. */
  protected alone(address: Node, size: number, body: (at: Node) => void): void {
    const { f } = this;
    f.callVoid(this.#runtime.stop);
    const at = f.let(this.#miss(address, size, 'modify'));
    f.if(i32.eq(at, i32.const(-1)), () => {
      f.callVoid(this.#runtime.start);
      this.frame.leave();
    });
    body(at);
    f.callVoid(this.#runtime.start);
  }

  exchangePair(address: Node, at: Node, expected: Pair, replacement: Pair): Pair {
    const { f } = this;
    const low = f.temporary(I64);
    const high = f.temporary(I64);
    const isExpected = i32.and(i64.eq(low, expected[0]), i64.eq(high, expected[1]));
    const look = (from: Node): void => {
      f.set(low, i64.load(GUEST, from, 0));
      f.set(high, i64.load(GUEST, from, 8));
    };
    const exchange = (to: Node): void => {
      look(to);
      f.if(isExpected, () => {
        f.store(8, GUEST, to, 0, replacement[0]);
        f.store(8, GUEST, to, 8, replacement[1]);
        this.commit(to, 16);
      });
    };
    if (!this.locked) {
      exchange(at);
      return [low, high];
    }
    const scratch = globalGet(this.#runtime.scratch, I32);
    f.if(
      i32.ltU(at, scratch),
      () => {
        const lock = f.let(i32.add(scratch, i32.const(ENGINE_LOCK)));
        const isTaken = atomicRmw('xchg', 4, GUEST, lock, i64.small(1));
        f.loop((again) => f.if(i64.ne(isTaken, i64.small(0)), () => f.br(again), undefined, false));
        look(at);
        f.if(isExpected, () => {
          f.set(low, atomicRmw('cmpxchg', 8, GUEST, at, expected[0], replacement[0]));
          f.if(i64.eq(low, expected[0]), () => {
            const next = f.let(i32.add(at, i32.const(8)));
            f.set(high, atomicRmw('cmpxchg', 8, GUEST, next, expected[1], replacement[1]));
            f.seldom(i64.ne(high, expected[1]), () =>
              f.drop(atomicRmw('cmpxchg', 8, GUEST, at, replacement[0], expected[0])),
            );
          });
        });
        f.drop(atomicRmw('xchg', 4, GUEST, lock, i64.small(0)));
      },
      () => this.alone(address, 16, exchange),
      true,
    );
    return [low, high];
  }

  #miss(address: Node, size: number, access: Access): Node {
    const request = size | ((access === 'read' ? ACCESS_READ : ACCESS_WRITE) << 8);
    const high = i32.wrap(i64.shrU(address, i64.small(32)));
    return call(this.#runtime.miss, I32, i32.wrap(address), high, i32.const(request));
  }

  gpr(number: number, size: IntegerSize): Node {
    return loadInteger(CPU, size, zeroAddress, VCPU.gpr + number * 8);
  }

  setGpr(number: number, size: IntegerSize, value: Node): void {
    const offset = VCPU.gpr + number * 8;
    if (size === 4) this.f.store(8, CPU, zeroAddress, offset, i64.and(value, i64.const(-1, 0)));
    else this.f.store(size, CPU, zeroAddress, offset, value);
  }

  address(_index: number): Node {
    const { pc } = this.frame;
    const slot = (offset: number): Node => i64.load(CPU, i32.load8U(CPU, pc, offset), 0);
    const scale = i64.extendI32U(i32.and(i32.load8U(CPU, pc, MICRO_OP.scale), i32.const(3)));
    return this.f.let(
      i64.add(
        i64.add(slot(MICRO_OP.base), i64.shl(slot(MICRO_OP.index), scale)),
        i64.load32S(CPU, pc, MICRO_OP.displacement),
      ),
    );
  }

  based(register: number, displacement: number): Node {
    return this.f.let(i64.add(this.gpr(register, 8), i64.small(displacement)));
  }

  translate(address: Node, size: number, access: Access): Node {
    const { f } = this;
    const { tlb } = this.frame;
    const entry = f.let(i32.add(i32.and(i32.wrap(i64.shrU(address, i64.small(7))), i32.const(TLB_MASK)), tlb));
    const tag = i64.load(CPU, entry, access === 'read' ? TLB_READ : TLB_WRITE);
    const last = size === 1 ? address : i64.add(address, i64.small(size - 1));
    const at = f.temporary(I32);
    f.if(
      i64.eq(i64.and(last, i64.small(-4096)), tag),
      () => f.set(at, i32.add(i32.wrap(address), i32.load(CPU, entry, TLB_ADDEND))),
      () => {
        f.set(at, this.#miss(address, size, access));
        f.seldom(i32.eq(at, i32.const(-1)), () => this.frame.leave());
      },
      true,
    );
    return at;
  }

  load(at: Node, size: IntegerSize): Node {
    return this.f.let(loadInteger(GUEST, size, at, 0));
  }

  store(at: Node, size: IntegerSize, value: Node): void {
    this.f.store(size, GUEST, at, 0, value);
    this.commit(at, size);
  }

  protected commit(at: Node, size: number): void {
    const { f } = this;
    f.seldom(i32.geU(at, globalGet(this.#runtime.scratch, I32)), () =>
      f.callVoid(this.#runtime.commit, at, i32.const(size)),
    );
  }

  readVector(index: number): Node {
    const operand = this.operands[index];
    switch (operand.kind) {
      case 'xmm':
        return simdLoad(0, CPU, this.field(operand.field), STATE.xmm);
      case 'mmx':
        return simdLoad(0x5d, CPU, this.field(operand.field), STATE.x87 + X87_STATE.REGISTERS);
      case 'memory': {
        const at = this.translate(this.address(index), operand.size, 'read');
        const load = operand.size === 16 ? 0 : operand.size === 8 ? 0x5d : 0x5c;
        return this.f.let(simdLoad(load, GUEST, at, 0));
      }
      default:
        throw new Error(`bug: a ${operand.kind} operand is no vector`);
    }
  }

  writeVector(index: number, value: Node): void {
    const operand = this.operands[index];
    switch (operand.kind) {
      case 'xmm':
        this.f.store(16, CPU, this.field(operand.field), STATE.xmm, value);
        return;
      case 'mmx': {
        const at = STATE.x87 + X87_STATE.REGISTERS;
        this.f.store(8, CPU, this.field(operand.field), at, simd(0x1d, I64, [value], 0));
        this.f.store(8, CPU, this.field(operand.field), at + 8, i64.small(0xffff));
        return;
      }
      case 'memory': {
        const kept = this.f.let(value);
        const at = this.translate(this.address(index), operand.size, 'write');
        this.storeVector(at, operand.size as 4 | 8 | 16, kept);
        return;
      }
      default:
        throw new Error(`bug: cannot write a ${operand.kind} operand as a vector`);
    }
  }

  loadVector(at: Node): Node {
    return this.f.let(simdLoad(0, GUEST, at, 0));
  }

  storeVector(at: Node, size: 4 | 8 | 16, value: Node): void {
    if (size === 16) this.f.store(16, GUEST, at, 0, value);
    else if (size === 8) this.f.store(8, GUEST, at, 0, simd(0x1d, I64, [value], 0));
    else this.f.store(4, GUEST, at, 0, simd(0x1b, I32, [value], 0));
    this.commit(at, size);
  }

  xmm(number: number): Node {
    return simdLoad(0, CPU, zeroAddress, STATE.xmm + 16 * number);
  }

  setXmm(number: number, value: Node): void {
    this.f.store(16, CPU, zeroAddress, STATE.xmm + 16 * number, value);
  }

  requireVectors(): void {
    this.f.seldom(i32.load(CPU, zeroAddress, VCPU.cr0Ts), () => this.raise(7));
  }

  exactVector(operation: Node, a: Node, b: Node): Node {
    return this.exactVectors(operation, [a], [b])[0];
  }

  exactVectors(operation: Node, ...operands: readonly (readonly Node[])[]): readonly Node[] {
    const { f } = this;
    const { vector } = this.#runtime;
    operands.forEach((halves, n) => {
      halves.forEach((half, i) => {
        f.store(16, CPU, zeroAddress, STATE.vector + 32 * n + 16 * i, half);
      });
    });
    const [first] = operands;
    const number = first.length === 2 ? i32.or(operation, i32.const(TWO_HALVES)) : operation;
    f.seldom(call(vector, I32, number), () => this.raise(19));
    return first.map((_half, i) => f.let(simdLoad(0, CPU, zeroAddress, STATE.vector + 16 * i)));
  }

  requireAligned(address: Node, alignment: 16 | 32 = 16): void {
    this.f.seldom(i64.ne(i64.and(address, i64.small(alignment - 1)), i64.small(0)), () => this.raise(13));
  }

  readUpper(index: number): Node {
    const operand = this.operands[index];
    if (operand.kind !== 'xmm') throw new Error(`bug: a ${operand.kind} operand has no upper half`);
    return simdLoad(0, CPU, this.field(operand.field), STATE.ymmHigh);
  }

  writeUpper(index: number, value: Node): void {
    const operand = this.operands[index];
    if (operand.kind !== 'xmm') throw new Error(`bug: a ${operand.kind} operand has no upper half`);
    this.f.store(16, CPU, this.field(operand.field), STATE.ymmHigh, value);
  }

  upper(number: number): Node {
    return simdLoad(0, CPU, zeroAddress, STATE.ymmHigh + 16 * number);
  }

  setUpper(number: number, value: Node): void {
    this.f.store(16, CPU, zeroAddress, STATE.ymmHigh + 16 * number, value);
  }

  storeHalves(at: Node, low: Node, high: Node): void {
    this.f.store(16, GUEST, at, 0, low);
    this.f.store(16, GUEST, at, 16, high);
    this.commit(at, 32);
  }

  requireAvx(): void {
    const enabled = i32.and(i32.load(CPU, zeroAddress, VCPU.xcr0), i32.const(XCR0_SSE_AVX));
    this.f.if(i32.ne(enabled, i32.const(XCR0_SSE_AVX)), () => this.raise(6));
    this.requireVectors();
  }

  state(offset: number, size: 4 | 8): Node {
    return size === 8 ? i64.load(CPU, zeroAddress, offset) : i32.load(CPU, zeroAddress, offset);
  }

  setState(offset: number, size: 4 | 8, value: Node): void {
    this.f.store(size, CPU, zeroAddress, offset, value);
  }

  wideDivide(signed: boolean, high: Node, low: Node, divisor: Node, quotient: Node, remainder: Node): void {
    const { f } = this;
    f.if(call(this.#runtime.divide, I32, i32.const(signed ? 1 : 0), high, low, divisor), () => this.raise(0));
    f.set(quotient, i64.load(CPU, zeroAddress, STATE.helper));
    f.set(remainder, i64.load(CPU, zeroAddress, STATE.helper + 8));
  }

  repeated(): Node {
    return i32.load8U(CPU, this.frame.pc, MICRO_OP.register1);
  }

  quickly(address: Node, access: Access): Node {
    const { f } = this;
    const entry = f.let(
      i32.add(i32.and(i32.wrap(i64.shrU(address, i64.small(7))), i32.const(TLB_MASK)), this.frame.tlb),
    );
    const tag = i64.load(CPU, entry, access === 'read' ? TLB_READ : TLB_WRITE);
    const here = i64.eq(i64.and(address, i64.small(-4096)), tag);
    const there = i32.add(i32.wrap(address), i32.load(CPU, entry, TLB_ADDEND));
    return f.let(select(there, i32.const(-1), here));
  }

  pause(): void {
    this.frame.pause();
  }

  raise(vector: number): void {
    this.setState(VCPU.exitVector, 4, i32.const(vector));
    this.setState(VCPU.exitErrorCode, 4, i32.const(0));
    this.frame.leave();
  }
}
