/** What `xl list`, `vcpu-list`, `vm-list` and `uptime` show of a domain, from xenstore and from its process. */

import { cpus, uptime } from 'node:os';
import { SHUTDOWN_crash } from '../../abi/xen.ts';
import { daemonSeconds, endedReasonOf, isThere } from '../../host/domain-client.ts';
import { hostMemory } from '../../host/host-memory.ts';
import { seenState } from '../../host/seen-state.ts';
import { WEIGHT_DEFAULT } from '../../toolstack/config/domain-config.ts';
import type { XenstoreClient } from '../../xenstore/client.ts';
import { allDomains, type Found, nameOf, tryState } from './domains.ts';

/** Instead of SHUTDOWN_*. */
const NOT_SHUT_DOWN = -1;

export interface VcpuReport {
  readonly online: boolean;
  readonly running: boolean;
  readonly blocked: boolean;
  readonly seconds: number;
}

export interface DomainReport {
  readonly domid: number;
  readonly name: string;
  readonly uuid: string;
  /** What it has; what it was promised; what its process has of the host's. */
  readonly memoryKiB: number;
  readonly promisedKiB: number;
  readonly residentKiB: number;
  /** Scheduling parameters. */
  readonly weight: number;
  readonly cap: number;
  readonly vcpus: readonly VcpuReport[];
  /** CPU time of all vCPUs. */
  readonly seconds: number;
  /** CPU time of its process besides: domain 0's part. */
  readonly backendSeconds: number;
  readonly running: boolean;
  readonly blocked: boolean;
  readonly paused: boolean;
  /** SHUTDOWN_*, -1 while it runs. */
  readonly shutdownReason: number;
  readonly dying: boolean;
}

/** By SHUTDOWN_*. Source: xl_list.c (read for behaviour). */
export const SHUTDOWN_LETTERS = '-rscwS';

const KIB_PER_PAGE = 4;
const NS = 1e9;

/** Of those that are there still, in their order. Domain 0 is what the others leave of the host; `all`: those that there are, if that is known. */
export async function domainReports(
  store: XenstoreClient,
  wanted: readonly Found[],
  all: readonly Found[] | null = null,
): Promise<DomainReport[]> {
  const withHost = wanted.some(({ domid }) => domid === 0);
  const asked = (withHost ? (all ?? (await allDomains(store))) : wanted).filter(({ domid }) => domid !== 0);
  const guests = (await Promise.all(asked.map((found) => guestReport(store, found)))).filter((one) => one !== null);
  const reports = new Map(guests.map((report) => [report.domid, report]));
  if (withHost) reports.set(0, hostReport(guests));
  return wanted.flatMap(({ domid }) => reports.get(domid) ?? []);
}

/** Null: there is no such domain. */
export async function domainReport(store: XenstoreClient, domid: number): Promise<DomainReport | null> {
  const name = await nameOf(store, domid);
  return name === null ? null : ((await domainReports(store, [{ domid, name }]))[0] ?? null);
}

async function guestReport(store: XenstoreClient, { domid, name }: Found): Promise<DomainReport | null> {
  const [vm, state] = await Promise.all([store.read(`/local/domain/${domid}/vm`), seenState(domid) ?? tryState(domid)]);
  if (vm === null) return null;
  const kept = state === null ? endedReasonOf(domid) : null;
  const comes = state === null && kept === null && isThere(domid);
  const vcpus = (state?.vcpus ?? []).map(({ timeNs, ...vcpu }) => ({ ...vcpu, seconds: timeNs / NS }));
  const online = vcpus.filter((vcpu) => vcpu.online);
  const memoryKiB = (state?.pages ?? 0) * KIB_PER_PAGE;
  return {
    domid,
    name,
    uuid: vm.replace('/vm/', ''),
    memoryKiB,
    promisedKiB: (state?.promisedPages ?? 0) * KIB_PER_PAGE,
    residentKiB: Math.floor((state?.residentBytes ?? 0) / 1024),
    weight: state?.weight ?? WEIGHT_DEFAULT,
    cap: state?.cap ?? 0,
    vcpus,
    seconds: vcpus.reduce((sum, vcpu) => sum + vcpu.seconds, 0),
    backendSeconds: (state?.backendTimeNs ?? 0) / NS,
    running: online.some((vcpu) => vcpu.running),
    blocked: online.length > 0 && online.every((vcpu) => vcpu.blocked),
    paused: state?.paused ?? comes,
    // A process that was killed is a domain that has crashed; domusd will see to it.
    shutdownReason: state?.shutdownReason ?? kept ?? (comes ? NOT_SHUT_DOWN : SHUTDOWN_crash),
    dying: state === null && kept === null && !comes,
  };
}

/** What a domain may have at most. */
export async function maxMemoryKiBOf(store: XenstoreClient, { domid, memoryKiB }: DomainReport): Promise<number> {
  return domid === 0 ? memoryKiB : Number((await store.read(`/local/domain/${domid}/memory/static-max`)) ?? 0);
}

/** How long a domain has been there; 0 if nobody has noted that. */
export async function uptimeSecondsOf(store: XenstoreClient, { domid, uuid }: DomainReport): Promise<number> {
  if (domid === 0) return uptime();
  const startTime = await store.read(`/vm/${uuid}/start_time`);
  return startTime === null ? 0 : Math.max(0, Date.now() / 1000 - Number(startTime));
}

/**
 * Domain 0: domusd and the backends, on all CPUs of the host. Which CPU their time was spent on nobody counts: it is shared out as
 * the CPUs have been busy.
 */
function hostReport(guests: readonly DomainReport[]): DomainReport {
  const host = cpus();
  const busy = host.map(({ times }) => times.user + times.nice + times.sys + times.irq);
  const busySum = busy.reduce((sum, ms) => sum + ms, 0);
  const seconds = guests.reduce((sum, guest) => sum + guest.backendSeconds, daemonSeconds());
  const vcpus = busy.map((ms) => {
    const part = busySum === 0 ? 1 / busy.length : ms / busySum;
    return { online: true, running: true, blocked: false, seconds: seconds * part };
  });
  const { totalKiB, freeKiB } = hostMemory(guests);
  const theirs = guests.reduce((sum, guest) => sum + guest.memoryKiB, 0);
  const memoryKiB = Math.max(0, totalKiB - freeKiB - theirs);
  return {
    domid: 0,
    name: 'Domain-0',
    uuid: '00000000-0000-0000-0000-000000000000',
    memoryKiB,
    promisedKiB: 0,
    residentKiB: 0,
    weight: WEIGHT_DEFAULT,
    cap: 0,
    vcpus,
    seconds,
    backendSeconds: 0,
    running: true,
    blocked: false,
    paused: false,
    shutdownReason: NOT_SHUT_DOWN,
    dying: false,
  };
}

export function memoryMiB({ memoryKiB }: DomainReport): number {
  return Math.floor(memoryKiB / 1024);
}
