/**
 * What must happen in ring 0 before the guest goes on: page-table stores shown to KVM, translations forgotten. Between runs it is
 * collected here; the resume code, written anew for each use, does it on the way into the guest:
 *
 *     lock or qword [r15 + disp32], 0      one per page-table store: 12 bytes; r15 = middle of the direct map of memory 0
 *     mov r15, imm64; lock or qword ...    for stores into the area's own tables
 *     mov rax, cr3; mov cr3, rax           forget the translations
 *     pop r15; pop rax; iretq              the guest's frame, from the ring-0 stack
 *
 * A KVM with shadow page tables does not see the stores that the host makes; the locked OR changes nothing and shows them to it,
 * atomically, so that no store of another vCPU and no accessed or dirty bit is lost. Where the CPU walks the guest's tables itself it
 * costs nothing.
 *
 * Stores are written as code at once, so that a resume has only the tail to write. When the pages are full, the code runs alone
 * (run-alone.ts) with `out; hlt` as its tail.
 */

import { VCPU } from '../../machine/vcpu-block.ts';
import { REGS_R15_W, REGS_RFLAGS_W, REGS_RIP_W, REGS_RSP_W } from './abi.ts';
import { writeRing0Segments } from './flat-segments.ts';
import {
  AREA_VA_HI,
  DIRECT_MAP_VA_HI,
  PORT_STORES_DONE,
  RESUME_PAGES,
  windowResumeVaLo,
  windowStackTopVaLo,
} from './hypervisor-area.ts';
import type { AloneRunner } from './run-alone.ts';
import type { VcpuFile } from './vcpu-file.ts';
import type { VcpuViews } from './vcpu-views.ts';

// Word indexes of the vCPU block.
const GPR = VCPU.gpr / 4;
const RSP_WORD = GPR + 4 * 2;
const RIP = VCPU.rip / 4;

/** `lock or qword [r15 + disp32], imm32 0` is these 4 bytes, disp32, imm32. */
const TOUCH_OPCODE = 0x8f8149f0;
const TOUCH_WORDS = 3;
/** mov r15, imm64; lock or qword [r15 + 0], 0 */
const AREA_TOUCH_BYTES = 22;
/** mov rax,cr3; mov cr3,rax; pop r15; pop rax; iretq */
const TAIL_FLUSH = [0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8];
const TAIL_RESUME = [0x41, 0x5f, 0x58, 0x48, 0xcf];
/** out PORT_STORES_DONE, al; hlt */
const TAIL_OUT = [0xe6, PORT_STORES_DONE, 0xf4];
const IRETQ_IN_TAIL = 3;
/** Page-table stores that one resume takes; the rest of the resume pages is for area stores and the tail. */
const TOUCHES_MAX = Math.floor((RESUME_PAGES * 4096 - 1024) / (TOUCH_WORDS * 4));
const AREA_TOUCHES_MAX = 16;
/** Frame of the resume code: r15, rax, rip, cs, rflags, rsp, ss. */
const FRAME_BYTES = 7 * 8;

export class ResumeCode {
  readonly #file: VcpuFile;
  readonly #alone: AloneRunner;
  readonly #b: Uint32Array;
  readonly #r: Uint32Array;
  readonly #a: Uint32Array;
  readonly #a8: Uint8Array;
  /** The resume pages: byte offset and word index in the area, and where ring 0 sees them. */
  readonly #codeOffset: number;
  readonly #codeWord: number;
  readonly #codeLo: number;
  readonly #frameWord: number;
  readonly #frameLo: number;
  /** Page-table stores written as code into the resume pages. */
  #touches = 0;
  #lastTouch = -1;
  readonly #areaTouches = new Uint32Array(AREA_TOUCHES_MAX);
  #areaTouchCount = 0;
  #flushPending = false;
  #iretLo = 0;

  constructor(views: VcpuViews, file: VcpuFile, alone: AloneRunner) {
    const window = views.window;
    this.#file = file;
    this.#alone = alone;
    this.#b = views.block;
    this.#r = views.run;
    this.#a = views.area;
    this.#a8 = views.areaBytes;
    this.#codeOffset = window.resumeOffset;
    this.#codeWord = window.resumeOffset / 4;
    this.#codeLo = windowResumeVaLo(window);
    this.#frameWord = (window.stackOffset + 4096 - FRAME_BYTES) / 4;
    this.#frameLo = windowStackTopVaLo(window) - FRAME_BYTES;
  }

