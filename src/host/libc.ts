/**
 * The system calls that the host's part needs beyond Node's: pseudo-terminals, and memory that processes share, by libc through koffi.
 *
 * koffi is an optional package. Without it, or on another system than Linux, `hostCalls()` gives null. A wrong address or length
 * here corrupts the process: callers own what they pass.
 * Source: ioctl(2), mmap(2), memfd_create(2), ioctl_tty(2).
 */
import { createRequire } from 'node:module';

export interface HostCalls {
  /** `argument` is read and written. 0, or an errno. */
  ioctl(fd: number, request: number, argument: Uint8Array): number;
  /** A file without a name; its descriptor, or -1. */
  memfdCreate(name: string): number;
  /** Puts pages at `at` in place of what is there; 0, or an errno. `fd` -1: fresh zero pages of this process only. */
  mapAt(at: number, sizeBytes: number, fd: number, fileOffset: number, access: 'read' | 'write'): number;
  addressOf(bytes: Uint8Array): number;
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
const MFD_CLOEXEC = 1;

function bind(koffi: Koffi): HostCalls {
  const libc = koffi.load(null);
  const ioctl = libc.func('int ioctl(int, unsigned long, uint64_t)');
  const memfdCreate = libc.func('int memfd_create(const char*, unsigned int)');
  const mmap = libc.func('uint64_t mmap(uint64_t, uint64_t, int, int, int, int64_t)');
  return {
    ioctl: (fd, request, argument) => (ioctl(fd, request, koffi.address(argument)) === -1 ? koffi.errno() : 0),
    memfdCreate: (name) => Number(memfdCreate(name, MFD_CLOEXEC)),
    mapAt: (at, sizeBytes, fd, fileOffset, access) => {
      const protection = access === 'write' ? PROT_READ | PROT_WRITE : PROT_READ;
      const flags = MAP_FIXED | (fd === -1 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED);
      const mapped = mmap(at, sizeBytes, protection, flags, fd, fileOffset);
      return Number(mapped) === at ? 0 : koffi.errno();
    },
    addressOf: (bytes) => Number(koffi.address(bytes)),
  };
}

let loaded: HostCalls | null | undefined;

/** The bindings, loaded at the first call; null where there are none. */
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
