/**
 * Registers that no guest code writes by itself: what they are from the start (TR, GDT, IDT, control registers, MSRs of SYSCALL), and
 * the two kinds that change on the guest's behalf (XCR0, debug registers).
 */

import { VCPU } from '../../machine/vcpu-block.ts';
import {
  CR0_BASE,
  CR4_BASE,
  CR4_FSGSBASE,
  CR4_OSXSAVE,
  DEBUGREGS_BYTES,
  EFER_BASE,
  KVM_GET_DEBUGREGS,
  KVM_GET_SREGS,
  KVM_SET_DEBUGREGS,
  KVM_SET_MSRS,
  KVM_SET_XCRS,
  MSR_CSTAR,
  MSR_LSTAR,
  MSR_STAR,
  MSR_SYSCALL_MASK,
  RUN_SREGS,
  RUN_VALID_REGS_W,
  SREGS_CR0_W,
  SREGS_CR4_W,
  SREGS_EFER_W,
  SREGS_GDT_W,
  SREGS_IDT_W,
  SREGS_TR_W,
  SYNC_ALL,
  SYSCALL_MASK,
  XCRS_BYTES,
} from './abi.ts';
import { listedLeaf } from './cpuid-list.ts';
import type { VcpuWindow } from './hypervisor-area.ts';
import {
  AREA_VA_HI,
  CSTAR_VA_LO,
  FLAT_CS32,
  IDT_VA_LO,
  LSTAR_VA_LO,
  RING0_CS,
  TSS_SELECTOR,
  windowTssVaLo,
} from './hypervisor-area.ts';
import type { VcpuFile } from './vcpu-file.ts';

// Word indexes of the vCPU block.
const DR = VCPU.dr / 4;

/** What CR4 is but for the bits that are the guest's. KVM refuses those that it does not list. */
export function cr4Base(cpuidList: Uint32Array): number {
  let cr4 = CR4_BASE;
  if ((listedLeaf(cpuidList, 1).ecx & (1 << 26)) !== 0) cr4 |= CR4_OSXSAVE;
  if ((listedLeaf(cpuidList, 7).ebx & 1) !== 0) cr4 |= CR4_FSGSBASE;
  return cr4;
}

/** After the CPUID list. KVM takes the registers with the first run. */
export function initialiseSystemRegisters(file: VcpuFile, window: VcpuWindow, cr4: number): void {
  const r = file.run;
  file.host.ioctl(file.fd, KVM_GET_SREGS, file.runAddress + RUN_SREGS);
  r[SREGS_TR_W] = windowTssVaLo(window);
  r[SREGS_TR_W + 1] = AREA_VA_HI;
  r[SREGS_TR_W + 2] = 0x67;
  r[SREGS_TR_W + 3] = 0x010b0000 | TSS_SELECTOR;
  r[SREGS_TR_W + 4] = 0;
  r[SREGS_TR_W + 5] = 0;
  r[SREGS_GDT_W] = window.vaLo;
  r[SREGS_GDT_W + 1] = AREA_VA_HI;
  r[SREGS_GDT_W + 2] = 0xffff;
  r[SREGS_IDT_W] = IDT_VA_LO;
  r[SREGS_IDT_W + 1] = AREA_VA_HI;
  r[SREGS_IDT_W + 2] = 0xfff;
  r[SREGS_CR0_W] = CR0_BASE;
  r[SREGS_CR4_W] = cr4;
  r[SREGS_EFER_W] = EFER_BASE;
  r[RUN_VALID_REGS_W] = SYNC_ALL;

  // struct kvm_msrs { u32 nmsrs, pad; { u32 index, reserved; u64 data }[] }
  const msrs: readonly (readonly [number, number, number])[] = [
    [MSR_STAR, 0, ((FLAT_CS32 << 16) | RING0_CS) >>> 0],
    [MSR_LSTAR, LSTAR_VA_LO, AREA_VA_HI],
    [MSR_CSTAR, CSTAR_VA_LO, AREA_VA_HI],
    [MSR_SYSCALL_MASK, SYSCALL_MASK, 0],
  ];
  const list = new Uint32Array(2 + msrs.length * 4);
  list[0] = msrs.length;
  msrs.forEach(([index, lo, hi], i) => {
    list.set([index, 0, lo, hi], 2 + i * 4);
  });
  file.host.ioctl(file.fd, KVM_SET_MSRS, file.host.addressOf(new Uint8Array(list.buffer)));
}

/** True when KVM took the value. */
export function setXcr0(file: VcpuFile, value: number): boolean {
  const xcrs = new Uint32Array(XCRS_BYTES / 4);
  xcrs[0] = 1;
  xcrs[4] = value;
  return file.host.ioctl(file.fd, KVM_SET_XCRS, file.host.addressOf(new Uint8Array(xcrs.buffer))) === 0;
}

/** Between the block and KVM, which has them in no synchronised register. */
export class DebugRegisters {
  readonly #file: VcpuFile;
  readonly #b: Uint32Array;
  readonly #words = new Uint32Array(DEBUGREGS_BYTES / 4);
  readonly #address: number;

  constructor(file: VcpuFile, block: Uint32Array) {
    this.#file = file;
    this.#b = block;
    this.#address = file.host.addressOf(new Uint8Array(this.#words.buffer));
  }

  load(): void {
    const b = this.#b;
    const d = this.#words;
    d.fill(0);
    for (let i = 0; i < 8; i++) d[i] = b[DR + i];
    d[8] = b[DR + 12];
    d[10] = b[DR + 14];
    this.#file.host.ioctl(this.#file.fd, KVM_SET_DEBUGREGS, this.#address);
  }

  /** DR6 alone changes by itself. */
  saveStatus(): void {
    this.#file.host.ioctl(this.#file.fd, KVM_GET_DEBUGREGS, this.#address);
    this.#b[DR + 12] = this.#words[8];
    this.#b[DR + 13] = 0;
  }
}
