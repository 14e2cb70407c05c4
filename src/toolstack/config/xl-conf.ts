/**
 * xl.conf: what an administrator has set for all domains. Later files count more than earlier ones.
 *
 * Honoured: vif.default.bridge, .script, .gatewaydev and .backend (and their old names), vm.cpumask, vm.pv.cpumask,
 * max_grant_frames, max_maptrack_frames, max_grant_version; and Domus's own migration_listen, where the daemon takes migrations by TLS. Others that xl knows have nothing to act on here; keys that xl does not know are warned about.
 *
 * Source: xl.conf(5); tools/xl/xl.c parse_global_config (read for behaviour).
 */

import { type CpuSet, parseCpuSet } from './cpu-set.ts';
import type { StatedConfig } from './domain-config.ts';
import { readGrantLimits, type StatedGrantLimits, withGrantDefaults } from './domain-limits.ts';
import type { VifConfig } from './network-interface.ts';
import { ConfigError, parseXlConfig, type XlConfig } from './xl-cfg.ts';

export interface XlConf {
  readonly vif: {
    readonly bridge: string | null;
    readonly script: string | null;
    readonly gatewaydev: string | null;
    readonly backend: string | null;
  };
  /** Where migrations are taken; null for nowhere. */
  readonly migrationListen: ListenAddress | null;
  /** CPUs that vCPUs of PV guests may be given; null for all. */
  readonly cpuMask: CpuSet | null;
  /** Of domains whose config says nothing. */
  readonly grants: StatedGrantLimits;
}

export interface ListenAddress {
  readonly host: string;
  readonly port: number;
}

/** Of migrations by TLS: that of xend's relocation server with SSL. */
export const MIGRATION_PORT = 8003;

/** Reads `HOST[:PORT]`, an IPv6 address with a port in brackets; null if it is none. */
export function parseHostPort(text: string): ListenAddress | null {
  const match =
    /^(?:\[([\da-f:.%\w]+)\]|([^\s:[\]/@]+))(?::(\d{1,5}))?$/i.exec(text) ??
    /^([\da-f]*:[\da-f:.]*:[\da-f:.]*)$/i.exec(text);
  if (match === null) return null;
  const port = match[3] === undefined ? MIGRATION_PORT : Number(match[3]);
  return port < 1 || port > 65535 ? null : { host: match[1] ?? match[2], port };
}

/** What is so without a file. */
export const NO_CONF: XlConf = {
  vif: { bridge: null, script: null, gatewaydev: null, backend: null },
  migrationListen: null,
  cpuMask: null,
  grants: { maxGrantFrames: null, maxMaptrackFrames: null, maxGrantVersion: null },
};

/** Known to xl and without anything to act on here. */
const ACCEPTED: readonly string[] = [
  ...['lockfile', 'blkdev_start', 'domid_policy'],
  ...['vm.hvm.cpumask', 'bootloader_restrict', 'remus.default.netbufscript', 'colo.default.proxyscript'],
  ...['claim_mode', 'run_hotplug_scripts'],
];
const LISTEN = 'migration_listen';
/** The new name comes first. */
const VIF_KEYS = {
  bridge: ['vif.default.bridge', 'defaultbridge'],
  script: ['vif.default.script', 'vifscript'],
  gatewaydev: ['vif.default.gatewaydev'],
  backend: ['vif.default.backend'],
} as const;

export interface XlConfFile {
  readonly name: string;
  readonly text: string;
}

/** `hostCpus`: how many CPUs the host has. Throws ConfigError. */
export function parseXlConf(files: readonly XlConfFile[], hostCpus: number, warn: (line: string) => void): XlConf {
  let conf = NO_CONF;
  for (const { name, text } of files) {
    const config = parseXlConfig(name, text, warn);
    const vif = { ...conf.vif };
    for (const key of Object.keys(VIF_KEYS) as (keyof typeof VIF_KEYS)[])
      vif[key] = VIF_KEYS[key].map((one) => config.getString(one)).find((one) => one !== undefined) ?? vif[key];
    oneOf(config, 'autoballoon', ['on', 'off', 'auto', '0', '1']);
    oneOf(config, 'output_format', ['json']);
    const migrationListen = listenOf(config) ?? conf.migrationListen;
    const grants = withGrantDefaults(readGrantLimits(config), conf.grants);
    conf = { vif, migrationListen, cpuMask: maskOf(config, hostCpus) ?? conf.cpuMask, grants };
    warnOfUnknown(config);
  }
  return conf;
}

