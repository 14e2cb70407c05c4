/**
 * What Linux knows of a machine's process: memory, and CPU time by thread.
 *
 * Memory beyond the guest's own is the resident set (VmRSS of /proc/PID/status) less the resident part of the mapping that holds the
 * guest's memory. That mapping is the one in /proc/PID/smaps of just the size that the machine gives its guest's memory: V8 reserves
 * address space around a WebAssembly memory that it does not open, QEMU maps RAM by itself, so nothing merges with it. Its
 * resident pages are those that the guest, or who built it, has touched. In Domus it is memory 0, with shared_info, grant table and
 * M2P (under 1 MiB). Memory 1 (registers, TLB, micro-ops) counts as Domus's. Three parts of what is beyond the guest's are named:
 * what is mapped from files, mostly the program itself; machine code made at run time (anonymous, executable); and JavaScript objects,
 * which lie in pages of V8's heap: anonymous mappings of exactly 256 KiB. Larger objects and what C++ allocates are in neither.
 */

import { readdirSync, readFileSync } from 'node:fs';

export interface MemoryFigures {
  readonly residentKiB: number;
  /** Null: no mapping of the size of the guest's memory. */
  readonly guestKiB: number | null;
  readonly fileKiB: number;
  readonly codeKiB: number;
  readonly heapPagesKiB: number;
}

/** A regular page of V8's heap. Source: V8, src/common/globals.h, kRegularPageSize. */
const HEAP_PAGE_BYTES = 256 << 10;

/** From the texts of /proc/PID/status and /proc/PID/smaps. */
export function memoryFigures(status: string, smaps: string, guestMappingBytes: number): MemoryFigures {
  const field = (name: string): number => Number(new RegExp(`^${name}:\\s*(\\d+) kB$`, 'm').exec(status)?.[1] ?? 0);
  let guestKiB: number | null = null;
  let codeKiB = 0;
  let heapPagesKiB = 0;
  // A mapping: range, permissions, offset, device, inode and name; then its fields, until the next range.
  const mapping = /^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \d+ *(.*)((?:\n[A-Z].*)*)/gm;
  for (const [, start, end, permissions, name, fields] of smaps.matchAll(mapping)) {
    const size = Number.parseInt(end, 16) - Number.parseInt(start, 16);
    const residentKiB = Number(/^Rss:\s*(\d+) kB$/m.exec(fields)?.[1] ?? 0);
    if (name !== '') continue;
    if (size === guestMappingBytes) guestKiB = (guestKiB ?? 0) + residentKiB;
    else if (permissions.includes('x')) codeKiB += residentKiB;
    else if (size === HEAP_PAGE_BYTES) heapPagesKiB += residentKiB;
  }
  const fileKiB = field('RssFile') + field('RssShmem');
  return { residentKiB: field('VmRSS'), guestKiB, fileKiB, codeKiB, heapPagesKiB };
}

export function readMemory(pid: number, guestMappingBytes: number): MemoryFigures | null {
  try {
    const read = (name: string): string => readFileSync(`/proc/${pid}/${name}`, 'utf8');
    return memoryFigures(read('status'), read('smaps'), guestMappingBytes);
  } catch {
    // The process has ended, or this is not Linux.
    return null;
  }
}

/** CPU milliseconds of a thread's kind: in user mode, in the host's kernel, and, of neither, as a guest of KVM. */
export interface CpuTime {
  readonly userMs: number;
  readonly systemMs: number;
  readonly guestMs: number;
}

/** By what the threads do. */
export type ThreadTimes = Readonly<Record<string, CpuTime>>;

/** USER_HZ is 100 on every Linux that Domus runs on. Source: proc(5), /proc/pid/stat. */
const MS_PER_TICK = 10;

/** Names that Node gives its threads; a domain has no other worker than those of its vCPUs. */
const THREADS: Readonly<Record<string, string>> = {
  WorkerThread: 'vCPU',
  V8Worker: "V8's own: optimizing, collecting garbage",
  MainThread: 'main: start, backends',
};

/** From the texts of /proc/PID/task/TID/stat. */
export function threadTimes(stats: readonly string[]): ThreadTimes {
  const times: Record<string, CpuTime> = {};
  for (const stat of stats) {
    // `TID (NAME) STATE ...`; a name may hold anything.
    const end = stat.lastIndexOf(')');
    const name = THREADS[stat.slice(stat.indexOf('(') + 1, end)] ?? 'other threads';
    const fields = stat.slice(end + 2).split(' ');
    // Fields 14, 15 and 43 of proc(5), which counts from 1 and includes the two before STATE.
    const ms = (field: number): number => Number(fields[field - 3]) * MS_PER_TICK;
    const before = times[name] ?? { userMs: 0, systemMs: 0, guestMs: 0 };
    times[name] = {
      userMs: before.userMs + ms(14) - ms(43),
      systemMs: before.systemMs + ms(15),
      guestMs: before.guestMs + ms(43),
    };
  }
  return times;
}

export function readThreads(pid: number): ThreadTimes | null {
  try {
    const tasks = readdirSync(`/proc/${pid}/task`);
    return threadTimes(tasks.map((task) => readFileSync(`/proc/${pid}/task/${task}/stat`, 'utf8')));
  } catch {
    // A thread or the process has ended, or this is not Linux.
    return null;
  }
}

/** What was used between two readings. */
export function threadsSince(before: ThreadTimes, after: ThreadTimes): ThreadTimes {
  const since = Object.entries(after).map(([name, { userMs, systemMs, guestMs }]) => {
    const was = before[name] ?? { userMs: 0, systemMs: 0, guestMs: 0 };
    return [
      name,
      { userMs: userMs - was.userMs, systemMs: systemMs - was.systemMs, guestMs: guestMs - was.guestMs },
    ] as const;
  });
  return Object.fromEntries(since);
}
