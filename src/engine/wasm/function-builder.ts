/** The body of one WebAssembly function: statements are written as they come, expressions are nodes (nodes.ts). */

import { type ByteWriter, giveBack, takeWriter } from './byte-writer.ts';
import {
  CALL,
  CALL_INDIRECT,
  CHOICE,
  CONST,
  GLOBAL,
  I32,
  LOCAL,
  local,
  MEMORY,
  type Node,
  V128,
  type ValueType,
  WITHIN,
} from './nodes.ts';

/** A block, loop or if that is open; `br` names it. */
export interface Label {
  readonly depth: number;
  isOpen: boolean;
}

/** A branch, by its place behind the body's size, and whether it is likely to be taken. */
export interface BranchHint {
  readonly at: number;
  readonly likely: boolean;
}

const EMPTY_BLOCK = 0x40;

export class FunctionBuilder {
  readonly code: ByteWriter = takeWriter();
  readonly #parameters: number;
  readonly #locals: ValueType[] = [];
  /** Temporaries that are free, by type. */
  readonly #free = new Map<ValueType, number[]>();
  readonly #temporaries: { readonly index: number; readonly type: ValueType }[] = [];
  #depth = 0;
  /** By their places in `code`. */
  readonly #hints: BranchHint[] = [];

  constructor(parameters: readonly ValueType[]) {
    this.#parameters = parameters.length;
  }

  /** A local that stays for the whole function. */
  newLocal(type: ValueType): Node {
    this.#locals.push(type);
    return local(this.#parameters + this.#locals.length - 1, type);
  }

  /** A local that `releaseTemporaries` takes back. */
  temporary(type: ValueType): Node {
    const index = this.#free.get(type)?.pop() ?? this.newLocal(type).lo;
    this.#temporaries.push({ index, type });
    return local(index, type);
  }

  releaseTemporaries(): void {
    for (const { index, type } of this.#temporaries) {
      const free = this.#free.get(type);
      if (free === undefined) this.#free.set(type, [index]);
      else free.push(index);
    }
    this.#temporaries.length = 0;
  }

  /** Computes a value now and keeps it in a temporary. Constants and temporaries stay as they are. */
  let(value: Node): Node {
    if (value.kind === CONST) return value;
    const target = this.temporary(value.type);
    this.set(target, value);
    return target;
  }

  set(target: Node, value: Node): void {
    this.emit(value);
    this.code.u8(0x21);
    this.code.u32(target.lo);
  }

  setGlobal(index: number, value: Node): void {
    this.emit(value);
    this.code.u8(0x24);
    this.code.u32(index);
  }

  /** Writes an expression: its value is on the stack afterwards. */
  emit(value: Node): void {
    const code = this.code;
    if (value.kind === LOCAL || value.kind === GLOBAL) {
      code.u8(value.opcode);
      code.u32(value.lo);
      return;
    }
    if (value.kind === CONST) {
      code.u8(value.opcode);
      if (value.type === I32) code.s32(value.lo);
      else code.s64(value.lo, value.hi);
      return;
    }
    if (value.kind === CHOICE) {
      this.emit(value.operands[0]);
      code.u8(0x04);
      code.u8(value.type);
      this.emit(value.operands[1]);
      code.u8(0x05);
      this.emit(value.operands[2]);
      code.u8(0x0b);
      return;
    }
    if (value.kind === WITHIN) {
      this.emit(value.operands[0]);
      code.u8(0x41);
      code.s32(value.lo);
      code.u8(value.opcode);
      return;
    }
    if (value.kind === MEMORY) {
      const { operands } = value;
      const offset = this.#address(operands[0]) + value.lo;
      for (let i = 1; i < operands.length; i++) this.emit(operands[i]);
      this.#opcode(value.opcode);
      this.#memoryArgument(value.hi & 0xff, value.hi >> 8, offset);
      return;
    }
    for (const operand of value.operands) this.emit(operand);
    this.#opcode(value.opcode);
    if (value.kind === CALL) code.u32(value.lo);
    else if (value.kind === CALL_INDIRECT) {
      code.u32(value.hi);
      code.u8(0);
    } else if (value.bytes !== null) for (const byte of value.bytes) code.u8(byte);
    else if (value.lo >= 0) code.u8(value.lo);
  }

  /** Writes the address of a load or store. Returns what belongs to its offset. */
  #address(address: Node): number {
    const isWithin = address.kind === WITHIN;
    this.emit(isWithin ? address.operands[0] : address);
    return isWithin ? address.lo : 0;
  }

