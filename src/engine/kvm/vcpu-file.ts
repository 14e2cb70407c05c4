/**
 * The vCPU as the kernel sees it: its file descriptor, its kvm_run page, KVM_RUN, the timer of its thread, and the vCPU's side of a
 * kick.
 *
 * A kick (kicker.ts). The kicker sets a flag in the block, then looks at `inGuest`, then sets immediate_exit and sends the signal.
 * The vCPU sets `inGuest`, clears immediate_exit, then looks at the flags. So whatever the order, one of the two sees the other;
 * and whoever clears immediate_exit must look at the flags afterwards.
 */

import type { VcpuBlock } from '../../machine/vcpu-block.ts';
import { VCPU } from '../../machine/vcpu-block.ts';
import {
  EAGAIN,
  EINTR,
  KVM_CREATE_VCPU,
  KVM_RUN,
  MAP_SHARED,
  PROT_READ_WRITE,
  RUN_IMMEDIATE_EXIT,
  SREGS_CR3_W,
} from './abi.ts';
import type { Host } from './host.ts';
import { requireHost } from './host.ts';
import { lockRecord, RECORD_WORDS, REGISTRY, unlockRecord } from './registry.ts';
import type { KvmDomainHandle } from './vm.ts';
import { isVmClosed, releaseVcpu } from './vm.ts';

// Word indexes of the vCPU block.
const FLAGS = VCPU.flags / 4;
const IN_GUEST = VCPU.inGuest / 4;
const EXIT_COUNT = VCPU.exitCount / 4;

/** KVM_RUN calls in a row that end in ring 0 with nothing done. */
export const RERUNS_MAX = 100_000;

export class VcpuFile {
  readonly host: Host;
  readonly fd: number;
  /** Address of the kvm_run page, and the page. */
  readonly runAddress: number;
  readonly run: Uint32Array;
  readonly #runBytes: Uint8Array;
  readonly #handle: KvmDomainHandle;
  readonly #vcpuId: number;
  readonly #blockI32: Int32Array;
  readonly #registry: Int32Array;
  readonly #timer: number;
  #armedNs = 0;
  #open = true;
  /** Times that the kernel was not ready, one behind the other. */
  #again = 0;
  /** The root page table of the last KVM_RUN. */
  #rootLo = 0;
  #rootHi = 0;

  /** In the thread that will run the vCPU. Kickers do not know it before `publish()`. Throws when KVM refuses. */
  constructor(handle: KvmDomainHandle, block: VcpuBlock) {
    const host = requireHost();
    const vcpuId = block.vcpuId;
    this.host = host;
    this.#handle = handle;
    this.#vcpuId = vcpuId;
    this.#blockI32 = block.i32;
    const registry = new Int32Array(handle.registry);
    this.#registry = registry;
    const record = vcpuId * RECORD_WORDS;
    this.fd = host.ioctl(handle.vmFd, KVM_CREATE_VCPU, vcpuId);
    if (this.fd < 0) throw new Error(`KVM_CREATE_VCPU of vCPU ${vcpuId} failed with errno ${host.errno()}`);
    Atomics.store(registry, record + REGISTRY.fdPlusOne, this.fd + 1);
    this.runAddress = host.mmap(handle.runBytes, PROT_READ_WRITE, MAP_SHARED, this.fd);
    if (this.runAddress === -1) {
      const errno = host.errno();
      releaseVcpu(handle, vcpuId);
      throw new Error(`the kvm_run page of vCPU ${vcpuId} cannot be mapped (errno ${errno})`);
    }
    const page = host.view(this.runAddress, 4096);
    this.run = new Uint32Array(page);
    this.#runBytes = new Uint8Array(page);
    this.#timer = host.createThreadTimer();
    if (this.#timer >= 0) Atomics.store(registry, record + REGISTRY.timerPlusOne, this.#timer + 1);
  }

  /** Tells kickers where the vCPU is. */
  publish(): void {
    const registry = this.#registry;
    const record = this.#vcpuId * RECORD_WORDS;
    const locked = lockRecord(registry, this.#vcpuId);
    Atomics.store(registry, record + REGISTRY.runAddressLo, this.runAddress | 0);
    Atomics.store(registry, record + REGISTRY.runAddressHi, Math.floor(this.runAddress / 2 ** 32));
    Atomics.store(registry, record + REGISTRY.tid, this.host.gettid());
    if (locked) unlockRecord(registry, this.#vcpuId);
  }

  /** kvm_run is still mapped. */
  usable(): boolean {
    return this.#open && !isVmClosed(this.#registry, this.#handle.vcpus);
  }

  /** The kick signal comes at this time (ns); 0 = never. */
  armDeadline(deadlineNs: number): void {
    if (deadlineNs === this.#armedNs) return;
    this.#armedNs = deadlineNs;
    if (this.#timer >= 0) this.host.armTimer(this.#timer, deadlineNs);
  }

  /** Kicks count from now on. Returns the flags of the block, which the caller must obey before `enter()`. */
  entering(): number {
    this.#runBytes[RUN_IMMEDIATE_EXIT] = 0;
    Atomics.store(this.#blockI32, IN_GUEST, 1);
    return Atomics.load(this.#blockI32, FLAGS);
  }

  /** The same before a KVM_RUN that goes on with an interrupted one. */
  enteringAgain(): number {
    // Not a plain store: the CPU may look at the flags before it is seen, and then wipe out the kick that came between.
    Atomics.store(this.#runBytes, RUN_IMMEDIATE_EXIT, 0);
    return Atomics.load(this.#blockI32, FLAGS);
  }

  /**
   * KVM_RUN: 0, or the errno. EINTR too if the kernel was not ready (EAGAIN, as it was seen once behind a migration on a busy host): it has kept
   * all that it was told, and wants to be called again.
   */
  enter(): number {
    this.#rootLo = this.run[SREGS_CR3_W];
    this.#rootHi = this.run[SREGS_CR3_W + 1];
    const errno = this.host.ioctl(this.fd, KVM_RUN, 0) === 0 ? 0 : this.host.errno();
    if (errno !== EAGAIN) this.#again = 0;
    else if (++this.#again < RERUNS_MAX) return EINTR;
    return errno;
  }

  /** KVM has this root loaded: entering with it flushes nothing. */
  hasRoot(lo: number, hi: number): boolean {
    return lo === this.#rootLo && hi === this.#rootHi;
  }

  /** The guest is left: tell whoever waits for it. */
  left(): void {
    Atomics.store(this.#blockI32, IN_GUEST, 0);
    Atomics.add(this.#blockI32, EXIT_COUNT, 1);
    Atomics.notify(this.#blockI32, IN_GUEST);
  }

  /** The same after code of the engine's own, which is no exit of the guest. */
  leftAlone(): void {
    Atomics.store(this.#blockI32, IN_GUEST, 0);
    Atomics.notify(this.#blockI32, IN_GUEST);
  }

  /** Does nothing the second time. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    releaseVcpu(this.#handle, this.#vcpuId);
  }
}
