/**
 * Exceptions: an exit by one of the exception stubs becomes EXIT_EXCEPTION.
 *
 * The CPU has left its frame on the ring-0 stack, or on an IST stack, and the stub tells the vector by its address. Nothing of that is
 * believed before it is checked: a guest that wrote to the engine's area by page tables of its own may have brought anything about.
 */

import { VCPU } from '../../machine/vcpu-block.ts';
import type { ExitKind } from '../engine.ts';
import { EXIT_EXCEPTION, EXIT_SYSCALL } from '../engine.ts';
import { REGS_RIP_W, REGS_RSP_W, SREGS_CR2_W } from './abi.ts';
import {
  AREA_VA_HI,
  CSTAR_VA_LO,
  IST_VECTORS,
  istTop,
  LSTAR_VA_LO,
  STUBS_VA_LO,
  windowIstVaLo,
  windowStackTopVaLo,
} from './hypervisor-area.ts';
import { DETAIL_RING0_FAULT, hex, type InternalError } from './internal-error.ts';
import type { Registers } from './registers.ts';
import type { ResumeCode } from './resume-code.ts';
import type { Segments } from './segments.ts';
import type { SoftwareInterrupts } from './software-interrupt.ts';
import type { DebugRegisters } from './system-registers.ts';
import type { VcpuViews } from './vcpu-views.ts';

// Word indexes of the vCPU block.
const RSP_WORD = VCPU.gpr / 4 + 4 * 2;
const RIP = VCPU.rip / 4;
const RFLAGS = VCPU.rflags / 4;
const CS = VCPU.cs / 4;
const SS = VCPU.ss / 4;
const CR2 = VCPU.cr2 / 4;
const EXIT_VECTOR = VCPU.exitVector / 4;
const EXIT_ERROR_CODE = VCPU.exitErrorCode / 4;

/** Vectors whose exception pushes an error code: 8, 10-14, 17, 21, 29, 30. Source: AMD64 APM vol. 2, table 8-1. */
const ERROR_CODE_VECTORS = 0x60227d00;
const VECTOR_DB = 1;
const VECTOR_UD = 6;
const VECTOR_GP = 13;
const VECTOR_PF = 14;
export const RFLAGS_IF = 0x200;

/** The parts of the vCPU that an exception goes through. */
export interface ExceptionParts {
  readonly registers: Registers;
  readonly segments: Segments;
  readonly resume: ResumeCode;
  readonly debug: DebugRegisters;
  /** Null where KVM delivers software interrupts by itself. */
  readonly software: SoftwareInterrupts | null;
  readonly error: InternalError;
}

export class Exceptions {
  readonly #b: Uint32Array;
  readonly #r: Uint32Array;
  readonly #a: Uint32Array;
  readonly #registers: Registers;
  readonly #segments: Segments;
  readonly #resume: ResumeCode;
  readonly #debug: DebugRegisters;
  readonly #software: SoftwareInterrupts | null;
  readonly #error: InternalError;
  /** Tops of the stacks, as ring 0 sees them and as word indexes in the area. */
  readonly #stackTopLo: number;
  readonly #stackTopWord: number;
  readonly #istLo: number;
  readonly #istOffset: number;

  constructor(views: VcpuViews, parts: ExceptionParts) {
    this.#b = views.block;
    this.#r = views.run;
    this.#a = views.area;
    this.#registers = parts.registers;
    this.#segments = parts.segments;
    this.#resume = parts.resume;
    this.#debug = parts.debug;
    this.#software = parts.software;
    this.#error = parts.error;
    this.#stackTopLo = windowStackTopVaLo(views.window);
    this.#stackTopWord = (views.window.stackOffset + 4096) / 4;
    this.#istLo = windowIstVaLo(views.window);
    this.#istOffset = views.window.istOffset;
  }

