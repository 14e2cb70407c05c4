/**
 * The machines that are compared: Domus (xl) with each of its engines, and QEMU's TCG, which translates the guest's code and
 * emulates a PC. All get the same kernel, ramdisk, memory and script; only `console=` differs. QEMU runs with its defaults
 * (PC machine, its default CPU model, BIOS), without devices other than the serial line,
 * unless a load needs them: then virtio ones, on the same image, with QEMU's user network beside Domus's NAT.
 */

import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { machineLayout } from '../../src/machine/memory.ts';
import { type Mark, MarkReader } from './workload.ts';

export const DOMUS_ENGINES = ['kvm', 'wasm'] as const;
export type DomusEngine = (typeof DOMUS_ENGINES)[number];
export type MachineName = DomusEngine | 'tcg';

export const MACHINE_TITLES: Readonly<Record<MachineName, string>> = {
  kvm: 'Domus (kvm)',
  wasm: 'Domus (wasm)',
  tcg: 'QEMU (tcg)',
};

export const QEMU = 'qemu-system-x86_64';
const XL = fileURLToPath(new URL('../../src/cli/xl/main.ts', import.meta.url));
/** Bytes of the mapping that holds the guest's memory: in Domus, memory 0 with all that lies behind the RAM. */
export function guestMappingBytes(name: MachineName, memoryMiB: number): number {
  return name === 'tcg' ? memoryMiB * 2 ** 20 : machineLayout(memoryMiB * 256, memoryMiB * 256).sizeBytes;
}
/** A run that takes longer hangs. */
const RUN_MS_MAX = 900_000;

/** A machine did not do what it should. The message ends with the last lines it said. */
export class RunError extends Error {
  override readonly name = 'RunError';
}

/** Files of the guest and what else a run is made of. */
export interface RunRequest {
  readonly kernel: string;
  readonly ramdisk: string;
  readonly config: string;
  readonly memoryMiB: number;
  readonly script: string;
  /** A qcow2 image. */
  readonly disk?: string;
  /** Plugged in that order: to the host, and to the other guest, by a port of 127.0.0.1 where that is QEMU's way. */
  readonly networks?: readonly Network[];
  /** Options of Node, for Domus. */
  readonly nodeOptions?: readonly string[];
  /** The wasm engine counts instructions, which costs time. */
  readonly countInstructions?: boolean;
  /** Called when a mark arrives, with the machine's process. */
  readonly onMark?: (mark: Mark, pid: number) => void;
}

export type Network =
  | { readonly kind: 'host' }
  | { readonly kind: 'guests'; readonly port: number; readonly isFirst: boolean };

export interface MachineRun {
  readonly marks: readonly Mark[];
  /** Carriage returns removed. */
  readonly console: string;
  /** Standard error. */
  readonly log: string;
}

const running = new Set<ChildProcess>();
let machines = 0;

/** Ends every machine at once. May be called from a process's `exit` handler. */
export function killMachines(): void {
  for (const child of running) kill(child);
}

function kill(child: ChildProcess): void {
  const pid = machinePid(child);
  if (pid !== undefined && pid !== child.pid) process.kill(pid, 'SIGKILL');
  child.kill('SIGKILL');
}

/** The process that is the machine: xl's only child is the domain's process, QEMU has none. */
function machinePid({ pid }: ChildProcess): number | undefined {
  try {
    const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim();
    return children === '' ? pid : Number(children.split(' ')[0]);
  } catch {
    // It has ended.
    return pid;
  }
}

/** The version line of QEMU, or null where it is not installed. */
export function qemuVersion(): string | null {
  const { status, stdout } = spawnSync(QEMU, ['--version'], { encoding: 'utf8' });
  return status === 0 ? (stdout.split('\n', 1)[0] ?? '') : null;
}

