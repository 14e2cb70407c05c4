/**
 * A PV guest of a few instructions: its code is written by calls in a test and becomes an ELF file with Xen's notes.
 *
 * Layout, from VIRT_BASE + 1 MiB on, all of it mapped read-write-execute by the builder:
 *
 *   +0x00000   code: the runtime below, then the test's
 *   +0x40000   data pages, in the order in which `page()` and `data()` gave them out
 *
 * Registers that belong to the runtime: r14 = start_info, r15 = where to go on after an exception (`attempt()`).
 * A guest reports words: a line of 16 hexadecimal digits by console_io, which the test gets back as signed numbers.
 */

import { MFN_BASE } from '../../src/machine/memory.ts';
import { Assembler, type Register } from './assembler.ts';

export const VIRT_BASE = 0xffffffff80000000n;
const CODE_PADDR = 0x100000;
const DATA_OFFSET = 0x40000;
const PAGE = 4096;

/** MFNs of a 16 MiB domain: RAM, then shared_info, then 64 grant frames. */
export const RAM_PAGES = 4096;
export const SHARED_INFO_MFN = MFN_BASE + RAM_PAGES;
export const MFN_END = SHARED_INFO_MFN + 65;

/** `attempt()` reports FAULT + vector after an exception. */
export const FAULT = 0x1000n;
/** Vectors that `installTraps()` gives a handler: the CPU's, and two for INT n. */
const VECTORS: readonly number[] = [...Array(33).keys(), 0x80];
/** Those with an error code. Source: Intel SDM vol. 3, table 6-1. */
const WITH_ERROR: ReadonlySet<number> = new Set([8, 10, 11, 12, 13, 14, 17, 21]);

/** Hypercall numbers. Source: xen/include/public/xen.h. */
export const H = {
  set_trap_table: 0,
  mmu_update: 1,
  set_gdt: 2,
  stack_switch: 3,
  set_callbacks: 4,
  update_descriptor: 10,
  memory_op: 12,
  multicall: 13,
  update_va_mapping: 14,
  set_timer_op: 15,
  set_debugreg: 8,
  get_debugreg: 9,
  console_io: 18,
  grant_table_op: 20,
  iret: 23,
  vcpu_op: 24,
  set_segment_base: 25,
  mmuext_op: 26,
  sched_op: 29,
  callback_op: 30,
  event_channel_op: 32,
} as const;

export const DOMID_SELF = 0x7ff0;
const ARGUMENTS: readonly Register[] = ['rdi', 'rsi', 'rdx', 'r10', 'r8', 'r9'];

/** What a hypercall argument can be: a number, or a register that holds it. */
export type Argument = bigint | number | Register;

export class Program extends Assembler {
  readonly #pages: Uint8Array[] = [];
  readonly #hexBuffer: bigint;
  readonly #reason: bigint;
  /** 16 KiB; grows down. */
  readonly stackTop: bigint;
  /** What the last exception pushed: error code (or 0), rip, cs, rflags, rsp, ss. */
  readonly lastFault: bigint;

  constructor() {
    super(VIRT_BASE + BigInt(CODE_PADDR));
    this.#hexBuffer = this.data(128);
    this.#reason = this.#hexBuffer + 32n;
    this.lastFault = this.#hexBuffer + 64n;
    this.data(4 * PAGE);
    this.stackTop = this.data(PAGE);
    this.mov('r14', 'rsi');
    this.movImm('rsp', this.stackTop);
    this.jmp('start');
    this.#runtime();
    this.label('start');
  }