function oneOf(config: XlConfig, name: string, values: readonly string[]): void {
  const value = config.getString(name);
  if (value === undefined || values.includes(value)) return;
  const line = config.settings.get(name)!.line;
  throw new ConfigError(
    `${config.source}:${line}: parameter \`${name}' is "${value}", but may be ${values.map((one) => `"${one}"`).join(', ')}`,
  );
}

function listenOf(config: XlConfig): ListenAddress | null {
  const text = config.getString(LISTEN);
  if (text === undefined) return null;
  const address = parseHostPort(text);
  if (address !== null) return address;
  throw new ConfigError(
    `${config.source}:${config.settings.get(LISTEN)!.line}: parameter \`${LISTEN}' is "${text}", but must be an address and perhaps a port, such as "0.0.0.0" or "[::1]:${MIGRATION_PORT}"`,
  );
}

/** The common part of both masks; null if there is none. */
function maskOf(config: XlConfig, hostCpus: number): CpuSet | null {
  let mask: CpuSet | null = null;
  for (const name of ['vm.cpumask', 'vm.pv.cpumask']) {
    const setting = config.settings.get(name);
    if (setting === undefined) continue;
    const value = setting.value;
    const texts =
      value.kind === 'string'
        ? [value.text]
        : value.items.flatMap((item) => (item.kind === 'string' ? [item.text] : []));
    const set = parseCpuSet(texts.join(','), hostCpus);
    if (set === null || set.length === 0)
      throw new ConfigError(`${config.source}:${setting.line}: parameter \`${name}' names no CPUs of this host`);
    mask = mask === null ? set : mask.filter((cpu) => set.includes(cpu));
  }
  return mask;
}

function warnOfUnknown(config: XlConfig): void {
  const known: readonly string[] = [
    ...ACCEPTED,
    ...Object.values(VIF_KEYS).flat(),
    ...[LISTEN, 'autoballoon', 'output_format', 'vm.cpumask', 'vm.pv.cpumask'],
    ...['max_grant_frames', 'max_maptrack_frames', 'max_grant_version'],
  ];
  for (const setting of config.settings.values())
    if (!known.includes(setting.name))
      config.warnAt(setting, `\`${setting.name}' is no setting of xl.conf, and ignored`);
}

/** What a vif leaves open. */
export function withVifDefaults(vif: VifConfig, { vif: defaults }: XlConf): VifConfig {
  return {
    ...vif,
    bridge: vif.bridge ?? defaults.bridge,
    script: vif.script ?? defaults.script,
    gatewaydev: vif.gatewaydev ?? defaults.gatewaydev,
    backendDomain: vif.backendDomain ?? defaults.backend,
  };
}

/** The part of a hard affinity that the masks leave. Throws ConfigError if that is nothing. */
export function maskedCpus(set: CpuSet, { cpuMask }: XlConf): CpuSet {
  const left = cpuMask === null ? set : set.filter((cpu) => cpuMask.includes(cpu));
  if (left.length === 0) throw new ConfigError('vcpu hard affinity map is empty');
  return left;
}

/** A domain's config with what xl.conf says. Throws ConfigError. */
export function withXlConf(stated: StatedConfig, conf: XlConf, ignoreMasks: boolean): StatedConfig {
  const vifs = stated.vifs.map((vif) => withVifDefaults(vif, conf));
  const { cpuMask } = conf;
  const limits = withGrantDefaults(stated.limits, conf.grants);
  if (ignoreMasks || cpuMask === null) return { ...stated, vifs, limits };
  const count = Math.max(stated.maxvcpus, 1);
  const cpus =
    stated.cpus.length === 0
      ? Array.from({ length: count }, () => cpuMask)
      : stated.cpus.map((set) => maskedCpus(set, conf));
  return { ...stated, vifs, limits, cpus };
}
