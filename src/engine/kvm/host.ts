/**
 * Every call that leaves JavaScript: libc through koffi, and nothing else.
 *
 * A wrong address or length here corrupts the process, so nothing outside engine/kvm imports this file and every buffer passed is
 * owned by the caller for the time of the call. koffi is an optional dependency: `loadHost` says in one sentence why it is missing.
 *
 * The kick signal's handler is the address of a harmless libc function (`getppid`), never a JavaScript callback: it only has to
 * exist so that the signal interrupts KVM_RUN instead of killing the process.
 */

import { createRequire } from 'node:module';
import { CLOCK_MONOTONIC, KICK_SIGNAL, SA_RESTART, SIGEV_THREAD_ID, TIMER_ABSTIME } from './abi.ts';

type ForeignFunction = (...parameters: readonly (number | string)[]) => number | bigint;

interface Koffi {
  load(path: null): { func(definition: string): ForeignFunction };
  address(object: Uint8Array): bigint;
  view(address: number, sizeBytes: number): ArrayBuffer;
  errno(): number;
}

/** Addresses are numbers: user addresses have 47 bits. */
export interface Host {
  open(path: string, flags: number): number;
  close(fd: number): number;
  ioctl(fd: number, request: number, argument: number): number;
  mmap(sizeBytes: number, protection: number, flags: number, fd: number): number;
  munmap(address: number, sizeBytes: number): number;
  gettid(): number;
  tgkill(pid: number, tid: number, signal: number): number;
  /** Installs the do-nothing handler of the kick signal for this process. */
  installKickHandler(): void;
  /** A timer that sends the kick signal to the calling thread; its id, or -1. */
  createThreadTimer(): number;
  /** Fires at the monotonic time, then every millisecond; 0 disarms. */
  armTimer(timer: number, monotonicNs: number): void;
  deleteTimer(timer: number): void;
  errno(): number;
  addressOf(bytes: Uint8Array): number;
  /** An ArrayBuffer over memory at an address. The memory must stay mapped while the buffer is used. */
  view(address: number, sizeBytes: number): ArrayBuffer;
}

export type LoadedHost = { readonly host: Host } | { readonly reason: string };

/** After the first expiry the timer fires again each millisecond, so that a signal lost just before KVM_RUN is repaired. */
const TIMER_REPEAT_NS = 1_000_000;

function bind(koffi: Koffi): Host {
  const libc = koffi.load(null);
  const open = libc.func('int open(const char*, int)');
  const close = libc.func('int close(int)');
  const ioctl = libc.func('int ioctl(int, unsigned long, uint64_t)') as (
    fd: number,
    request: number,
    argument: number,
  ) => number;
  const mmap = libc.func('uint64_t mmap(uint64_t, uint64_t, int, int, int, int64_t)');
  const munmap = libc.func('int munmap(uint64_t, uint64_t)');
  const gettid = libc.func('int gettid()');
  const tgkill = libc.func('int tgkill(int, int, int)');
  const dlsym = libc.func('uint64_t dlsym(uint64_t, const char*)');
  const sigaction = libc.func('int sigaction(int, uint64_t, uint64_t)');
  const timerCreate = libc.func('int timer_create(int, uint64_t, uint64_t)');
  const timerSettime = libc.func('int timer_settime(uint64_t, int, uint64_t, uint64_t)');
  const timerDelete = libc.func('int timer_delete(uint64_t)');
  const addressOf = (bytes: Uint8Array): number => Number(koffi.address(bytes));

  // struct itimerspec { { i64 sec, i64 nsec } interval, value }
  const itimerspec = new Uint32Array(8);
  const itimerspecAddress = addressOf(new Uint8Array(itimerspec.buffer));

  return {
    open: (path, flags) => Number(open(path, flags)),
    close: (fd) => Number(close(fd)),
    ioctl,
    mmap: (sizeBytes, protection, flags, fd) => {
      const address = mmap(0, sizeBytes, protection, flags, fd, 0);
      return typeof address === 'bigint' ? -1 : address; // MAP_FAILED is ~0, beyond 2^53
    },
    munmap: (address, sizeBytes) => Number(munmap(address, sizeBytes)),
    gettid: () => Number(gettid()),
    tgkill: (pid, tid, signal) => Number(tgkill(pid, tid, signal)),
    installKickHandler: () => {
      // struct sigaction { handler, mask[128], int flags, restorer }
      const action = new Uint32Array(152 / 4);
      const handler = Number(dlsym(0, 'getppid'));
      action[0] = handler >>> 0;
      action[1] = Math.floor(handler / 2 ** 32);
      action[136 / 4] = SA_RESTART;
      sigaction(KICK_SIGNAL, addressOf(new Uint8Array(action.buffer)), 0);
    },
    createThreadTimer: () => {
      // struct sigevent { value, int signo, int notify, int tid }
      const event = new Int32Array(16);
      event[2] = KICK_SIGNAL;
      event[3] = SIGEV_THREAD_ID;
      event[4] = Number(gettid());
      const id = new Int32Array(2);
      const failed = timerCreate(
        CLOCK_MONOTONIC,
        addressOf(new Uint8Array(event.buffer)),
        addressOf(new Uint8Array(id.buffer)),
      );
      return failed !== 0 ? -1 : (id[0] ?? -1);
    },
    armTimer: (timer, monotonicNs) => {
      itimerspec[2] = monotonicNs === 0 ? 0 : TIMER_REPEAT_NS;
      itimerspec[4] = Math.floor(monotonicNs / 1e9);
      itimerspec[6] = Math.floor(monotonicNs % 1e9);
      timerSettime(timer, TIMER_ABSTIME, itimerspecAddress, 0);
    },
    deleteTimer: (timer) => {
      timerDelete(timer);
    },
    errno: () => koffi.errno(),
    addressOf,
    view: (address, sizeBytes) => koffi.view(address, sizeBytes),
  };
}

let loaded: LoadedHost | undefined;

/** The bindings of this thread, loaded at the first call. */
export function loadHost(): LoadedHost {
  if (loaded !== undefined) return loaded;
  if (process.platform !== 'linux' || process.arch !== 'x64') {
    loaded = { reason: `KVM needs Linux on x86-64, and this is ${process.platform} on ${process.arch}` };
    return loaded;
  }
  let koffi: Koffi;
  try {
    koffi = createRequire(import.meta.url)('koffi') as Koffi;
  } catch (error) {
    const message = error instanceof Error ? (error.message.split('\n')[0] ?? '') : String(error);
    loaded = { reason: `the optional package koffi cannot be loaded (${message})` };
    return loaded;
  }
  loaded = { host: bind(koffi) };
  return loaded;
}

/** For code that runs only after `loadHost` succeeded in this process. */
export function requireHost(): Host {
  const result = loadHost();
  if ('reason' in result) throw new Error(`KVM engine: ${result.reason}`);
  return result.host;
}

/** System time on the engine's clock, CLOCK_MONOTONIC in ns. */
export function monotonicNs(): number {
  const [seconds, nanoseconds] = process.hrtime();
  return seconds * 1e9 + nanoseconds;
}
