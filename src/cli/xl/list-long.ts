/**
 * `xl list -l`: libxl_domain_config of each domain as JSON. What the domain was created from is kept beside its sockets; what
 * may have changed since, name, memory, vCPUs, disks and interfaces, is asked of xenstore.
 *
 * Source: recorded output of xl 4.17 (members and layout).
 */

import { readDomainConfigJson } from '../../host/domain-client.ts';
import { nextConfigOf, readRecord } from '../../host/domain-record.ts';
import { stateRoot } from '../../host/state-dir.ts';
import { configJson, libxlJson } from '../../toolstack/config/domain-config.ts';
import { readPlugged } from '../../toolstack/plugged-devices.ts';
import type { XenstoreClient } from '../../xenstore/client.ts';
import type { DomainReport } from './domain-report.ts';

type Json = Record<string, unknown>;

interface Stored {
  readonly c_info?: Json;
  readonly b_info?: Json;
  readonly disks?: readonly Json[];
  readonly nics?: readonly Json[];
}

/** Ends with a newline. */
export async function longList(store: XenstoreClient, reports: readonly DomainReport[]): Promise<string> {
  const entries: Json[] = [];
  for (const report of reports) {
    const config = report.domid === 0 ? hostConfig(report) : await domainConfig(store, report);
    entries.push({ domid: report.domid, config });
  }
  return `${libxlJson(entries)}\n`;
}

function hostConfig({ name, memoryKiB, weight, cap }: DomainReport): Json {
  return {
    c_info: { type: 'pv', name },
    b_info: {
      max_memkb: memoryKiB,
      target_memkb: memoryKiB,
      sched_params: { sched: 'credit2', weight, cap },
      'type.pv': {},
      arch_arm: {},
      arch_x86: {},
    },
  };
}

async function storedConfig(store: XenstoreClient, domid: number): Promise<Stored> {
  const record = readRecord(stateRoot(), domid);
  if (record === null) return readDomainConfigJson(domid) as Stored;
  // What `xl config-update` says of it is still to come.
  const { config } = nextConfigOf({ ...record, next: null }, await readPlugged(store, domid));
  return JSON.parse(configJson(config)) as Stored;
}

async function domainConfig(store: XenstoreClient, report: DomainReport): Promise<Json> {
  const { domid, name, uuid } = report;
  const { c_info, b_info, disks, nics, ...rest } = await storedConfig(store, domid);
  const memory = `/local/domain/${domid}/memory`;
  const kib = async (node: string): Promise<number> => Number((await store.read(`${memory}/${node}`)) ?? 0);
  const online = report.vcpus.flatMap((vcpu, id) => (vcpu.online ? [id] : []));
  const changing = ['max_vcpus', 'avail_vcpus', 'max_memkb', 'target_memkb', 'sched_params', 'arch_x86'];
  return {
    c_info: { type: 'pv', name, domid: 0xffffffff, uuid, ...without(c_info ?? {}, ['type', 'name', 'uuid']) },
    b_info: {
      max_vcpus: report.vcpus.length,
      avail_vcpus: online,
      max_memkb: await kib('static-max'),
      target_memkb: await kib('target'),
      video_memkb: 0,
      sched_params: { sched: 'credit2', weight: report.weight, cap: report.cap },
      ...without(b_info ?? {}, changing),
      arch_x86: { msr_relaxed: 'False' },
    },
    ...(disks === undefined ? {} : { disks: disks.map((disk) => ({ ...disk, colo_restore_enable: 'False' })) }),
    ...(nics === undefined ? {} : { nics: nics.map(withType) }),
    ...rest,
  };
}

/** What libxl prints behind a nic's type. */
const BEHIND_TYPE = ['rate_bytes_per_interval', 'rate_interval_usecs', 'gatewaydev', 'trusted', 'forward', 'loopback'];

function withType(nic: Json): Json {
  const behind = Object.fromEntries(Object.entries(nic).filter(([name]) => BEHIND_TYPE.includes(name)));
  return { ...without(nic, BEHIND_TYPE), nictype: nic['nictype'] ?? 'vif', ...behind };
}

function without(object: Json, names: readonly string[]): Json {
  return Object.fromEntries(Object.entries(object).filter(([name]) => !names.includes(name)));
}