  /** #GP on the way into the guest, as if IRET had failed: the block stays as it was. */
  refuse(errorCode: number): ExitKind {
    this.#segments.forget();
    this.#b[EXIT_VECTOR] = VECTOR_GP;
    this.#b[EXIT_ERROR_CODE] = errorCode;
    return EXIT_EXCEPTION;
  }

  /** The exit of a stub. */
  exit(): ExitKind {
    const b = this.#b;
    const r = this.#r;
    const a = this.#a;
    const stub = r[REGS_RIP_W] - STUBS_VA_LO;
    const vector = stub >> 4;
    if (stub < 0 || vector > 255 || r[REGS_RIP_W + 1] !== AREA_VA_HI) {
      return this.#error.fail(DETAIL_RING0_FAULT, 'an exception outside the stubs');
    }
    const hasErrorCode = vector < 32 && ((ERROR_CODE_VECTORS >>> vector) & 1) !== 0;
    const frameBytes = hasErrorCode ? 48 : 40;
    let topLo = this.#stackTopLo;
    let topWord = this.#stackTopWord;
    const ist = vector === VECTOR_DB ? 0 : vector < 32 ? IST_VECTORS.indexOf(vector) : -1;
    if (ist >= 0) {
      topLo = this.#istLo + istTop(ist);
      topWord = (this.#istOffset + istTop(ist)) / 4;
    }
    const rspLo = r[REGS_RSP_W];
    if (r[REGS_RSP_W + 1] !== AREA_VA_HI || rspLo > topLo - frameBytes || rspLo < topLo - 1024) {
      return this.#error.fail(
        DETAIL_RING0_FAULT | vector,
        `exception ${vector} on a stack at ${hex(r[REGS_RSP_W + 1], rspLo)}`,
      );
    }
    let f = topWord - ((topLo - rspLo) >> 2);
    let errorCode = 0;
    if (hasErrorCode) {
      errorCode = a[f];
      f += 2;
    }
    const frameRip = a[f];
    const frameCs = a[f + 2] & 0xffff;
    const inArea = a[f + 1] === AREA_VA_HI;
    if ((frameCs & 3) === 0) {
      if (this.#resume.isIret(frameRip, a[f + 1])) return this.refuse(errorCode);
      if (!(inArea && vector === VECTOR_DB && (frameRip === LSTAR_VA_LO || frameRip === CSTAR_VA_LO))) {
        return this.#error.fail(
          DETAIL_RING0_FAULT | vector,
          `exception ${vector} in ring 0 at ${hex(a[f + 1], frameRip)}, error code ${errorCode.toString(16)}, ` +
            `cr2 ${hex(r[SREGS_CR2_W + 1], r[SREGS_CR2_W])}`,
        );
      }
    }
    this.#registers.save();
    b[RSP_WORD] = a[f + 6];
    b[RSP_WORD + 1] = a[f + 7];
    if ((frameCs & 3) === 0) {
      // A trap that SYSCALL under single step left for the entry stub: the call counts.
      this.#registers.saveSyscallReturn();
      return EXIT_SYSCALL;
    }
    b[CS] = frameCs;
    b[SS] = a[f + 8] & 0xffff;
    if (vector === VECTOR_PF) {
      if (inArea && (a[f + 4] & RFLAGS_IF) === 0 && (frameRip === LSTAR_VA_LO || frameRip === CSTAR_VA_LO)) {
        this.#registers.saveSyscallReturn();
        return EXIT_SYSCALL;
      }
      b[CR2] = r[SREGS_CR2_W];
      b[CR2 + 1] = r[SREGS_CR2_W + 1];
    } else if (vector === VECTOR_DB) {
      this.#debug.saveStatus();
    }
    b[RIP] = frameRip;
    b[RIP + 1] = a[f + 1];
    b[RFLAGS] = a[f + 4];
    b[RFLAGS + 1] = 0;
    b[EXIT_VECTOR] = vector;
    b[EXIT_ERROR_CODE] = errorCode;
    return vector === VECTOR_UD && this.#software !== null ? this.#software.exit() : EXIT_EXCEPTION;
  }
}
