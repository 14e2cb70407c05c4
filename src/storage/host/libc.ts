/**
 * The system calls that Node's fs lacks: punching holes and locking, by libc through koffi.
 *
 * koffi is an optional package. Without it, or on another system than Linux, `linuxCalls()` gives undefined, holes are
 * written as zeroes and images are locked by a file beside them.
 * Source: fallocate(2), fcntl(2), errno(3).
 */
import { createRequire } from 'node:module';

export interface LinuxCalls {
  /** 0, or an errno. Runs on another thread. */
  fallocate(fd: number, mode: number, offset: number, lengthBytes: number): Promise<number>;
  /** `struct flock` at `argument`; 0, or an errno. */
  fcntl(fd: number, command: number, argument: Uint8Array): number;
}

interface Koffi {
  load(path: null): { func(definition: string): unknown };
  address(object: Uint8Array): bigint;
  errno(): number;
}

type Callback = (error: Error | null, result: number) => void;
interface Fallocate {
  async(fd: number, mode: number, offset: number, lengthBytes: number, callback: Callback): void;
}

const EIO = 5;

function bind(koffi: Koffi): LinuxCalls {
  const libc = koffi.load(null);
  // posix_fallocate's sibling with a mode has errno in thread-local memory, which cannot be asked for after an
  // asynchronous call; what matters is only whether it worked.
  const fallocate = libc.func('int fallocate(int, int, int64_t, int64_t)') as Fallocate;
  const fcntl = libc.func('int fcntl(int, int, uint64_t)') as (fd: number, command: number, argument: bigint) => number;
  return {
    fallocate: (fd, mode, offset, lengthBytes) =>
      new Promise((resolve, reject) => {
        fallocate.async(fd, mode, offset, lengthBytes, (error, result) => {
          if (error) reject(error);
          else resolve(result === 0 ? 0 : EIO);
        });
      }),
    fcntl: (fd, command, argument) => (fcntl(fd, command, koffi.address(argument)) === -1 ? koffi.errno() : 0),
  };
}

let loaded: LinuxCalls | null | undefined;

/** The bindings, loaded at the first call; undefined where there are none. */
export function linuxCalls(): LinuxCalls | undefined {
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
  return loaded ?? undefined;
}
