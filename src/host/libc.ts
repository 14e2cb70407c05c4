/**
/**
 * The system calls that the host's part needs beyond Node's, by libc through koffi: pseudo-terminals, pipes, memory that processes share or
 * give back, and the CPUs that a thread may use.
 *
 * koffi is an optional package. Without it, or on another system than Linux, `hostCalls()` gives null. A wrong address or length
 * here corrupts the process: callers own what they pass.
 * Source: ioctl(2), mmap(2), memfd_create(2), ioctl_tty(2), pipe(2), madvise(2), sched_setaffinity(2).
 */
import { closeSync, ftruncateSync } from 'node:fs';
import { createRequire } from 'node:module';

export interface HostCalls {
  /** `argument` is read and written. 0, or an errno. */
  ioctl(fd: number, request: number, argument: Uint8Array): number;
  /** A file without a name; its descriptor, or -1: there is no room for it, or a limit of this process forbids its size. */
  memfdCreate(name: string, sizeBytes: number): number;
  /**
   * Puts pages at `at` in place of what is there; 0, or an errno. `fd` -1: fresh zero pages of this process only. 'copy': what is
   * written stays in this process, and the file as it is.
   */
  mapAt(at: number, sizeBytes: number, fd: number, fileOffset: number, access: 'read' | 'write' | 'copy'): number;
  /** Maps a file from its beginning, to be written, where there is room; the address, or 0. */
  map(fd: number, sizeBytes: number): number;
  unmap(at: number, sizeBytes: number): void;
  /** The system finds the pages of a mapping as if they were written to; false if it cannot. Source: madvise(2), since Linux 5.14. */
  populate(at: number, sizeBytes: number): boolean;
  copy(to: number, from: number, sizeBytes: number): void;
  addressOf(bytes: Uint8Array): number;
  /** Gives whole pages back: they read as zeros. `bytes` must lie on page boundaries, and not be mapped as 'copy'. */
  discard(bytes: Uint8Array): boolean;
  /** Asks for pages of 2 MiB for whole pages of private memory; nothing if the kernel has none. Source: Documentation/admin-guide/mm/transhuge.rst. */
  askForHugePages(bytes: Uint8Array): void;
  /** Descriptors of a new pipe, not inherited and not waited for: to read, to write. Null if there are none left. */
  pipe(): readonly [number, number] | null;
  /** Lets a thread run on these CPUs only. False if the system refuses. */
  setAffinity(threadId: number, cpus: readonly number[]): boolean;
}

interface Koffi {
  load(path: null): { func(definition: string): (...parameters: readonly (number | bigint | string)[]) => unknown };
  address(object: Uint8Array): bigint;
  errno(): number;
}

/** Source: Linux include/uapi/asm-generic/mman-common.h, mman.h; include/uapi/linux/memfd.h. */
const PROT_READ = 1;
const PROT_WRITE = 2;
const MAP_SHARED = 1;
const MAP_PRIVATE = 2;
const MAP_FIXED = 0x10;
const MAP_ANONYMOUS = 0x20;
const MAP_NORESERVE = 0x4000;
const MAP_FAILED = 0xffffffffffffffffn;
const MFD_CLOEXEC = 1;
const MADV_DONTNEED = 4;
const MADV_REMOVE = 9;
const MADV_HUGEPAGE = 14;
const MADV_POPULATE_WRITE = 23;
/** Source: Linux include/uapi/asm-generic/fcntl.h. */
const O_NONBLOCK = 0x800;
const O_CLOEXEC = 0x80000;
/** Bytes of a cpu_set_t: 1024 CPUs. */
const CPU_SET_BYTES = 128;
export const CPUS_MAX = CPU_SET_BYTES * 8;

function bind(koffi: Koffi): HostCalls {
  const libc = koffi.load(null);
  const ioctl = libc.func('int ioctl(int, unsigned long, uint64_t)');
  const memfdCreate = libc.func('int memfd_create(const char*, unsigned int)');
  const mmap = libc.func('uint64_t mmap(uint64_t, uint64_t, int, int, int, int64_t)');
  const munmap = libc.func('int munmap(uint64_t, uint64_t)');
  const memcpy = libc.func('uint64_t memcpy(uint64_t, uint64_t, uint64_t)');
  const pipe2 = libc.func('int pipe2(uint64_t, int)');
  const madvise = libc.func('int madvise(uint64_t, uint64_t, int)');
  const schedSetaffinity = libc.func('int sched_setaffinity(int, uint64_t, uint64_t)');
  return {
    ioctl: (fd, request, argument) => (ioctl(fd, request, koffi.address(argument)) === -1 ? koffi.errno() : 0),
    memfdCreate: (name, sizeBytes) => {
      const fd = Number(memfdCreate(name, MFD_CLOEXEC));
      if (fd < 0) return -1;
      try {
        ftruncateSync(fd, sizeBytes);
        return fd;
      } catch {
        closeSync(fd);
        return -1;
      }
    },
    mapAt: (at, sizeBytes, fd, fileOffset, access) => {
      const protection = access === 'read' ? PROT_READ : PROT_READ | PROT_WRITE;
      const kind = access === 'copy' ? MAP_PRIVATE | MAP_NORESERVE : MAP_SHARED;
      const flags = MAP_FIXED | (fd === -1 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : kind);
      const mapped = mmap(at, sizeBytes, protection, flags, fd, fileOffset);
      return Number(mapped) === at ? 0 : koffi.errno();
    },
    map: (fd, sizeBytes) => {
      const at = BigInt(mmap(0, sizeBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) as number | bigint);
      return at === MAP_FAILED ? 0 : Number(at);
    },
    unmap: (at, sizeBytes) => void munmap(at, sizeBytes),
    populate: (at, sizeBytes) => madvise(at, sizeBytes, MADV_POPULATE_WRITE) === 0,
    copy: (to, from, sizeBytes) => void memcpy(to, from, sizeBytes),
    addressOf: (bytes) => Number(koffi.address(bytes)),
    // The first is for a memfd's, and refuses others.
    discard: (bytes) =>
      [MADV_REMOVE, MADV_DONTNEED].some((advice) => madvise(koffi.address(bytes), bytes.byteLength, advice) === 0),
    askForHugePages: (bytes) => void madvise(koffi.address(bytes), bytes.byteLength, MADV_HUGEPAGE),
    pipe: () => {
      const fds = new Int32Array(2);
      const made = pipe2(koffi.address(new Uint8Array(fds.buffer)), O_NONBLOCK | O_CLOEXEC);
      return made === 0 ? [fds[0], fds[1]] : null;
    },
    setAffinity: (threadId, cpus) => {
      const set = new Uint8Array(CPU_SET_BYTES);
      for (const cpu of cpus) if (cpu < CPUS_MAX) set[cpu >> 3] |= 1 << (cpu & 7);
      return schedSetaffinity(threadId, set.byteLength, koffi.address(set)) === 0;
    },
  };
}

let loaded: HostCalls | null | undefined;

/** The bindings of this thread, loaded at the first call; null where there are none. */
export function hostCalls(): HostCalls | null {
  if (loaded === undefined) {
    loaded = null;
    if (process.platform === 'linux' && (process.arch === 'x64' || process.arch === 'arm64')) {
      try {
        loaded = bind(createRequire(import.meta.url)('koffi') as Koffi);
      } catch {
        // koffi is not installed, or not for this machine.
      }
    }
  }
  return loaded;
}