/** Boots the guest, runs the script in it, waits for its poweroff. Throws RunError. */
export function runMachine(name: MachineName, request: RunRequest): Promise<MachineRun> {
  const run = `domus.run=${Buffer.from(request.script).toString('base64')}`;
  switch (name) {
    case 'kvm':
    case 'wasm':
      return runToEnd(
        request,
        process.execPath,
        [
          ...[...(request.nodeOptions ?? []), XL, 'create', '-c', request.config],
          ...[`memory=${request.memoryMiB}`, 'vcpus=1', `kernel="${request.kernel}"`, `ramdisk="${request.ramdisk}"`],
          `cmdline="console=hvc0 ${run}"`,
          // The other guest is there at the same time, and is killed.
          `name="bench-${process.pid}-${machines++}"`,
          ...xlDevices(request),
        ],
        { DOMUS_ENGINE: name, DOMUS_STATS: request.countInstructions === true ? 'instructions' : '1' },
      );
    case 'tcg':
      return runToEnd(
        request,
        QEMU,
        [
          ...['-accel', 'tcg', '-m', String(request.memoryMiB), '-smp', '1'],
          ...['-nodefaults', '-display', 'none', '-serial', 'stdio', '-no-reboot'],
          ...['-kernel', request.kernel, '-initrd', request.ramdisk, '-append', `console=ttyS0 ${run}`],
          ...qemuDevices(request),
        ],
        {},
      );
  }
}

function xlDevices({ disk, networks = [] }: RunRequest): string[] {
  const vifs = networks.map(({ kind }) => (kind === 'host' ? '"script=vif-nat"' : '"bridge=bench"'));
  return [
    ...(disk === undefined ? [] : [`disk=["format=qcow2,vdev=xvda,target=${disk}"]`]),
    ...(vifs.length === 0 ? [] : [`vif=[${vifs.join(',')}]`]),
  ];
}

function qemuDevices({ disk, networks = [] }: RunRequest): string[] {
  const backend = (network: Network): string => {
    if (network.kind === 'host') return 'user';
    return `socket,${network.isFirst ? 'listen' : 'connect'}=127.0.0.1:${network.port}`;
  };
  return [
    ...(disk === undefined ? [] : ['-drive', `file=${disk},format=qcow2,if=virtio`]),
    ...networks.flatMap((network, i) => [
      ...['-netdev', `${backend(network)},id=n${i}`],
      // Cards need different addresses.
      ...['-device', `virtio-net-pci,netdev=n${i},mac=52:54:00:12:34:${isPeer(network) ? 99 : 50 + i}`],
    ]),
  ];
}

const isPeer = (network: Network): boolean => network.kind === 'guests' && network.isFirst;

/** Starts a machine that runs until it is ended; resolves when its mark is there. Throws RunError. */
export async function startMachine(name: MachineName, request: RunRequest): Promise<() => void> {
  let end = (): void => undefined;
  await new Promise<void>((resolve, reject) => {
    const onMark = (_: Mark, pid: number): void => {
      end = () => void process.kill(pid, 'SIGKILL');
      resolve();
    };
    runMachine(name, { ...request, onMark }).then(() => reject(new RunError('the other guest has ended')), reject);
  });
  return end;
}

function runToEnd(
  { onMark }: RunRequest,
  program: string,
  args: readonly string[],
  env: Readonly<Record<string, string>>,
): Promise<MachineRun> {
  return new Promise((resolve, reject) => {
    const startMs = performance.now();
    const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, ...env } });
    running.add(child);
    const reader = new MarkReader((mark) => {
      const pid = machinePid(child);
      if (pid !== undefined) onMark?.(mark, pid);
    });
    let out = '';
    let log = '';
    let timedOut = false;
    child.stdout.setEncoding('latin1').on('data', (text: string) => {
      reader.add(text, performance.now() - startMs);
      out += text;
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      log += text;
    });
    const timer = setTimeout(() => {
      timedOut = true;
      kill(child);
    }, RUN_MS_MAX);
    child.on('error', (error) => {
      clearTimeout(timer);
      running.delete(child);
      reject(new RunError(`${program}: ${error.message}`));
    });
    child.on('close', (code, signal) => {
      clearTimeout(timer);
      running.delete(child);
      const console = out.replaceAll('\r', '');
      if (code === 0 && console.includes('domus: script ended with 0')) {
        resolve({ marks: reader.marks, console, log });
        return;
      }
      const why = timedOut ? `killed after ${RUN_MS_MAX / 1000} s` : `ended with ${code ?? signal}`;
      const tail = [...console.trimEnd().split('\n').slice(-10), ...log.trimEnd().split('\n').slice(-10)];
      reject(
        new RunError(`${program}: ${why} before the script was done\n${tail.map((line) => `  ${line}`).join('\n')}`),
      );
    });
  });
}
