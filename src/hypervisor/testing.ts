/**
 * For tests only: a small guest address space with a vCPU in it, and an engine that runs nothing.
 *
 * RAM page p is mapped writable at KERNEL_VA + p * 4096, page 0 read-only at READ_ONLY_VA as well. The page tables lie in the last
 * pages of RAM, so tests use the first ones. Nothing is mapped at UNMAPPED_VA. All these have the high word VA_HI.
 */

import {
  type CpuidResult,
  type Engine,
  type EngineFacts,
  type ExitKind,
  type Kicker,
  VECTOR_STATE_BYTES,
} from '../engine/engine.ts';
import { createMachineMemory, type MachineMemory, MFN_BASE, PAGE_SIZE } from '../machine/memory.ts';
import { PTE_A, PTE_D, PTE_P, PTE_RW, PTE_US } from '../machine/page-table.ts';
import { NO_ROOT, VCPU, VCPU_STATE_UP } from '../machine/vcpu-block.ts';
import type { CpuidSettings } from './cpuid-settings.ts';
import { createDomain, DOMAIN, type Domain } from './domain.ts';
import { type DomainLimits, NO_LIMITS } from './domain-limits.ts';
import type { ForeignDomains } from './foreign-domains.ts';
import { type Host, Vcpu } from './vcpu.ts';

export const VA_HI = 0xffffffff;
export const KERNEL_VA = 0x80000000;
export const READ_ONLY_VA = 0xa0000000;
export const UNMAPPED_VA = 0xb0000000;
/** High word of an address in Xen's hole. */
export const HOLE_HI = 0xffff8000;
export const TEST_DOMID = 5;
export const TEST_UUID = Uint8Array.from({ length: 16 }, (_, i) => i * 17);

/** Counts what it is asked to do. */
export class TestEngine implements Engine {
  readonly facts: EngineFacts = {
    name: 'wasm',
    tscKhz: 1_000_000,
    tscStable: true,
    xcr0Mask: 7,
    m2pVaLo: 0,
    m2pVaHi: HOLE_HI,
  };
  tlbFlushes = 0;
  pagesInvalidated = 0;
  entriesStored = 0;
  rootsPrepared: number[] = [];
  descriptorTableChanges = 0;
  xcr0Changes = 0;
  debugRegisterChanges = 0;
  runDeadlineNs = 0;
  readonly vectorState = new Uint8Array(VECTOR_STATE_BYTES);

  run(): ExitKind {
    throw new Error('a test engine does not run');
  }
  flushTlb(): void {
    this.tlbFlushes++;
  }
  invalidatePage(_vaLo: number, _vaHi: number): void {
    this.pagesInvalidated++;
  }
  pageTableStored(_offset: number): void {
    this.entriesStored++;
  }
  memoryStored(_offset: number, _size: number): void {}
  prepareRoot(offset: number): void {
    this.rootsPrepared.push(offset);
  }
  descriptorTablesChanged(): void {
    this.descriptorTableChanges++;
  }
  xcr0Changed(): void {
    this.xcr0Changes++;
  }
  debugRegistersChanged(): void {
    this.debugRegisterChanges++;
  }
  setRunDeadline(deadlineNs: number): void {
    this.runDeadlineNs = deadlineNs;
  }
  readTsc(): { tscLo: number; tscHi: number; atNs: number } {
    return { tscLo: 0, tscHi: 0, atNs: 0 };
  }
  cpuid(_leaf: number, _subleaf: number): CpuidResult {
    return { eax: 0, ebx: 0, ecx: 0, edx: 0 };
  }
  saveVectorState(area: Uint8Array): void {
    area.set(this.vectorState.subarray(0, area.length));
  }
  loadVectorState(area: Uint8Array): void {
    this.vectorState.set(area.subarray(0, this.vectorState.length));
  }
  describeError(): string {
    return '';
  }
  statistics(): string[] {
    return [];
  }
  close(): void {}
}

export interface TestGuestOptions {
  readonly ramPages?: number;
  readonly maxPages?: number;
  readonly vcpus?: number;
  readonly cpuid?: CpuidSettings;
  readonly domid?: number;
  readonly foreign?: ForeignDomains | null;
  readonly limits?: Partial<DomainLimits>;
}

export class TestGuest {
  readonly machine: MachineMemory;
  readonly domain: Domain;
  readonly engine = new TestEngine();
  readonly vcpu: Vcpu;
  /** vCPU ids that were kicked. */
  readonly kicks: number[] = [];
  readonly log: string[] = [];
  /** What the host's clock says. */
  nowNs = 0;
  /** CPU time that the vCPU's thread has used. */
  threadCpuNs = 0;
  /** The host takes pages back. */
  canDiscard = false;
  /** First page and count of what was given back. */
  readonly discards: [number, number][] = [];
  /** Frame of the L4 table. */
  readonly root: number;
  #nextTable: number;

