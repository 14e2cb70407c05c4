/**
 * As much of an x86-64 assembler as the hostile guests need: 64-bit operands, [base + disp32] addresses, labels with 32-bit
 * displacements. What is missing goes in as raw bytes. Encodings: Intel SDM vol. 2, chapter 2 and the instruction pages.
 */

export const REGISTERS = [
  'rax',
  'rcx',
  'rdx',
  'rbx',
  'rsp',
  'rbp',
  'rsi',
  'rdi',
  'r8',
  'r9',
  'r10',
  'r11',
  'r12',
  'r13',
  'r14',
  'r15',
] as const;
export type Register = (typeof REGISTERS)[number];

/** Opcodes of `op r/m64, r64`, and the /digit of the same operation with an immediate. */
const ALU = { add: [0x01, 0], or: [0x09, 1], and: [0x21, 4], sub: [0x29, 5], xor: [0x31, 6], cmp: [0x39, 7] } as const;
export type AluOperation = keyof typeof ALU;

/** Condition codes of Jcc. */
const CONDITIONS = { below: 2, aboveOrEqual: 3, equal: 4, notEqual: 5, belowOrEqual: 6, above: 7 } as const;
export type Condition = keyof typeof CONDITIONS;

interface Fixup {
  readonly at: number;
  readonly label: string;
  readonly kind: 'relative32' | 'absolute64';
}

export class Assembler {
  /** VA of the first byte. */
  readonly base: bigint;
  readonly #bytes: number[] = [];
  readonly #labels = new Map<string, number>();
  readonly #fixups: Fixup[] = [];
  #unique = 0;

  constructor(base: bigint) {
    this.base = base;
  }

  raw(...bytes: readonly number[]): void {
    for (const byte of bytes) this.#bytes.push(byte & 0xff);
  }

  /** Names this place. */
  label(name: string): void {
    if (this.#labels.has(name)) throw new Error(`label ${name} is defined twice`);
    this.#labels.set(name, this.#bytes.length);
  }

  newLabel(): string {
    return `.${this.#unique++}`;
  }

  movImm(to: Register, value: bigint | number): void {
    const r = REGISTERS.indexOf(to);
    this.raw(0x48 | (r >> 3), 0xb8 | (r & 7));
    this.#u64(BigInt.asUintN(64, BigInt(value)));
  }

  /** The VA of a label, which may come later. */
  movLabel(to: Register, label: string): void {
    this.movImm(to, 0);
    this.#fixups.push({ at: this.#bytes.length - 8, label, kind: 'absolute64' });
  }

  mov(to: Register, from: Register): void {
    this.#registers(0x89, from, to);
  }

  alu(operation: AluOperation, to: Register, from: Register | number): void {
    const [opcode, digit] = ALU[operation];
    if (typeof from !== 'number') {
      this.#registers(opcode, from, to);
      return;
    }
    const r = REGISTERS.indexOf(to);
    this.raw(0x48 | (r >> 3), 0x81, 0xc0 | (digit << 3) | (r & 7));
    this.#u32(from);
  }

  shift(direction: 'left' | 'right', register: Register, bits: number): void {
    const r = REGISTERS.indexOf(register);
    this.raw(0x48 | (r >> 3), 0xc1, (direction === 'left' ? 0xe0 : 0xe8) | (r & 7), bits);
  }

  load(to: Register, base: Register, displacement = 0): void {
    this.#memory(0x48, 0x8b, to, base, displacement);
  }

  store(base: Register, displacement: number, from: Register): void {
    this.#memory(0x48, 0x89, from, base, displacement);
  }

  store8(base: Register, displacement: number, from: Register): void {
    this.#memory(0x40, 0x88, from, base, displacement);
  }

  push(register: Register): void {
    const r = REGISTERS.indexOf(register);
    this.raw(0x40 | (r >> 3), 0x50 | (r & 7));
  }

  pop(register: Register): void {
    const r = REGISTERS.indexOf(register);
    this.raw(0x40 | (r >> 3), 0x58 | (r & 7));
  }

  jmp(label: string): void {
    this.raw(0xe9);
    this.#relative(label);
  }

  jmpIf(condition: Condition, label: string): void {
    this.raw(0x0f, 0x80 | CONDITIONS[condition]);
    this.#relative(label);
  }

  jmpTo(register: Register): void {
    const r = REGISTERS.indexOf(register);
    this.raw(0x40 | (r >> 3), 0xff, 0xe0 | (r & 7));
  }

  call(label: string): void {
    this.raw(0xe8);
    this.#relative(label);
  }

  ret(): void {
    this.raw(0xc3);
  }

  syscall(): void {
    this.raw(0x0f, 0x05);
  }

  ud2(): void {
    this.raw(0x0f, 0x0b);
  }

  /** The code, every label resolved. */
  assemble(): Uint8Array {
    const bytes = Uint8Array.from(this.#bytes);
    const view = new DataView(bytes.buffer);
    for (const { at, label, kind } of this.#fixups) {
      const target = this.#labels.get(label);
      if (target === undefined) throw new Error(`label ${label} is not defined`);
      if (kind === 'relative32') view.setInt32(at, target - (at + 4), true);
      else view.setBigUint64(at, this.base + BigInt(target), true);
    }
    return bytes;
  }

  #registers(opcode: number, reg: Register, rm: Register): void {
    const r = REGISTERS.indexOf(reg);
    const m = REGISTERS.indexOf(rm);
    this.raw(0x48 | ((r >> 3) << 2) | (m >> 3), opcode, 0xc0 | ((r & 7) << 3) | (m & 7));
  }

  #memory(rex: number, opcode: number, reg: Register, base: Register, displacement: number): void {
    const r = REGISTERS.indexOf(reg);
    const b = REGISTERS.indexOf(base);
    this.raw(rex | ((r >> 3) << 2) | (b >> 3), opcode, 0x80 | ((r & 7) << 3) | (b & 7));
    if ((b & 7) === 4) this.raw(0x24);
    this.#u32(displacement);
  }

  #relative(label: string): void {
    this.#fixups.push({ at: this.#bytes.length, label, kind: 'relative32' });
    this.#u32(0);
  }

  #u32(value: number): void {
    for (let shift = 0; shift < 32; shift += 8) this.raw((value >>> shift) & 0xff);
  }

  #u64(value: bigint): void {
    for (let shift = 0n; shift < 64n; shift += 8n) this.raw(Number((value >> shift) & 0xffn));
  }
}
