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
  /** Programs in / that it needs, which the host's C compiler makes (ramdisk.ts). */
  readonly programs?: readonly string[];
  /** What it needs of the host; such loads run when they are asked for by name. */
  readonly needs?: readonly Need[];
}

/** A disk; NAT (or QEMU's user network) to the host's servers; another guest on an Ethernet of their own; a guest with gcc in it. */
export type Need = 'disk' | 'host' | 'peer' | 'gcc';

/** Wanted of the boot. */
export const BOOT_WANTED = 2;

/** What gcc compiles: some 20 lines a function. */
export const SOURCE_PATH = '/program.c';
export const SOURCE_FUNCTIONS = 24;

/**
 * What a guest can run. Each bears on something else: long
 * straight code, an interpreter's branches, page tables and system calls, memory and unpredictable branches, an interpreter's
 * arithmetic, SSE, disks and networks, and a compiler's large and branching code.
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
    programs: ['nbody'],
  },
  {
    name: 'disk-read',
    title: 'dd: 256 MiB from a disk',
    prepare: 'echo 3 >/proc/sys/vm/drop_caches',
    command: 'dd if=$disk of=/dev/null bs=1M 2>/dev/null',
    wanted: 1,
    needs: ['disk'],
  },
  {
    name: 'disk-random',
    title: '4 x 1000 random reads of 4 KiB, direct',
    command: '/randio $disk r || echo "randio: failed"',
    wanted: 1,
    programs: ['randio'],
    needs: ['disk'],
  },
  {
    name: 'disk-write-random',
    title: '4 x 1000 random writes of 4 KiB, direct',
    command: '/randio $disk w || echo "randio: failed"',
    wanted: 1,
    programs: ['randio'],
    needs: ['disk'],
  },
  {
    name: 'disk-write',
    title: 'dd: 128 MiB to a disk, with fsync',
    command: 'dd if=/dev/zero of=$disk bs=1M count=128 conv=fsync 2>/dev/null',
    wanted: 1,
    needs: ['disk'],
  },
  {
    name: 'net-in',
    title: 'wget: 64 MiB from the host',
    command: 'wget -q -O /dev/null http://10.0.2.2:$source/ || echo "net-in: failed"',
    wanted: 1,
    needs: ['host'],
  },
  {
    name: 'net-out',
    title: '64 MiB to the host, 64 KiB at a time',
    command: '/send $sink || echo "net-out: failed"',
    wanted: 1,
    programs: ['send'],
    needs: ['host'],
  },
  {
    name: 'net-guests',
    title: 'wget: 64 MiB from another guest',
    command: 'wget -q -O /dev/null http://192.168.77.2/z || echo "net-guests: failed"',
    wanted: 1,
    needs: ['peer'],
  },
  {
    name: 'gcc',
    title: 'gcc -O2 of a file of 2100 lines',
    command: `gcc -O2 -w -c ${SOURCE_PATH} -o /tmp/program.o || echo "gcc: failed"`,
    wanted: 1,
    needs: ['gcc'],
  },
];

/** What the loads need of the host. */
export const needsOf = (loads: readonly Load[]): ReadonlySet<Need> => new Set(loads.flatMap(({ needs = [] }) => needs));

export const needsDevices = (needs: ReadonlySet<Need>): boolean => [...needs].some((need) => need !== 'gcc');

/** The loads that need nothing. */
export const PLAIN_LOADS = LOADS.filter(({ needs }) => needs === undefined);

/** Each load and, behind it, the same as often again. */
export const repeated = (loads: readonly Load[], again: number): readonly Load[] =>
  loads.flatMap((load) => [
    load,
    ...Array.from({ length: again }, (_, i) => ({ ...load, name: `${load.name}-${i + 2}`, title: `- time ${i + 2}` })),
  ]);

/** The mark that ends the boot. */
export const SHELL_MARK = 'shell';

const MARK_FUNCTION = 'm() { read -r u x </proc/uptime; echo "@$1 $u@"; }';

/** For a boot that does nothing else: at the mark, the host looks how much memory is in use. */
export const IDLE_SCRIPT = `${MARK_FUNCTION}\nm ${SHELL_MARK}\nsleep 2\n`;

/** QEMU's drivers are not loaded yet. */
const DRIVERS = '[ -e /sys/hypervisor/type ] || for f in /virtio/*; do insmod $f; done >/dev/null 2>&1';

/** QEMU's guest has no address yet. */
const ADDRESS = `[ -e /sys/hypervisor/type ] || {
ip link set eth0 up
udhcpc -q -i eth0 -s /etc/udhcpc.script
} >/dev/null 2>&1`;

const PREPARE: Readonly<Record<Need, string>> = {
  disk: 'disk=/dev/xvda; [ -b $disk ] || disk=/dev/vda',
  gcc: '',
  host: `${ADDRESS}
until ip route | grep -q default; do usleep 100000; done`,
  peer: `ip address add 192.168.77.1/24 dev eth1; ip link set eth1 up
until ping -c 1 -W 1 192.168.77.2 >/dev/null; do usleep 100000; done`,
};

/** For the other guest. It runs until its machine is killed. */
export const PEER_SCRIPT = `${MARK_FUNCTION}
${DRIVERS}
killall udhcpc 2>/dev/null
ip address flush dev eth0; ip address add 192.168.77.2/24 dev eth0; ip link set eth0 up
mkdir /tmp/w; dd if=/dev/zero of=/tmp/w/z bs=1M count=64 2>/dev/null; httpd -h /tmp/w
m ${SHELL_MARK}
sleep 100000
`;

/** A script of any length; `ports` are the host's servers'. */
export function loadScript(
  loads: readonly Load[],
  ports: { readonly sourcePort: number; readonly sinkPort: number } | null = null,
): string {
  const lines = [MARK_FUNCTION, `m ${SHELL_MARK}`];
  const needs = needsOf(loads);
  if (needsDevices(needs)) lines.push(DRIVERS, ...[...needs].map((need) => PREPARE[need]));
  if (ports !== null) lines.push(`source=${ports.sourcePort} sink=${ports.sinkPort}`);
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
    for (const match of this.#rest.matchAll(/@([\w-]+) (\d+\.\d+)@/g)) {
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