  constructor(options: TestGuestOptions = {}) {
    const { ramPages = 64, maxPages = ramPages, vcpus = 1, domid = TEST_DOMID, foreign = null, cpuid } = options;
    this.machine = createMachineMemory(ramPages, maxPages);
    this.domain = createDomain(this.machine, domid, vcpus, TEST_UUID, cpuid, { ...NO_LIMITS, ...options.limits });
    this.domain.i32[DOMAIN.vcpusUp >> 2] = 1;
    this.#nextTable = ramPages - 1;
    this.root = this.#nextTable--;
    for (const { u32, vcpuId } of this.domain.vcpus) {
      u32[VCPU.kernelRoot >> 2] = this.root;
      u32[VCPU.userRoot >> 2] = NO_ROOT;
      u32[VCPU.vcpuInfo >> 2] = this.machine.layout.sharedInfoOffset + vcpuId * 64;
    }
    this.domain.vcpus[0].u32[VCPU.state >> 2] = VCPU_STATE_UP;
    this.domain.vcpus[0].u32[VCPU.initialised >> 2] = 1;
    for (let pfn = 0; pfn < ramPages; pfn++) this.map(KERNEL_VA + pfn * PAGE_SIZE, VA_HI, pfn + MFN_BASE);
    this.map(READ_ONLY_VA, VA_HI, MFN_BASE, PTE_P | PTE_US | PTE_A);
    const kicker: Kicker = { kick: (id) => this.kicks.push(id) };
    const host: Host = {
      monotonicNs: () => this.nowNs,
      log: (line) => this.log.push(line),
      foreign,
      threadCpuNs: () => this.threadCpuNs,
      shares: null,
      tellCode: () => {},
      discard: (offset, sizeBytes) => {
        this.discards.push([offset / PAGE_SIZE, sizeBytes / PAGE_SIZE]);
        if (this.canDiscard) this.machine.u8.fill(0, offset, offset + sizeBytes);
        return this.canDiscard;
      },
    };
    this.vcpu = new Vcpu(this.domain, 0, this.engine, kicker, host);
  }

  /** Maps one page, with new tables where there are none. Returns the offset of the L1 entry. */
  map(vaLo: number, vaHi: number, mfn: number, flags = PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D): number {
    const u32 = this.machine.u32;
    const indexes = [
      (vaHi >>> 7) & 511,
      ((vaHi & 0x7f) << 2) | (vaLo >>> 30),
      (vaLo >>> 21) & 511,
      (vaLo >>> 12) & 511,
    ];
    let table = this.root * PAGE_SIZE;
    for (let level = 4; level > 1; level--) {
      const at = (table + indexes[4 - level] * 8) >>> 2;
      if ((u32[at] & PTE_P) === 0)
        this.#store(at, this.#nextTable-- + MFN_BASE, PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D);
      table = (u32[at + 1] * 0x100000 + (u32[at] >>> 12) - MFN_BASE) * PAGE_SIZE;
    }
    const entry = table + indexes[3] * 8;
    this.#store(entry >>> 2, mfn, flags);
    return entry;
  }

  #store(at: number, mfn: number, flags: number): void {
    this.machine.u32[at] = ((mfn << 12) | flags) >>> 0;
    this.machine.u32[at + 1] = Math.floor(mfn / 0x100000);
  }

  /** Words at a KERNEL_VA address, which is where page p is at p * 4096. */
  setWords(vaLo: number, words: readonly number[]): void {
    words.forEach((word, i) => {
      this.machine.u32[((vaLo - KERNEL_VA) >>> 2) + i] = word;
    });
  }

  word(vaLo: number): number {
    return this.machine.u32[(vaLo - KERNEL_VA) >>> 2];
  }

  words(vaLo: number, count: number): number[] {
    return Array.from({ length: count }, (_, i) => this.word(vaLo + i * 4));
  }

  /** The low halfword at an address, signed: a grant table status. */
  s16(vaLo: number): number {
    const at = vaLo - KERNEL_VA;
    return ((this.machine.u8[at] | (this.machine.u8[at + 1] << 8)) << 16) >> 16;
  }

  text(vaLo: number, size: number): string {
    const at = vaLo - KERNEL_VA;
    let text = '';
    for (let i = 0; i < size && this.machine.u8[at + i] !== 0; i++)
      text += String.fromCharCode(this.machine.u8[at + i]);
    return text;
  }

  /**
   * Calls a handler: a number is one argument (a negative one is sign-extended), a pair of them [low, high]. An address of this
   * address space is `va(lo)`.
   */
  call(handler: (v: Vcpu) => number, ...args: readonly (number | readonly [number, number])[]): number {
    const words = this.vcpu.args.fill(0);
    args.forEach((arg, i) => {
      words[i * 2] = typeof arg === 'number' ? arg : arg[0];
      words[i * 2 + 1] = typeof arg === 'number' ? (arg < 0 ? VA_HI : Math.floor(arg / 0x100000000)) : arg[1];
    });
    return handler(this.vcpu);
  }
}

/** An address with the high word of this address space, as an argument of `call`. */
export function va(lo: number): readonly [number, number] {
  return [lo, VA_HI];
}
