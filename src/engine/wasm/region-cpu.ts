/** The `Cpu` of translated regions: general registers are locals, operands and addresses are known when the code is written. */

import { VCPU } from '../../machine/vcpu-block.ts';
import { RIP } from '../x86/decoder.ts';
import { FORMS } from '../x86/forms.ts';
import type { Instruction } from '../x86/instruction.ts';
import type { IntegerSize } from './flags.ts';
import type { Variant } from './handlers.ts';
import { type Frame, InterpreterCpu, type Runtime } from './interpreter-cpu.ts';
import { CPU } from './layout.ts';
import { i32, i64, type Node } from './nodes.ts';
import { stem } from './semantics/table.ts';

const zeroAddress = i32.const(0);
const LOW_WORD = i64.const(-1, 0);

function narrow(size: IntegerSize, value: Node): Node {
  switch (size) {
    case 1:
      return i64.and(value, i64.small(0xff));
    case 2:
      return i64.and(value, i64.small(0xffff));
    case 4:
      return i64.and(value, LOW_WORD);
    default:
      return value;
  }
}

export class RegionCpu extends InterpreterCpu {
  /** Locals of the general registers that the region uses; the others stay in memory 1. */
  readonly #registers: readonly (Node | null)[];
  readonly #written: number;
  /** Local: address of the entry's page. */
  readonly #base: Node;
  #instruction!: Instruction;
  #position = 0;
  #isLea = false;

  constructor(frame: Frame, runtime: Runtime, registers: readonly (Node | null)[], written: number, base: Node) {
    super(frame, runtime);
    this.#registers = registers;
    this.#written = written;
    this.#base = base;
  }

  /** Sets up for an instruction at a position from the start of the entry's page. */
  at(instruction: Instruction, position: number, variant: Variant | null): void {
    this.#instruction = instruction;
    this.#position = position;
    this.#isLea = variant !== null && stem(variant.form) === 'lea';
    const { known } = this.flags;
    if (variant !== null) this.begin(variant.operands, variant.operandSize, variant.locked, variant.wide);
    this.flags.known = known;
  }

  /** Number and place in the register of a general-register operand. */
  #general(field: 0 | 1 | 2, size: IntegerSize): { readonly number: number; readonly high: boolean } {
    const number = field === 0 ? this.#instruction.reg : this.#instruction.rm;
    const high = size === 1 && this.#instruction.rex === 0 && number >= 4;
    return { number: high ? number - 4 : number, high };
  }

  protected override field(field: 0 | 1 | 2): Node {
    return i32.const((field === 0 ? this.#instruction.reg : this.#instruction.rm) << 4);
  }

  override immediate(): Node {
    return i64.const(
      this.#instruction.immLo,
      this.#wideImmediate() ? this.#instruction.immHi : this.#instruction.immLo >> 31,
    );
  }

  /** The interpreter keeps all but MOV's 64-bit immediate as 32 bits, sign-extended. */
  #wideImmediate(): boolean {
    return this.instructionSize === 8 && this.#instruction.immHi !== this.#instruction.immLo >> 31;
  }

  protected override readRegister(field: 0 | 1 | 2, size: IntegerSize): Node {
    const { number, high } = this.#general(field, size);
    if (!high) return this.gpr(number, size);
    return i64.and(i64.shrU(this.gpr(number, 8), i64.small(8)), i64.small(0xff));
  }

  protected override writeRegister(field: 0 | 1 | 2, size: IntegerSize, value: Node): void {
    const { number, high } = this.#general(field, size);
    if (!high) {
      this.setGpr(number, size, value);
      return;
    }
    const local = this.#writable(number);
    const rest = i64.and(local, i64.small(~0xff00));
    this.f.set(local, i64.or(rest, i64.shl(i64.and(value, i64.small(0xff)), i64.small(8))));
  }

  #writable(number: number): Node {
    const local = this.#registers[number];
    if (local === null || (this.#written & (1 << number)) === 0)
      throw new Error(
        `bug: region-graph.ts does not know that ${FORMS[this.#instruction.form].key} writes register ${number}`,
      );
    return local;
  }

  override gpr(number: number, size: IntegerSize): Node {
    const local = this.#registers[number];
    return local === null ? super.gpr(number, size) : narrow(size, local);
  }

  override setGpr(number: number, size: IntegerSize, value: Node): void {
    const local = this.#writable(number);
    if (size === 8) this.f.set(local, value);
    else if (size === 4) this.f.set(local, i64.and(value, LOW_WORD));
    else {
      const mask = size === 2 ? 0xffff : 0xff;
      this.f.set(local, i64.or(i64.and(local, i64.small(~mask)), i64.and(value, i64.small(mask))));
    }
  }

  override address(_index: number): Node {
    const i = this.#instruction;
    const displacement = i64.small(i.displacement);
    let sum: Node;
    if (i.base === RIP) {
      const next = this.#position + i.length;
      const low = next + i.displacement;
      sum = i64.add(this.#base, low === (low | 0) ? i64.small(low) : i64.add(i64.small(next), displacement));
    } else if (i.base >= 0) {
      sum = this.gpr(i.base, 8);
      if (i.displacement !== 0) sum = i64.add(sum, displacement);
    } else sum = displacement;
    if (i.index >= 0) {
      const index = this.gpr(i.index, 8);
      sum = i64.add(sum, i.scale === 0 ? index : i64.shl(index, i64.small(i.scale)));
    }
    if (i.addressSize === 4) sum = i64.and(sum, LOW_WORD);
    if (i.segment >= 4 && !this.#isLea)
      sum = i64.add(sum, i64.load(CPU, zeroAddress, i.segment === 4 ? VCPU.fsBase : VCPU.gsBase));
    return this.f.let(sum);
  }

  /** The TLB filler of regions gives no scratch places (region.ts). */
  protected override commit(): void {}

  override repeated(): Node {
    return i32.const(this.#instruction.rep === 0 ? 0 : 1);
  }

  /** The interpreter runs the instruction again and raises what is to be raised. */
  override raise(_vector: number): void {
    this.frame.leave();
  }
}