  #runtime(): void {
    // report: rax as 16 digits and a newline. Destroys rcx, rdx, rdi, rsi, r11; rax comes back as it was.
    this.label('report');
    this.push('rax');
    this.push('rbx');
    this.mov('rbx', 'rax');
    this.movImm('rsi', this.#hexBuffer + 15n);
    this.movImm('rcx', 16);
    this.label('report.digit');
    this.mov('rax', 'rbx');
    this.alu('and', 'rax', 15);
    this.alu('add', 'rax', 0x30);
    this.alu('cmp', 'rax', 0x3a);
    this.jmpIf('below', 'report.decimal');
    this.alu('add', 'rax', 0x27);
    this.label('report.decimal');
    this.store8('rsi', 0, 'rax');
    this.alu('sub', 'rsi', 1);
    this.shift('right', 'rbx', 4);
    this.alu('sub', 'rcx', 1);
    this.jmpIf('notEqual', 'report.digit');
    this.movImm('rdx', this.#hexBuffer);
    this.movImm('rax', 10);
    this.store8('rdx', 16, 'rax');
    this.movImm('rdi', 0);
    this.movImm('rsi', 17);
    this.movImm('rax', H.console_io);
    this.syscall();
    this.pop('rbx');
    this.pop('rax');
    this.ret();
    // One entry a vector: where an exception goes.
    for (const vector of VECTORS) {
      this.label(`exception.${vector}`);
      this.movImm('rax', FAULT + BigInt(vector));
      this.jmp(WITH_ERROR.has(vector) ? 'exception.error' : 'exception.plain');
    }
    // The frame: rcx, r11, [error code], rip, cs, rflags, rsp, ss.
    this.label('exception.plain');
    this.pop('rcx');
    this.movImm('rcx', 0);
    this.raw(0x48, 0x89, 0x0c, 0x24); // mov [rsp], rcx
    this.jmp('exception.save');
    this.label('exception.error');
    this.pop('rcx');
    this.pop('rcx');
    this.label('exception.save');
    this.movImm('rdx', this.lastFault);
    for (let word = 0; word < 6; word++) {
      this.pop('rcx');
      this.store('rdx', word * 8, 'rcx');
    }
    this.movImm('rsp', this.stackTop);
    this.jmpTo('r15');
  }

  /** Gives out zeroed data, page-aligned, and its VA. */
  data(bytes: number, fill: Uint8Array = new Uint8Array()): bigint {
    const va = this.base + BigInt(DATA_OFFSET + this.#pages.reduce((sum, page) => sum + page.length, 0));
    const page = new Uint8Array(Math.ceil(Math.max(bytes, fill.length) / PAGE) * PAGE);
    page.set(fill);
    this.#pages.push(page);
    return va;
  }

  page(): bigint {
    return this.data(PAGE);
  }

  /** Data made of 64-bit words. */
  words(values: readonly (bigint | number)[]): bigint {
    const words = BigUint64Array.from(values, (value) => BigInt.asUintN(64, BigInt(value)));
    return this.data(words.byteLength, new Uint8Array(words.buffer));
  }

  /** MFN of the page at a VA of this program. */
  mfn(va: bigint): number {
    return MFN_BASE + Number((va - VIRT_BASE) >> 12n);
  }

  /** rax = the hypercall's result. */
  hypercall(nr: Argument, ...args: readonly Argument[]): void {
    args.forEach((value, i) => {
      this.#set(ARGUMENTS[i], value);
    });
    this.#set('rax', nr);
    this.syscall();
  }

  #set(register: Register, value: Argument): void {
    if (typeof value !== 'string') this.movImm(register, value);
    else if (value !== register) this.mov(register, value);
  }

  /** A line with rax. */
  report(): void {
    this.call('report');
  }

  /** A hypercall and its result as a line. */
  check(nr: Argument, ...args: readonly Argument[]): void {
    this.hypercall(nr, ...args);
    this.report();
  }

  /** Gives every exception a handler that goes on at r15. */
  installTraps(): void {
    const table = this.data(PAGE);
    this.movImm('rbx', table);
    for (const [index, vector] of VECTORS.entries()) {
      // struct trap_info { u8 vector, flags; u16 cs; u64 address; }
      this.movImm('rax', vector | (0xe033 << 16));
      this.store('rbx', index * 16, 'rax');
      this.movLabel('rax', `exception.${vector}`);
      this.store('rbx', index * 16 + 8, 'rax');
    }
    this.hypercall(H.set_trap_table, table);
  }

  /** Runs `body`; reports rax, which is FAULT + vector after an exception in it. */
  attempt(body: () => void): void {
    const next = this.newLabel();
    this.movLabel('r15', next);
    this.movImm('rax', 0);
    body();
    this.label(next);
    this.report();
  }

  /** Reports a word of `lastFault`. */
  reportFault(word: 'error' | 'rip' | 'cs' | 'rflags' | 'rsp' | 'ss'): void {
    this.movImm('rax', this.lastFault);
    this.load('rax', 'rax', ['error', 'rip', 'cs', 'rflags', 'rsp', 'ss'].indexOf(word) * 8);
    this.report();
  }

  /** Maps a VA of the kernel image to nothing. */
  unmap(va: bigint): void {
    this.hypercall(H.update_va_mapping, va, 0, 2);
  }

  /** Makes the hypercalls of a table, 7 words each (number, then arguments); rbp and r12 are lost, results too. */
  runTable(table: bigint, count: number): void {
    const next = this.newLabel();
    this.movImm('rbp', table);
    this.movImm('r12', count);
    this.label(next);
    ARGUMENTS.forEach((register, i) => {
      this.load(register, 'rbp', 8 + i * 8);
    });
    this.load('rax', 'rbp', 0);
    this.syscall();
    this.alu('add', 'rbp', 56);
    this.alu('sub', 'r12', 1);
    this.jmpIf('notEqual', next);
  }

  /** Maps a VA of the kernel image to a frame, present and writable. */
  mapFrame(va: bigint, mfn: number): void {
    this.hypercall(H.update_va_mapping, va, (BigInt(mfn) << 12n) | 3n, 2);
  }

  /** register = VA of the root page table. */
  loadRootVa(register: Register): void {
    this.load(register, 'r14', 0x58);
  }

  /** register = MFN of the page of the kernel image whose VA it holds. */
  vaToMfn(register: Register): void {
    this.alu('sub', register, Number(BigInt.asIntN(32, VIRT_BASE)));
    this.shift('right', register, 12);
    this.alu('add', register, MFN_BASE);
  }

  loop(): void {
    const here = this.newLabel();
    this.label(here);
    this.jmp(here);
  }

  /** SCHEDOP_shutdown. */
  shutdown(reason = 0): void {
    this.movImm('rax', reason);
    this.movImm('rsi', this.#reason);
    this.store('rsi', 0, 'rax');
    this.hypercall(H.sched_op, 2, this.#reason);
    this.loop();
  }

  /** The ELF file. */
  elf(): Uint8Array {
    const code = this.assemble();
    if (code.length > DATA_OFFSET) throw new Error(`${code.length} bytes of code`);
    const image = new Uint8Array(DATA_OFFSET + this.#pages.reduce((sum, page) => sum + page.length, 0));
    image.set(code);
    let at = DATA_OFFSET;
    for (const page of this.#pages) {
      image.set(page, at);
      at += page.length;
    }
    return elfFile(image, this.base);
  }
}

/** ELF note types. Source: xen/include/public/elfnote.h. */
const NOTES: readonly (readonly [type: number, value: bigint | string])[] = [
  [3, VIRT_BASE],
  [4, 0n],
  [5, 'xen-3.0'],
  [6, 'linux'],
  [8, 'generic'],
  [15, 0x8000000000n],
  [16, 1n],
];

function elfFile(image: Uint8Array, entry: bigint): Uint8Array {
  const notes: number[] = [];
  const u32 = (value: number): void => {
    for (let shift = 0; shift < 32; shift += 8) notes.push((value >>> shift) & 0xff);
  };
  for (const [type, value] of [[1, entry] as const, ...NOTES]) {
    const text = typeof value === 'string' ? [...Buffer.from(`${value}\0`)] : [];
    u32(4);
    u32(typeof value === 'string' ? text.length : 8);
    u32(type);
    notes.push(...Buffer.from('Xen\0'));
    if (typeof value === 'string') notes.push(...text);
    else for (let shift = 0n; shift < 64n; shift += 8n) notes.push(Number((value >> shift) & 0xffn));
    while (notes.length % 4 !== 0) notes.push(0);
  }
  const headers = 64 + 2 * 56;
  const file = new Uint8Array(PAGE + image.length);
  const view = new DataView(file.buffer);
  file.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  view.setUint16(0x10, 2, true);
  view.setUint16(0x12, 62, true);
  view.setUint32(0x14, 1, true);
  view.setBigUint64(0x20, 64n, true);
  view.setUint16(0x34, 64, true);
  view.setUint16(0x36, 56, true);
  view.setUint16(0x38, 2, true);
  view.setUint16(0x3a, 64, true);
  const segment = (at: number, type: number, offset: number, paddr: number, size: number): void => {
    view.setUint32(at, type, true);
    view.setUint32(at + 4, 7, true);
    view.setBigUint64(at + 8, BigInt(offset), true);
    view.setBigUint64(at + 0x10, VIRT_BASE + BigInt(paddr), true);
    view.setBigUint64(at + 0x18, BigInt(paddr), true);
    view.setBigUint64(at + 0x20, BigInt(size), true);
    view.setBigUint64(at + 0x28, BigInt(size), true);
  };
  segment(64, 1, PAGE, CODE_PADDR, image.length);
  segment(64 + 56, 4, headers, 0, notes.length);
  file.set(notes, headers);
  file.set(image, PAGE);
  return file;
}
