/**
 * Keeps two users of one image apart, other hypervisors included.
 *
 * On Linux: open file description locks on single bytes, in QEMU's layout, so that qemu-img and a running QEMU notice
 * Domus and the other way round. Byte 100 + n is locked by who does the thing n, byte 200 + n by who does not want others
 * to do it. All locks are shared (F_RDLCK); a conflict is found by asking whether an exclusive one could be had.
 * The kernel drops them with the last descriptor, so a killed process leaves nothing behind.
 *
 * Elsewhere: a file `<image>.domus-lock` with the writer's process id; one whose process is gone counts for nothing.
 * Readers leave no trace there; they only refuse while someone writes.
 * Source: QEMU docs/system/qemu-block-drivers.rst.inc ("Disk image file locking"), fcntl(2).
 */
import { closeSync, openSync, readFileSync, unlinkSync, writeSync } from 'node:fs';
import { DiskImageError, type Sharing } from '../block-file.ts';
import { type LinuxCalls, linuxCalls } from './libc.ts';

const F_OFD_GETLK = 36;
const F_OFD_SETLK = 37;
const F_RDLCK = 0;
const F_WRLCK = 1;
const F_UNLCK = 2;

const DOES_BASE = 100;
const FORBIDS_BASE = 200;
const CONSISTENT_READ = 0;
const WRITE = 1;
const RESIZE = 3;
const THINGS = [CONSISTENT_READ, WRITE, RESIZE] as const;

/** Gives the lock up. With byte locks there is nothing to do: closing the file does it. */
export type Unlock = () => void;

/** struct flock: i16 type, i16 whence, i64 start, i64 length, i32 pid. */
function flock(type: number, start: number): Uint8Array {
  const bytes = new Uint8Array(32);
  const view = new DataView(bytes.buffer);
  view.setInt16(0, type, true);
  view.setBigInt64(8, BigInt(start), true);
  view.setBigInt64(16, 1n, true);
  return bytes;
}

function inUse(path: string, by: string): DiskImageError {
  return new DiskImageError(`${path}: is in use by another process, which ${by}`);
}

function lockBytes(calls: LinuxCalls, fd: number, path: string, readOnly: boolean, sharing: Sharing): void {
  const does = readOnly ? [CONSISTENT_READ] : [CONSISTENT_READ, WRITE, RESIZE];
  const forbids = sharing === 'shared' ? [] : [WRITE, RESIZE];
  const lock = (byte: number): void => {
    const errno = calls.fcntl(fd, F_OFD_SETLK, flock(F_RDLCK, byte));
    // Some network file systems have no locks; QEMU goes without them there too.
    if (errno !== 0 && errno !== ENOLCK && errno !== EOPNOTSUPP && errno !== EINVAL) {
      throw new DiskImageError(`${path}: cannot be locked (errno ${errno})`);
    }
  };
  const isLockedByOther = (byte: number): boolean => {
    const asked = flock(F_WRLCK, byte);
    return calls.fcntl(fd, F_OFD_GETLK, asked) === 0 && new DataView(asked.buffer).getInt16(0, true) !== F_UNLCK;
  };
  for (const thing of does) lock(DOES_BASE + thing);
  for (const thing of forbids) lock(FORBIDS_BASE + thing);
  for (const thing of THINGS) {
    if (forbids.includes(thing) && isLockedByOther(DOES_BASE + thing)) throw inUse(path, 'writes to it');
    if (does.includes(thing) && isLockedByOther(FORBIDS_BASE + thing))
      throw inUse(path, 'wants no other to write to it');
  }
}

const EINVAL = 22;
const ENOLCK = 37;
const EOPNOTSUPP = 95;

function lockFile(path: string, readOnly: boolean): Unlock {
  const lockPath = `${path}.domus-lock`;
  for (let attempt = 0; ; attempt++) {
    const owner = ownerOf(lockPath);
    if (owner !== undefined && isAlive(owner)) throw inUse(path, `is process ${owner} (see ${lockPath})`);
    if (readOnly) return () => {};
    if (owner !== undefined) unlinkSync(lockPath);
    try {
      const fd = openSync(lockPath, 'wx');
      writeSync(fd, `${process.pid}\n`);
      closeSync(fd);
      return () => unlinkSync(lockPath);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST' || attempt === 3) throw error;
    }
  }
}

function ownerOf(lockPath: string): number | undefined {
  try {
    const pid = Number.parseInt(readFileSync(lockPath, 'utf8'), 10);
    return Number.isNaN(pid) ? undefined : pid;
  } catch {
    return undefined;
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

/**
 * Locks an open file.
 *
 * @throws DiskImageError if someone else's use of it does not go with this one
 */
export function lockImage(fd: number, path: string, readOnly: boolean, sharing: Sharing): Unlock {
  const calls = linuxCalls();
  if (calls !== undefined) {
    lockBytes(calls, fd, path, readOnly, sharing);
    return () => {};
  }
  return sharing === 'shared' ? () => {} : lockFile(path, readOnly);
}
