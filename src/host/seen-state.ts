/**
 * What other processes of the user see of a domain without asking its own: state words of domain and vCPUs, the first page of each, in
 * a memfd that is mapped in their place. `domains/DOMID/state` leads to it as long as the process lives. A command that looks at
 * many domains wakes none of them so, and one that hangs is seen as well.
 *
 * Page 0: the domain's (hypervisor/domain.ts, DOMAIN); pages 1 and on: its vCPUs' (machine/vcpu-block.ts). Needs Linux and koffi;
 * elsewhere there is no such file, and the domain's process is to be asked (domain-client.ts).
 */
import {
  closeSync,
  fstatSync,
  openSync,
  readFileSync,
  readlinkSync,
  readSync,
  rmSync,
  symlinkSync,
  writeSync,
} from 'node:fs';
import { DOMAIN, type Domain } from '../hypervisor/domain.ts';
import { type DomainState, domainState } from '../hypervisor/domain-state.ts';
import { PAGE_SIZE } from '../machine/memory.ts';
import { hostCalls } from './libc.ts';
import { seenStatePath, stateRoot } from './state-dir.ts';

export interface SeenState extends DomainState {
  readonly pid: number;
  /** What the domain's process uses besides its vCPUs: CPU time in ns, and memory that it has in all, the guest's included, in bytes. */
  readonly backendTimeNs: number;
  readonly residentBytes: number;
}

/** More vCPUs than Xen gives a PV domain. Source: xen/include/public/xen.h (vcpu_info is per vCPU up to 8192 for domain builders). */
const VCPUS_MAX = 8192;
/** What Linux tells programs, whatever its own is. Source: asm-generic/param.h, USER_HZ. */
const NS_PER_TICK = 1e9 / 100;

/**
 * Lets others see a domain that nothing uses yet: its folder is there, its vCPUs have no threads. What ends it is to be called when the
 * domain is gone. Nothing is seen where that cannot be done.
 */
export function showState({ u8, vcpus }: Domain, path: string): () => void {
  const calls = hostCalls();
  const pages = [u8, ...vcpus.map((vcpu) => vcpu.u8)].map((bytes) => bytes.subarray(0, PAGE_SIZE));
  const fd = calls?.memfdCreate('domus-state', pages.length * PAGE_SIZE) ?? -1;
  if (calls === null || fd < 0) return () => {};
  const isShown = pages.every((page, i) => {
    const at = i * PAGE_SIZE;
    writeSync(fd, page, 0, PAGE_SIZE, at);
    return calls.mapAt(calls.addressOf(page), PAGE_SIZE, fd, at, 'write') === 0;
  });
  if (isShown) {
    rmSync(path, { force: true });
    symlinkSync(`/proc/${process.pid}/fd/${fd}`, path);
  }
  return () => {
    rmSync(path, { force: true });
    closeSync(fd);
  };
}

/** How a domain is; null if it cannot be seen: ask its process. */
export function seenState(domid: number, root: string = stateRoot()): SeenState | null {
  try {
    const path = seenStatePath(root, domid);
    const pid = Number(/^\/proc\/(\d+)\/fd\/\d+$/.exec(readlinkSync(path))?.[1]);
    const state = stateIn(readPages(path), domid);
    return state === null ? null : { ...state, pid, ...usedBy(pid, state) };
  } catch (error) {
    // No such domain, or its process has ended meanwhile.
    if (error instanceof Error && 'code' in error) return null;
    throw error;
  }
}

function readPages(path: string): Uint8Array<ArrayBuffer> {
  const fd = openSync(path, 'r');
  try {
    const size = fstatSync(fd).size;
    if (size % PAGE_SIZE !== 0 || size > (1 + VCPUS_MAX) * PAGE_SIZE) return new Uint8Array();
    const bytes = new Uint8Array(size);
    return bytes.subarray(0, readSync(fd, bytes));
  } finally {
    closeSync(fd);
  }
}

/** Null if it is not that domain's: the number of a process that has ended may be another's. */
function stateIn({ buffer, length }: Uint8Array<ArrayBuffer>, domid: number): DomainState | null {
  if (length < PAGE_SIZE) return null;
  const pages = Array.from({ length: length / PAGE_SIZE }, (_, i) => {
    const page = [buffer, i * PAGE_SIZE, PAGE_SIZE] as const;
    return {
      i32: new Int32Array(page[0], page[1], PAGE_SIZE / 4),
      u32: new Uint32Array(page[0], page[1], PAGE_SIZE / 4),
      f64: new Float64Array(page[0], page[1], PAGE_SIZE / 8),
    };
  });
  const [domain, ...vcpus] = pages;
  if (domain.i32[DOMAIN.domid >> 2] !== domid || domain.i32[DOMAIN.vcpuCount >> 2] !== vcpus.length) return null;
  return domainState({ ...domain, vcpus, shutdownReason: domain.i32[DOMAIN.shutdown >> 2] });
}

/** Source: proc_pid_stat(5): utime and stime are fields 14 and 15, rss is field 24, in pages. */
function usedBy(pid: number, { vcpus }: DomainState): Pick<SeenState, 'backendTimeNs' | 'residentBytes'> {
  const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
  // The process's name, field 2, may hold anything.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  const allNs = (Number(fields[14 - 3]) + Number(fields[15 - 3])) * NS_PER_TICK;
  const vcpusNs = vcpus.reduce((sum, { timeNs }) => sum + timeNs, 0);
  return { backendTimeNs: Math.max(0, allNs - vcpusNs), residentBytes: Number(fields[24 - 3]) * PAGE_SIZE };
}
