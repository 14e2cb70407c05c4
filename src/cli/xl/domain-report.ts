/** What `xl list`, `vcpu-list`, `vm-list` and `uptime` show of a domain, from xenstore and from its process. */

import { cpus, totalmem, uptime } from 'node:os';
import { SHUTDOWN_crash } from '../../abi/xen.ts';
import { endedReasonOf } from '../../host/domain-client.ts';
import type { CpuSet } from '../../toolstack/config/cpu-set.ts';
import { WEIGHT_DEFAULT } from '../../toolstack/config/domain-config.ts';
import type { XenstoreClient } from '../../xenstore/client.ts';
import { nameOf, tryState } from './domains.ts';

export interface VcpuReport {
  readonly online: boolean;
  readonly running: boolean;
  readonly blocked: boolean;
  readonly seconds: number;
  /** The host's CPU that it is, or was last, on; -1 if that is not known. */
  readonly cpu: number;
  readonly hard: CpuSet;
  readonly soft: CpuSet;
}

export interface DomainReport {
  readonly domid: number;
  readonly name: string;
  readonly uuid: string;
  readonly memoryMiB: number;
  /** Scheduling parameters. */
  readonly weight: number;
  readonly cap: number;
  readonly vcpus: readonly VcpuReport[];
  /** CPU time of all vCPUs. */
  readonly seconds: number;
  readonly uptimeSeconds: number;
  readonly running: boolean;
  readonly blocked: boolean;
  readonly paused: boolean;
  /** SHUTDOWN_*, -1 while it runs. */
  readonly shutdownReason: number;
  readonly dying: boolean;
}

/** By SHUTDOWN_*. Source: xl_list.c (read for behaviour). */
export const SHUTDOWN_LETTERS = '-rscwS';

const MIB = 1 << 20;
const PAGES_PER_MIB = 256;

/** Of those that are there still. */
export async function domainReports(store: XenstoreClient, domids: readonly number[]): Promise<DomainReport[]> {
  const reports = await Promise.all(domids.map((domid) => domainReport(store, domid)));
  return reports.filter((report) => report !== null);
}

/** Null: there is no such domain. */
export async function domainReport(store: XenstoreClient, domid: number): Promise<DomainReport | null> {
  if (domid === 0) return hostReport();
  const [name, vm, state] = await Promise.all([
    nameOf(store, domid),
    store.read(`/local/domain/${domid}/vm`),
    tryState(domid),
  ]);
  if (name === null || vm === null) return null;
  const kept = state === null ? endedReasonOf(domid) : null;
  const startTime = Number((await store.read(`${vm}/start_time`)) ?? Number.NaN);
  const vcpus = (state?.vcpus ?? []).map(({ timeNs, ...vcpu }) => ({ ...vcpu, seconds: timeNs / 1e9 }));
  const online = vcpus.filter((vcpu) => vcpu.online);
  return {
    domid,
    name,
    uuid: vm.replace('/vm/', ''),
    memoryMiB: Math.floor((state?.pages ?? 0) / PAGES_PER_MIB),
    weight: state?.weight ?? WEIGHT_DEFAULT,
    cap: state?.cap ?? 0,
    vcpus,
    seconds: vcpus.reduce((sum, vcpu) => sum + vcpu.seconds, 0),
    uptimeSeconds: Number.isNaN(startTime) ? 0 : Math.max(0, Date.now() / 1000 - startTime),
    running: online.some((vcpu) => vcpu.running),
    blocked: online.length > 0 && online.every((vcpu) => vcpu.blocked),
    paused: state?.paused ?? false,
    // A process that was killed is a domain that has crashed; domusd will see to it.
    shutdownReason: state?.shutdownReason ?? kept ?? SHUTDOWN_crash,
    dying: state === null && kept === null,
  };
}

/** Domain 0. */
function hostReport(): DomainReport {
  // All but idle.
  const host = cpus();
  const all = host.map((_, cpu) => cpu);
  const vcpus = host.map(({ times }, cpu) => {
    const seconds = (times.user + times.nice + times.sys + times.irq) / 1000;
    return { online: true, running: true, blocked: false, seconds, cpu, hard: all, soft: all };
  });
  return {
    domid: 0,
    name: 'Domain-0',
    uuid: '00000000-0000-0000-0000-000000000000',
    memoryMiB: Math.floor(totalmem() / MIB),
    weight: WEIGHT_DEFAULT,
    cap: 0,
    vcpus,
    seconds: vcpus.reduce((sum, vcpu) => sum + vcpu.seconds, 0),
    uptimeSeconds: uptime(),
    running: true,
    blocked: false,
    paused: false,
    shutdownReason: -1,
    dying: false,
  };
}