  /** A page-table entry was stored at this offset of memory 0. */
  stored(offset: number): void {
    if (offset === this.#lastTouch) return;
    if (this.#touches === TOUCHES_MAX) this.#showStores();
    const w = this.#codeWord + this.#touches * TOUCH_WORDS;
    const a = this.#a;
    a[w] = TOUCH_OPCODE;
    a[w + 1] = (offset & ~7) - 0x80000000;
    a[w + 2] = 0;
    this.#touches++;
    this.#lastTouch = offset;
  }

  /** An entry of the area's own tables was stored; the low word of its address. */
  areaStored(vaLo: number): void {
    if (this.#areaTouchCount === AREA_TOUCHES_MAX) this.#showStores();
    this.#areaTouches[this.#areaTouchCount++] = vaLo;
  }

  /** The translations must be forgotten. */
  flush(): void {
    this.#flushPending = true;
  }

  /** Entering the guest with this root must go through the resume code. A root that KVM does not have loaded flushes by itself. */
  isNeeded(rootLo: number, rootHi: number): boolean {
    return (
      this.#touches !== 0 || this.#areaTouchCount !== 0 || (this.#flushPending && this.#file.hasRoot(rootLo, rootHi))
    );
  }

  /** The guest has been entered: nothing is pending. */
  settled(): void {
    this.#touches = 0;
    this.#lastTouch = -1;
    this.#areaTouchCount = 0;
    this.#flushPending = false;
  }

  /** Makes the next KVM_RUN start in the resume code, which goes on to the block's rip with these selectors and flags. */
  enterGuest(cs: number, rflags: number, ss: number): void {
    const a = this.#a;
    const b = this.#b;
    const f = this.#frameWord;
    a[f] = b[GPR + 30]; // r15
    a[f + 1] = b[GPR + 31];
    a[f + 2] = b[GPR]; // rax
    a[f + 3] = b[GPR + 1];
    a[f + 4] = b[RIP];
    a[f + 5] = b[RIP + 1];
    a[f + 6] = cs;
    a[f + 7] = 0;
    a[f + 8] = rflags;
    a[f + 9] = 0;
    a[f + 10] = b[RSP_WORD];
    a[f + 11] = b[RSP_WORD + 1];
    a[f + 12] = ss;
    a[f + 13] = 0;
    this.#writeTail(TAIL_RESUME);
    this.#start();
  }

  /** An address of ring 0 is in the resume pages. */
  contains(lo: number, hi: number): boolean {
    const at = lo - this.#codeLo;
    return at >= 0 && at < RESUME_PAGES * 4096 && hi === AREA_VA_HI;
  }

  /** An address of ring 0 is the IRETQ that enters the guest. */
  isIret(lo: number, hi: number): boolean {
    return lo === this.#iretLo && hi === AREA_VA_HI;
  }

  /** Runs the touches now, on the engine's own root; the guest's state stands in the block. */
  #showStores(): void {
    if (!this.#file.usable()) {
      this.#touches = 0;
      this.#areaTouchCount = 0;
      return;
    }
    this.#writeTail(TAIL_OUT);
    this.#start();
    // When it fails the vCPU is broken, and the next run says so; the list must not overflow.
    this.#alone.run();
    this.settled();
    this.#flushPending = true;
  }

  /** Writes what follows the touches into the resume pages. */
  #writeTail(tail: readonly number[]): void {
    const a = this.#a8;
    let at = this.#codeOffset + this.#touches * TOUCH_WORDS * 4;
    for (let i = 0; i < this.#areaTouchCount; i++) {
      const vaLo = this.#areaTouches[i];
      a[at] = 0x49;
      a[at + 1] = 0xbf;
      a[at + 2] = vaLo;
      a[at + 3] = vaLo >>> 8;
      a[at + 4] = vaLo >>> 16;
      a[at + 5] = vaLo >>> 24;
      a[at + 6] = AREA_VA_HI & 0xff;
      a[at + 7] = (AREA_VA_HI >>> 8) & 0xff;
      a[at + 8] = 0xff;
      a[at + 9] = 0xff;
      a[at + 10] = 0xf0;
      a[at + 11] = 0x49;
      a[at + 12] = 0x81;
      a[at + 13] = 0x8f;
      for (let zero = 14; zero < AREA_TOUCH_BYTES; zero++) a[at + zero] = 0;
      at += AREA_TOUCH_BYTES;
    }
    for (let i = 0; i < TAIL_FLUSH.length; i++) a[at + i] = TAIL_FLUSH[i];
    at += TAIL_FLUSH.length;
    for (let i = 0; i < tail.length; i++) a[at + i] = tail[i];
    this.#iretLo = this.#codeLo + (at - this.#codeOffset) + IRETQ_IN_TAIL;
  }

  #start(): void {
    const r = this.#r;
    writeRing0Segments(r);
    r[REGS_RIP_W] = this.#codeLo;
    r[REGS_RIP_W + 1] = AREA_VA_HI;
    r[REGS_RSP_W] = this.#frameLo;
    r[REGS_RSP_W + 1] = AREA_VA_HI;
    r[REGS_RFLAGS_W] = 2;
    r[REGS_RFLAGS_W + 1] = 0;
    // Middle of the direct map, so that a signed 32-bit displacement reaches all of memory 0.
    r[REGS_R15_W] = 0x80000000;
    r[REGS_R15_W + 1] = DIRECT_MAP_VA_HI;
  }
}
