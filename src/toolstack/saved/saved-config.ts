/** The config text that goes with a saved domain: complete, so that it means the same wherever it is read. */

import { type CpuSet, formatCpuSet } from '../config/cpu-set.ts';
import { type DomainConfig, formatUuid } from '../config/domain-config.ts';
import { grantLimitSettings } from '../config/domain-limits.ts';
import { appendOverrides } from '../config/xl-cfg.ts';

/** What `xl sched-credit2` and `xl vcpu-pin` may have changed since the domain was made. */
export interface RunningSchedule extends Pick<DomainConfig, 'cpuWeight' | 'cap'> {
  /** A set for each vCPU, of a host with so many CPUs; null where another host's numbers mean nothing. */
  readonly places: { readonly cpus: readonly CpuSet[]; readonly cpusSoft: readonly CpuSet[] } | null;
  readonly hostCpus: number;
}

/**
 * `text` is what `config` was read from; `name` what the domain is called now; `absolute` makes a file's name independent of the folder. `now`: null if `text` says
 * how it is to be scheduled. Source: tools/libs/light/libxl_domain.c, libxl_retrieve_domain_configuration (behaviour), which has weight and cap as they are.
 */
export function completeConfig(
  text: string,
  config: DomainConfig,
  name: string,
  absolute: (file: string) => string,
  now: RunningSchedule | null = null,
): string {
  const settings = [`name=${quote(name)}`, `uuid=${quote(formatUuid(config.uuid))}`];
  // With a bootloader they are files of the guest's disk.
  if (config.bootloader === null) {
    if (config.kernel !== null) settings.push(`kernel=${quote(absolute(config.kernel))}`);
    if (config.ramdisk !== null) settings.push(`ramdisk=${quote(absolute(config.ramdisk))}`);
  }
  // They may be xl.conf's.
  settings.push(...grantLimitSettings(config.limits), ...(now === null ? [] : scheduleSettings(config, now)));
  return appendOverrides(text, settings);
}

/** Those that differ from the config. */
function scheduleSettings(config: DomainConfig, { cpuWeight, cap, places, hostCpus }: RunningSchedule): string[] {
  const settings: string[] = [];
  if (cpuWeight !== config.cpuWeight) settings.push(`cpu_weight=${cpuWeight}`);
  if (cap !== config.cap) settings.push(`cap=${cap}`);
  const formatted = (sets: readonly CpuSet[], vcpus: number): string =>
    `[${Array.from({ length: vcpus }, (_, vcpu) => quote(setText(sets[vcpu], hostCpus))).join(',')}]`;
  for (const [key, before, sets] of [
    ['cpus', config.cpus, places?.cpus],
    ['cpus_soft', config.cpusSoft, places?.cpusSoft],
  ] as const) {
    if (sets === undefined) continue;
    const wanted = formatted(sets, sets.length);
    if (wanted !== formatted(before, sets.length)) settings.push(`${key}=${wanted}`);
  }
  return settings;
}

/** As a config has it. A vCPU that none is stated for may use all. */
function setText(set: CpuSet | undefined, hostCpus: number): string {
  const isAll = set === undefined || Array.from({ length: hostCpus }).every((_, cpu) => set.includes(cpu));
  return isAll ? 'all' : set.length === 0 ? '' : formatCpuSet(set, hostCpus);
}

/** A string of xl.cfg. */
export function quote(text: string): string {
  const escaped = text.replace(/[\\"]/g, '\\$&').replaceAll('\n', '\\n');
  return `"${escaped}"`;
}
