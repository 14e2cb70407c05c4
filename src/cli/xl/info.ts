/**
 * `xl info`: the host and the hypervisor. The host is what Node says of it.
 * Source: xl(1); tools/xl/xl_info.c (read for behaviour); recorded output of xl 4.17.
 */

import { readFileSync } from 'node:fs';
import { cpus, hostname, machine, release, version } from 'node:os';
import { domainMemories, type HostMemory, hostMemory } from '../../host/host-memory.ts';
import { hypervisorFacts } from '../../toolstack/hypervisor-facts.ts';
import { type Command, readWords } from './command.ts';

export const info: Command = {
  name: 'info',
  modifies: false,
  canDryRun: false,
  summary: 'Get information about Xen host',
  usage: '',
  options: '-n, --numa         List host NUMA topology information',
  async run(words, context) {
    const long = [{ name: 'numa', takesValue: false, key: 'n' }];
    const parsed = readWords(info, words, { letters: 'n', long }, 0, context);
    if (typeof parsed === 'number') return parsed;
    const memory = hostMemory(await domainMemories());
    const all = infoLines(parsed.options.length > 0 && parsed.operands[0] === undefined, memory);
    const wanted = parsed.operands[0];
    for (const line of all) {
      if (typeof line === 'string') context.out(`${line}\n`);
      else if (wanted === undefined) context.out(`${line[0].padEnd(22)} : ${line[1]}\n`);
      else if (wanted === line[0]) context.out(`${line[1]}\n`);
    }
    return 0;
  },
};

/** Node does not know it on every Linux. */
export function cpuMhz(speed: number): string {
  if (speed !== 0) return `${speed}.000`;
  try {
    return /^cpu MHz\s*: (\d+\.\d+)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1] ?? '0.000';
  } catch {
    return '0.000';
  }
}

/** Names and values; plain lines of tables between them. */
function infoLines(numa: boolean, memory: HostMemory): (string | readonly [string, string])[] {
  const processors = cpus();
  const count = processors.length;
  const total = String(Math.floor(memory.totalKiB / 1024));
  const free = String(Math.floor(memory.freeKiB / 1024));
  const facts = hypervisorFacts();
  const tables = [
    'cpu_topology           :',
    'cpu:    core    socket     node',
    ...processors.map((_, cpu) => `${String(cpu).padStart(3)}: ${String(cpu).padStart(7)}        0        0`),
    'device topology        :',
    'device           node',
    'No device topology data available',
    'numa_info              :',
    'node:    memsize    memfree    distances',
    `   0:    ${total.padStart(6)}     ${free.padStart(6)}      10`,
  ];
  return [
    ['host', hostname()],
    ['release', release()],
    ['version', version()],
    ['machine', machine()],
    ['nr_cpus', String(count)],
    ['max_cpu_id', String(count - 1)],
    ['nr_nodes', '1'],
    ['cores_per_socket', String(count)],
    ['threads_per_core', '1'],
    ['cpu_mhz', cpuMhz(processors[0]?.speed ?? 0)],
    ['virt_caps', 'pv gnttab-v1'],
    ['total_memory', total],
    ['free_memory', free],
    ['sharing_freed_memory', '0'],
    ['sharing_used_memory', '0'],
    ['outstanding_claims', '0'],
    ['free_cpus', '0'],
    ...(numa ? tables : []),
    ['xen_major', String(facts.major)],
    ['xen_minor', String(facts.minor)],
    ['xen_extra', facts.extraversion],
    ['xen_version', `${facts.major}.${facts.minor}${facts.extraversion}`],
    ['xen_caps', facts.capabilities],
    ['xen_scheduler', 'credit2'],
    ['xen_pagesize', String(facts.pageSize)],
    ['platform_params', `virt_start=0x${facts.virtualStart.toString(16)}`],
    ['xen_changeset', ''],
    ['xen_commandline', ''],
    ['cc_compiler', facts.compiler],
    ['cc_compile_by', facts.compileBy],
    ['cc_compile_domain', facts.compileDomain],
    ['cc_compile_date', facts.compileDate],
    ['build_id', ''],
    ['xend_config_format', '4'],
  ];
}