  #opcode(opcode: number): void {
    if (opcode > 0xff) {
      this.code.u8(opcode >> 16);
      this.code.u32(opcode & 0xffff);
    } else this.code.u8(opcode);
  }

  #memoryArgument(align: number, memory: number, offset: number): void {
    if (memory === 0) this.code.u32(align);
    else {
      this.code.u32(align | 0x40);
      this.code.u32(memory);
    }
    this.code.u32(offset);
  }

  /** Stores the low bytes of an integer. `size` in bytes; an i64 value may be stored in 1, 2, 4 or 8, an i32 in 1, 2 or 4. */
  store(size: 1 | 2 | 4 | 8 | 16, memory: number, address: Node, offset: number, value: Node): void {
    const offsetToo = this.#address(address) + offset;
    this.emit(value);
    if (value.type === V128) this.#opcode(0xfd000b);
    else if (value.type === I32) this.code.u8(size === 4 ? 0x36 : size === 2 ? 0x3b : 0x3a);
    else if (value.type === 0x7d) this.code.u8(0x38);
    else if (value.type === 0x7c) this.code.u8(0x39);
    else this.code.u8(size === 8 ? 0x37 : size === 4 ? 0x3e : size === 2 ? 0x3d : 0x3c);
    this.#memoryArgument(0, memory, offsetToo);
  }

  /** Fills bytes of a memory. */
  memoryFill(memory: number, at: Node, value: Node, size: Node): void {
    this.emit(at);
    this.emit(value);
    this.emit(size);
    this.code.u8(0xfc);
    this.code.u32(11);
    this.code.u32(memory);
  }

  /** Copies bytes within a memory, as if by way of a buffer. */
  memoryCopy(memory: number, to: Node, from: Node, size: Node): void {
    this.emit(to);
    this.emit(from);
    this.emit(size);
    this.code.u8(0xfc);
    this.code.u32(10);
    this.code.u32(memory);
    this.code.u32(memory);
  }

  /** Evaluates for its effect. */
  drop(value: Node): void {
    this.emit(value);
    this.code.u8(0x1a);
  }

  /** A call without a result. */
  callVoid(index: number, ...operands: Node[]): void {
    for (const operand of operands) this.emit(operand);
    this.code.u8(0x10);
    this.code.u32(index);
  }

  #open(opcode: number, body: (label: Label) => void): void {
    this.code.u8(opcode);
    this.code.u8(EMPTY_BLOCK);
    this.#depth++;
    const label = { depth: this.#depth, isOpen: true };
    body(label);
    label.isOpen = false;
    this.#depth--;
    this.code.u8(0x0b);
  }

  block(body: (label: Label) => void): void {
    this.#open(0x02, body);
  }

  loop(body: (label: Label) => void): void {
    this.#open(0x03, body);
  }

  /** Blocks, loops and ifs that are open. */
  get depth(): number {
    return this.#depth;
  }

  /** A constant condition leaves only its side. `likely`: how the condition mostly is, if anyone knows. */
  if(condition: Node, yes: () => void, no?: () => void, likely?: boolean): void {
    if (condition.kind === CONST) {
      if (condition.lo !== 0) yes();
      else no?.();
      return;
    }
    this.emit(condition);
    this.#hint(likely);
    this.#open(0x04, () => {
      yes();
      if (no !== undefined) {
        this.code.u8(0x05);
        no();
      }
    });
  }

  /** An `if` that is seldom entered. */
  seldom(condition: Node, body: () => void): void {
    this.if(condition, body, undefined, false);
  }

  /** What is said of the branch that is written next. */
  #hint(likely: boolean | undefined): void {
    if (likely !== undefined) this.#hints.push({ at: this.code.length, likely });
  }

  #distance(label: Label): number {
    if (!label.isOpen) throw new Error('bug: a branch to what is closed');
    return this.#depth - label.depth;
  }

  br(label: Label): void {
    this.code.u8(0x0c);
    this.code.u32(this.#distance(label));
  }

  brIf(label: Label, condition: Node, likely?: boolean): void {
    this.emit(condition);
    this.#hint(likely);
    this.code.u8(0x0d);
    this.code.u32(this.#distance(label));
  }

  /** The last label is the default. */
  brTable(index: Node, labels: readonly Label[]): void {
    this.emit(index);
    this.code.u8(0x0e);
    this.code.u32(labels.length - 1);
    for (const label of labels) this.code.u32(this.#distance(label));
  }

  return(value?: Node): void {
    if (value !== undefined) this.emit(value);
    this.code.u8(0x0f);
  }

  unreachable(): void {
    this.code.u8(0x00);
  }

  /** The function body as the code section has it: size, locals, code, end. The builder is done then. Returns its branch hints. */
  finish(out: ByteWriter): readonly BranchHint[] {
    const head = takeWriter();
    const types = this.#locals;
    let groups = 0;
    for (let i = 0; i < types.length; i++) if (i === 0 || types[i] !== types[i - 1]) groups++;
    head.u32(groups);
    for (let i = 0; i < types.length; ) {
      let end = i;
      while (end < types.length && types[end] === types[i]) end++;
      head.u32(end - i);
      head.u8(types[i]);
      i = end;
    }
    out.u32(head.length + this.code.length + 1);
    const hints = this.#hints.map(({ at, likely }) => ({ at: head.length + at, likely }));
    out.append(head.view());
    out.append(this.code.view());
    out.u8(0x0b);
    giveBack(head);
    giveBack(this.code);
    return hints;
  }
}
