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
}

/** Shell arithmetic and fork as a busybox guest meets them; the script has to fit a command line of 1023 characters. */
export const LOADS: readonly Load[] = [
  {
    name: 'sha256',
    title: 'sha256sum of 64 MiB of zeros in tmpfs',
    prepare: 'dd if=/dev/zero of=/tmp/z bs=1M count=64 2>/dev/null',
    command: 'sha256sum /tmp/z >/dev/null',
  },
  {
    name: 'ash',
    title: 'ash loop of 100000 iterations',
    command: 'i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done',
  },
  {
    name: 'fork',
    title: '200 fork and exec of /bin/busybox true',
    command: 'i=0; while [ $i -lt 200 ]; do /bin/busybox true; i=$((i+1)); done',
  },
];

/** The mark that ends the boot. */
export const SHELL_MARK = 'shell';

/** For a boot that does nothing else. */
export const IDLE_SCRIPT = 'true';

export function loadScript(loads: readonly Load[] = LOADS): string {
  const lines = ['m() { read -r u x </proc/uptime; echo "@$1 $u@"; }', `m ${SHELL_MARK}`];
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
  #rest = '';

  add(text: string, hostMs: number): void {
    this.#rest += text;
    let end = 0;
    for (const match of this.#rest.matchAll(/@(\w+) (\d+\.\d+)@/g)) {
      this.marks.push({ name: match[1] ?? '', guestMs: Math.round(Number(match[2]) * 1000), hostMs });
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
export function timesOf(marks: readonly Mark[], loads: readonly Load[] = LOADS): Times | null {
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
