/**
 * What a guest does while it is measured: a shell script for `domus.run=`, the same for every machine.
 *
 * The script prints marks, `@NAME UPTIME@`: one when it starts, which is the moment at which a shell would be there, and one
 * after each load. The host notes when a mark arrives, and the mark carries the guest's own clock (/proc/uptime, steps of
 * 10 ms), so each load has two times that should agree. busybox's `date` knows no nanoseconds.
 */

export interface Load {
  /** One word: the mark's name. */
  readonly name: string;
  readonly title: string;
  /** Done before the clock starts. */
  readonly prepare?: string;
  readonly command: string;
  /** How many times as fast as QEMU the wasm engine is wanted to be; null where nobody said. */
  readonly wanted: number | null;
  /** Needs /nbody, which the host's C compiler makes (native-load.ts). */
  readonly native?: boolean;
}

/** Wanted of the boot. */
export const BOOT_WANTED = 2;

/**
 * What a busybox guest can run, in a script that has to fit a command line of 1023 characters. Each bears on something else: long
 * straight code, an interpreter's branches, page tables and system calls, memory and unpredictable branches, an interpreter's
 * arithmetic, SSE. Compiling with gcc needs a guest with packages and is not among them.
 */
export const LOADS: readonly Load[] = [
  {
    name: 'sha256',
    title: 'sha256sum of 64 MiB of zeros in tmpfs',
    prepare: 'dd if=/dev/zero of=/tmp/z bs=1M count=64 2>/dev/null',
    command: 'sha256sum /tmp/z >/dev/null',
    wanted: 1.3,
  },
  {
    name: 'ash',
    title: 'ash loop of 100000 iterations',
    command: 'i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done',
    wanted: 1.2,
  },
  {
    name: 'fork',
    title: '200 fork and exec of /bin/busybox true',
    command: 'i=0; while [ $i -lt 200 ]; do /bin/busybox true; i=$((i+1)); done',
    wanted: 1,
  },
  {
    name: 'gzip',
    title: 'gzip of 64 MB (copies of busybox) in tmpfs',
    // cat fails when head has enough.
    prepare: 'while cat /bin/busybox; do :; done 2>/dev/null | head -c 64000000 >/tmp/z',
    command: 'gzip -c /tmp/z >/dev/null',
    wanted: 1.2,
  },
  {
    name: 'awk',
    title: 'awk: 200000 steps of a Lorenz system',
    command: "awk 'BEGIN{x=1;for(;i<200000;i++){u=y-x;v=x*(28-z)-y;z+=.001*(x*y-z*8/3);x+=.01*u;y+=.001*v}}'",
    wanted: null,
  },
  {
    name: 'nbody',
    title: 'nbody in C: 2000000 steps in double precision',
    command: '/nbody || echo "nbody: wrong result"',
    wanted: 3,
    native: true,
  },
];

/** The mark that ends the boot. */
export const SHELL_MARK = 'shell';

const MARK_FUNCTION = 'm() { read -r u x </proc/uptime; echo "@$1 $u@"; }';

/** For a boot that does nothing else: at the mark, the host looks how much memory is in use. */
export const IDLE_SCRIPT = `${MARK_FUNCTION}\nm ${SHELL_MARK}\nsleep 2\n`;

export function loadScript(loads: readonly Load[]): string {
  const lines = [MARK_FUNCTION, `m ${SHELL_MARK}`];
  for (const { name, prepare, command } of loads) {
    if (prepare !== undefined) lines.push(prepare);
    lines.push(`m ${name}0`, command, `m ${name}`);
  }
  return `${lines.join('\n')}\n`;
}

export interface Mark {
  readonly name: string;
  readonly guestMs: number;
  /** When it arrived, after the start of the machine's process. */
  readonly hostMs: number;
}

/** Finds marks in a console as it arrives, in pieces of any size. Kernel messages may stand before or after a mark. */
export class MarkReader {
  readonly marks: Mark[] = [];
  readonly #onMark: (mark: Mark) => void;
  #rest = '';

  constructor(onMark: (mark: Mark) => void = () => undefined) {
    this.#onMark = onMark;
  }

  add(text: string, hostMs: number): void {
    this.#rest += text;
    let end = 0;
    for (const match of this.#rest.matchAll(/@(\w+) (\d+\.\d+)@/g)) {
      const mark = { name: match[1] ?? '', guestMs: Math.round(Number(match[2]) * 1000), hostMs };
      this.marks.push(mark);
      this.#onMark(mark);
      end = match.index + match[0].length;
    }
    // What is kept is longer than any mark.
    this.#rest = this.#rest.slice(Math.max(end, this.#rest.length - 100));
  }
}

export interface Times {
  /** From the start of the machine's process to the shell, by the host's clock. */
  readonly bootMs: number;
  /** By the load's name. */
  readonly loads: Readonly<Record<string, { readonly guestMs: number; readonly hostMs: number }>>;
}

/** The times of one run, or null if a mark is missing. */
export function timesOf(marks: readonly Mark[], loads: readonly Load[]): Times | null {
  const mark = (name: string): Mark | undefined => marks.find((candidate) => candidate.name === name);
  const shell = mark(SHELL_MARK);
  if (shell === undefined) return null;
  const times: Record<string, { guestMs: number; hostMs: number }> = {};
  for (const { name } of loads) {
    const start = mark(`${name}0`);
    const end = mark(name);
    if (start === undefined || end === undefined) return null;
    times[name] = { guestMs: end.guestMs - start.guestMs, hostMs: end.hostMs - start.hostMs };
  }
  return { bootMs: shell.hostMs, loads: times };
}
