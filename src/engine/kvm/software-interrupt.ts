/**
 * INT n and SYSCALL of 32-bit code on a KVM where they are #UD (see kvm-vcpu.ts): makes of the #UD what the CPU would have done.
 * It reads the instruction in the guest's address space; a guest that changes it meanwhile deceives only itself.
 */

import { NO_ROOT, R11, RCX, VCPU } from '../../machine/vcpu-block.ts';
import type { ExitKind } from '../engine.ts';
import { EXIT_EXCEPTION, EXIT_SYSCALL } from '../engine.ts';
import type { DescriptorTables } from './descriptor-tables.ts';
import { walk } from './guest-walk.ts';
import { USER_GATES } from './hypervisor-area.ts';
import type { VcpuViews } from './vcpu-views.ts';

// Word indexes of the vCPU block.
const GPR = VCPU.gpr / 4;
const RIP = VCPU.rip / 4;
const RFLAGS = VCPU.rflags / 4;
const CS = VCPU.cs / 4;
const EXIT_VECTOR = VCPU.exitVector / 4;
const EXIT_ERROR_CODE = VCPU.exitErrorCode / 4;
const USER_MODE = VCPU.userMode / 4;
const KERNEL_ROOT = VCPU.kernelRoot / 4;
const USER_ROOT = VCPU.userRoot / 4;

const VECTOR_BP = 3;
const VECTOR_OF = 4;
const VECTOR_GP = 13;
const RFLAGS_OF = 0x800;
const RFLAGS_RF = 0x10000;

export class SoftwareInterrupts {
  readonly #views: VcpuViews;
  readonly #b: Uint32Array;
  readonly #tables: DescriptorTables;

  constructor(views: VcpuViews, tables: DescriptorTables) {
    this.#views = views;
    this.#b = views.block;
    this.#tables = tables;
  }

  /**
   * An #UD at INT n becomes the interrupt where its gate allows CPL 3, and #GP(n * 8 + 2) elsewhere; at SYSCALL of 32-bit code it
   * becomes the call, as on an AMD CPU. The exit stands in the block, and is changed there.
   */
  exit(): ExitKind {
    const b = this.#b;
    const opcode = this.#codeByte(0);
    if (opcode === 0xcc || (opcode === 0xce && !this.#tables.isLongCode(b[CS]) && (b[RFLAGS] & RFLAGS_OF) !== 0)) {
      this.#skip(1);
      b[EXIT_VECTOR] = opcode === 0xcc ? VECTOR_BP : VECTOR_OF;
      return EXIT_EXCEPTION;
    }
    if (opcode !== 0xcd && opcode !== 0x0f) return EXIT_EXCEPTION;
    const operand = this.#codeByte(1);
    if (opcode === 0x0f) {
      if (operand !== 0x05 || this.#tables.isLongCode(b[CS])) return EXIT_EXCEPTION;
      this.#skip(2);
      b[GPR + RCX * 2] = b[RIP];
      b[GPR + RCX * 2 + 1] = 0;
      b[GPR + R11 * 2] = b[RFLAGS];
      b[GPR + R11 * 2 + 1] = 0;
      return EXIT_SYSCALL;
    }
    if (operand < 0) return EXIT_EXCEPTION;
    if (USER_GATES.includes(operand)) {
      this.#skip(2);
      b[EXIT_VECTOR] = operand;
      b[EXIT_ERROR_CODE] = 0;
    } else {
      b[EXIT_VECTOR] = VECTOR_GP;
      b[EXIT_ERROR_CODE] = operand * 8 + 2;
    }
    return EXIT_EXCEPTION;
  }

  /** Past an instruction that is not run again. */
  #skip(bytes: number): void {
    const b = this.#b;
    const rip = b[RIP] + bytes;
    b[RIP] = rip;
    if (rip > 0xffffffff) b[RIP + 1] = b[RIP + 1] + 1;
    b[RFLAGS] = b[RFLAGS] & ~RFLAGS_RF;
  }

  /** The byte at rip + index (index below 4096), or -1. */
  #codeByte(index: number): number {
    const b = this.#b;
    const sum = b[RIP] + index;
    const root = b[USER_MODE] !== 0 && b[USER_ROOT] !== NO_ROOT ? b[USER_ROOT] : b[KERNEL_ROOT];
    const vaLo = sum >>> 0;
    const frame = walk(this.#views, root, vaLo, sum > 0xffffffff ? (b[RIP + 1] + 1) >>> 0 : b[RIP + 1]);
    if (frame < 0) return -1;
    const offset = frame * 4096 + (vaLo & 0xfff);
    return (this.#views.memory[offset >>> 2] >>> ((offset & 3) * 8)) & 0xff;
  }
}
