/** `xl vcpu-list` and `xl vcpu-set`. Source: xl(1); recorded output of xl 4.17. */

import { cpus } from 'node:os';
import type { ControlState } from '../../host/control-protocol.ts';
import { formatCpuSet } from '../../toolstack/config/cpu-set.ts';
import { setOnlineVcpus } from '../../toolstack/domain-control.ts';
import { type Command, readWords } from './command.ts';
import { type DomainReport, domainReports } from './domain-report.ts';
import { allDomains, CommandError, findDomain, tryState, withStore } from './domains.ts';

type VcpuPlace = Pick<ControlState['vcpus'][number], 'cpu' | 'hard' | 'soft'>;
const NOWHERE: VcpuPlace = { cpu: -1, hard: [], soft: [] };

const HEADER = 'Name                                ID  VCPU   CPU State   Time(s) Affinity (Hard / Soft)\n';

export const vcpuList: Command = {
  name: 'vcpu-list',
  modifies: false,
  canDryRun: false,
  summary: 'List the VCPUs for all/some domains',
  usage: '[Domain, ...]',
  options: '',
  async run(words, context) {
    const parsed = readWords(vcpuList, words, { letters: '' }, 0, context);
    if (typeof parsed === 'number') return parsed;
    context.out(HEADER);
    return await withStore(context, async (store) => {
      const found =
        parsed.operands.length === 0
          ? await allDomains(store)
          : await Promise.all(parsed.operands.map((word) => findDomain(store, word)));
      const all = parsed.operands.length === 0 ? found : null;
      const reports = await domainReports(store, found, all);
      const places = await Promise.all(reports.map(({ domid }) => placesOf(domid)));
      for (const [i, report] of reports.entries()) context.out(rows(report, places[i]));
      return 0;
    });
  },
};

/** Where its vCPUs run; nothing of a domain whose process is gone. Those of domain 0 are the host's CPUs. */
async function placesOf(domid: number): Promise<readonly VcpuPlace[]> {
  if (domid !== 0) return (await tryState(domid))?.vcpus ?? [];
  const all = cpus().map((_, cpu) => cpu);
  return all.map((cpu) => ({ cpu, hard: all, soft: all }));
}

function rows({ name, domid, vcpus, paused }: DomainReport, places: readonly VcpuPlace[]): string {
  const hostCpus = cpus().length;
  return vcpus
    .map(({ online, running, blocked, seconds }, vcpu) => {
      const { cpu, hard, soft } = places[vcpu] ?? NOWHERE;
      const start = `${name.padEnd(32)} ${String(domid).padStart(5)} ${String(vcpu).padStart(5)}`;
      const on = (online && cpu >= 0 ? String(cpu) : '-').padStart(5);
      const state = online
        ? `${on} ${(running && !paused ? 'r' : '-').padStart(3)}${blocked ? 'b' : '-'}- `
        : `${on} ${'-'.padStart(3)}-p `;
      const affinity = `${formatCpuSet(hard, hostCpus)} / ${formatCpuSet(soft, hostCpus)}`;
      return `${start}${state}${seconds.toFixed(1).padStart(9)}  ${affinity}\n`;
    })
    .join('');
}

export const vcpuSet: Command = {
  name: 'vcpu-set',
  modifies: true,
  canDryRun: false,
  summary: 'Set the number of active VCPUs allowed for the domain',
  usage: '[option] <Domain> <vCPUs>',
  options: "-i, --ignore-host  Don't limit the vCPU based on the host CPU count",
  async run(words, context) {
    const long = [{ name: 'ignore-host', takesValue: false, key: 'i' }];
    const parsed = readWords(vcpuSet, words, { letters: 'i', long }, 2, context);
    if (typeof parsed === 'number') return parsed;
    const [word, count] = parsed.operands;
    if (!/^\d{1,5}$/.test(count)) {
      context.err('Error: Invalid argument.');
      return 1;
    }
    return await withStore(context, async (store) => {
      const { domid } = await findDomain(store, word);
      if (domid === 0) throw new CommandError('libxl: error: Domain 0:its vCPUs are the CPUs of the host');
      const online = (await tryState(domid))?.vcpus.filter((vcpu) => vcpu.online).length ?? 0;
      const host = cpus().length;
      if (parsed.options.length === 0 && Number(count) > online && Number(count) > host)
        throw new CommandError(`The host has ${host} CPUs, and ${count} vCPUs are asked for: --ignore-host gives them`);
      try {
        await setOnlineVcpus(store, domid, Number(count));
      } catch (error) {
        if (!(error instanceof Error && error.name === 'DomainControlError')) throw error;
        throw new CommandError(
          `libxl: error: ${error.message}\nlibxl_set_vcpuonline failed domid=${domid} max_vcpus=${count}, rc: -3`,
        );
      }
      return 0;
    });
  },
};
