import { expect, test } from 'vitest';
import { memoryFigures, threadsSince, threadTimes } from './process-figures.ts';

const STATUS = 'Name:\tnode\nVmRSS:\t   1000 kB\nRssAnon:\t 800 kB\nRssFile:\t 150 kB\nRssShmem:\t 50 kB\n';
const SMAPS = `00400000-00500000 r-xp 00000000 fe:00 12 /usr/bin/node
Size:               1024 kB
Rss:                 150 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0010000000 rw-p 00000000 00:00 0
Size:             262144 kB
Rss:                 600 kB
6f0000000000-6f0000040000 rw-p 00000000 00:00 0
Size:                256 kB
Rss:                  20 kB
6f0000040000-6f0000080000 rwxp 00000000 00:00 0
Size:                256 kB
Rss:                  30 kB
7f0010000000-7f0210000000 ---p 00000000 00:00 0
Size:            8388608 kB
Rss:                   0 kB
`;

test("`memoryFigures()` finds the guest's memory by its size", () => {
  expect(memoryFigures(STATUS, SMAPS, 256 << 20)).toEqual({
    residentKiB: 1000,
    guestKiB: 600,
    fileKiB: 200,
    codeKiB: 30,
    heapPagesKiB: 20,
  });
  expect(memoryFigures(STATUS, SMAPS, 255 << 20).guestKiB).toBeNull();
});

/** A line of /proc/PID/task/TID/stat, 52 fields. */
function stat(name: string, user: number, system: number, guest: number): string {
  const fields = Array.from({ length: 53 }, () => '0');
  fields[14] = String(user);
  fields[15] = String(system);
  fields[43] = String(guest);
  return `7 (${name}) S ${fields.slice(4).join(' ')}`;
}

test('`threadTimes()` adds up threads of one kind; time as a guest is not user time', () => {
  const before = threadTimes([stat('WorkerThread', 10, 2, 0)]);
  const after = threadTimes([stat('WorkerThread', 30, 5, 8), stat('V8Worker', 1, 0, 0), stat('V8Worker', 2, 0, 0)]);
  expect(after['vCPU']).toEqual({ userMs: 220, systemMs: 50, guestMs: 80 });
  const since = threadsSince(before, after);
  expect(since['vCPU']).toEqual({ userMs: 120, systemMs: 30, guestMs: 80 });
  expect(Object.values(since)[1]).toEqual({ userMs: 30, systemMs: 0, guestMs: 0 });
});

test('a name with spaces and brackets does not move the fields', () => {
  expect(threadTimes([stat('a) b (c', 1, 0, 0)])).toEqual({ 'other threads': { userMs: 10, systemMs: 0, guestMs: 0 } });
});
