/**
 * The table that the threads of one KVM domain share: which thread runs which vCPU, and where its kvm_run page is.
 *
 * One record of RECORD_WORDS i32 words a vCPU. `lock` guards the others: a kicker writes into the kvm_run page of another thread,
 * and that page must not be unmapped meanwhile. It is held for one system call. The word after the last record is 1 once the VM is
 * closed.
 */

export const REGISTRY = {
  lock: 0,
  /** Kernel thread id; 0 = no such vCPU now. */
  tid: 1,
  runAddressLo: 2,
  runAddressHi: 3,
  /** vCPU file descriptor + 1; 0 = none. */
  fdPlusOne: 4,
  /** Timer id + 1; 0 = none. */
  timerPlusOne: 5,
} as const;

export const RECORD_WORDS = 8;

/** A holder that was terminated with its worker never unlocks: give up after this many waits of a millisecond. */
const LOCK_WAITS_MAX = 200;

export function createRegistry(vcpus: number): SharedArrayBuffer {
  return new SharedArrayBuffer((vcpus * RECORD_WORDS + 1) * 4);
}

/** False when the holder seems to be dead; the caller goes on without the lock but must unmap nothing. */
export function lockRecord(registry: Int32Array, vcpuId: number): boolean {
  const index = vcpuId * RECORD_WORDS + REGISTRY.lock;
  for (let waits = 0; waits < LOCK_WAITS_MAX; waits++) {
    if (Atomics.compareExchange(registry, index, 0, 1) === 0) return true;
    Atomics.wait(registry, index, 1, 1);
  }
  return false;
}

export function unlockRecord(registry: Int32Array, vcpuId: number): void {
  const index = vcpuId * RECORD_WORDS + REGISTRY.lock;
  Atomics.store(registry, index, 0);
  Atomics.notify(registry, index);
}
