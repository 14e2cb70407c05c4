/**
 * What the settings of an xl.cfg file mean: the domain it describes, with xl's checks in xl's order and libxl's defaults.
 *
 * Three steps: `readStated` takes what the file says (what xl puts into libxl_domain_config), `configJson` shows that the way
 * `xl create -n` does, and `withDefaults` fills in what was left open (libxl's setdefault).
 *
 * Deviations from xl 4.17:
 * - Only PV guests: type "hvm" and "pvh" are refused.
 * - A key that would change the guest and is not honoured yet is named in a warning, once. Keys that xl does not know, and
 *   those that mean nothing to a PV guest, are passed over in silence, as in xl.
 * - Numbers that xl would hand on (vcpus = 10000, memory = -1) and the hypervisor refuse later are refused here, by line.
 * - `engine` is Domus's own.
 *
 * Source: xl.cfg(5); tools/xl/xl_parse.c parse_config_data, tools/libs/light/libxl_create.c (read for behaviour).
 */

import { XEN_LEGACY_MAX_VCPUS } from '../../abi/arch-x86/shared-info.ts';
import { type ChannelConfig, channelJson, parseChannel } from './channel.ts';
import { type CpuSet, parseCpuSet } from './cpu-set.ts';
import { type CpuidConfig, cpuidJson, parseCpuid } from './cpuid.ts';
import { type DiskConfig, diskJson, parseDisk } from './disk.ts';
import { readLimits, type StatedLimits } from './domain-limits.ts';
import { parseVfb, type VfbConfig, vfbJson } from './framebuffer.ts';
import { parseVif, type VifConfig, vifJson } from './network-interface.ts';
import { ConfigError, parseXlConfig, type Setting, type XlConfig } from './xl-cfg.ts';

/** VCPUs that a domain can have: those with a vcpu_info in shared_info. Source: xen/include/public/xen.h, XEN_LEGACY_MAX_VCPUS. */
export const VCPUS_MAX = XEN_LEGACY_MAX_VCPUS;
/** Source: libxl_create.c, libxl__domain_build_info_setdefault. */
const MEMORY_DEFAULT_MIB = 32;
/** Sizes in KiB stay exact numbers up to here, far above any memory. */
const MEMORY_MAX_MIB = 2 ** 40;

/** Source: xl.cfg(5), cpu_weight; libxl_sched.c, sched_credit2_domain_set. */
export const WEIGHT_DEFAULT = 256;
export const WEIGHT_MAX = 65535;
/** CPUs of a host that can be named. */
export const HOST_CPUS_MAX = 1024;
/** Of as many CPUs as there can be. */
const CAP_MAX = HOST_CPUS_MAX * 100;

/** What is done when the domain has shut down, as xl.cfg spells it. */
export type ShutdownAction =
  | 'destroy'
  | 'restart'
  | 'rename-restart'
  | 'preserve'
  | 'coredump-destroy'
  | 'coredump-restart'
  | 'soft-reset';

const SHUTDOWN_ACTIONS: readonly ShutdownAction[] = [
  'destroy',
  'restart',
  'rename-restart',
  'preserve',
  'coredump-destroy',
  'coredump-restart',
  'soft-reset',
];

/** libxl's names for the actions, where they are not the same with `_` for `-`. Source: libxl_types.idl, action_on_shutdown. */
const ACTION_JSON: Partial<Record<ShutdownAction, string>> = { 'rename-restart': 'restart_rename' };

export type EngineChoice = 'auto' | 'kvm' | 'wasm';
const ENGINES: readonly EngineChoice[] = ['auto', 'kvm', 'wasm'];

/** A domain to be built. Complete: nothing is left to a default. */
export interface DomainConfig {
  /** As given; may be empty. */
  readonly name: string;
  /** 16 bytes, in the order in which they are printed. */
  readonly uuid: Uint8Array;
  readonly type: 'pv';
  /** RAM at boot. May be 0 or too little; the builder refuses. */
  readonly memoryMiB: number;
  /** RAM that the guest may balloon up to; at least `memoryMiB`. */
  readonly maxmemMiB: number;
  /** VCPUs online at boot, 1..maxvcpus. */
  readonly vcpus: number;
  /** 1..VCPUS_MAX. */
  readonly maxvcpus: number;
  /** CPUs of the host that each vCPU may use, or prefers. Those that have none here may use all. */
  readonly cpus: readonly CpuSet[];
  readonly cpusSoft: readonly CpuSet[];
  /** 1..WEIGHT_MAX. */
  readonly cpuWeight: number;
  /** Percent of one CPU that all vCPUs may use together; 0 for no limit. */
  readonly cap: number;
  /** What is null is Xen's default. */
  readonly limits: StatedLimits;
  /** File names as given, relative to the working directory; with a bootloader, paths on the disk. Null only with one. */
  readonly kernel: string | null;
  readonly ramdisk: string | null;
  /** The program that finds the kernel on the first disk, as given. */
  readonly bootloader: string | null;
  readonly bootloaderArgs: readonly string[];
  /** The kernel's command line; empty when the config gives none. */
  readonly cmdline: string;
  readonly onPoweroff: ShutdownAction;
  readonly onReboot: ShutdownAction;
  readonly onWatchdog: ShutdownAction;
  readonly onCrash: ShutdownAction;
  readonly onSoftReset: ShutdownAction;
  readonly engine: EngineChoice;
  /** It is shown a CPU that both engines have, and its programs use no other. */
  readonly engineMayChange: boolean;
  readonly cpuid: CpuidConfig;
  readonly disks: readonly DiskConfig[];
  readonly vifs: readonly VifConfig[];
  readonly vfbs: readonly VfbConfig[];
  readonly channels: readonly ChannelConfig[];
  /** It is to serve devices of other domains. */
  readonly driverDomain: boolean;
}

/** What the file says; null is "nothing". */
export interface StatedConfig {
  readonly name: string;
  readonly uuid: Uint8Array;
  readonly memoryMiB: number | null;
  readonly maxmemMiB: number | null;
  /** 0 when not given. */
  readonly vcpus: number;
  readonly maxvcpus: number;
  readonly cpus: readonly CpuSet[];
  readonly cpusSoft: readonly CpuSet[];
  readonly cpuWeight: number | null;
  readonly cap: number | null;
  readonly limits: StatedLimits;
  readonly kernel: string | null;
  readonly ramdisk: string | null;
  readonly bootloader: string | null;
  readonly bootloaderArgs: readonly string[];
  readonly cmdline: string | null;
  readonly onPoweroff: ShutdownAction;
  readonly onReboot: ShutdownAction;
  readonly onWatchdog: ShutdownAction;
  readonly onCrash: ShutdownAction;
  readonly onSoftReset: ShutdownAction;
  readonly engine: EngineChoice;
  /** It is shown a CPU that both engines have, and its programs use no other. */
  readonly engineMayChange: boolean;
  readonly cpuid: CpuidConfig;
  readonly disks: readonly DiskConfig[];
  readonly vifs: readonly VifConfig[];
  readonly vfbs: readonly VfbConfig[];
  readonly channels: readonly ChannelConfig[];
  /** It is to serve devices of other domains. */
  readonly driverDomain: boolean;
}

/** Keys that would change a PV guest and that Domus does not honour yet. */
const UNSUPPORTED_KEYS: readonly string[] = [
  ...['vif2', 'vkb', 'pci', 'vtpm', 'p9', 'pvcalls', 'virtio', 'usbctrl', 'usbdev'],
  ...['vdispl', 'vsnd', 'dtdev', 'iomem', 'ioports', 'irqs', 'passthrough', 'device_tree'],
  ...['init_seclabel', 'seclabel', 'nomigrate', 'e820_host'],
  ...['period', 'slice', 'latency', 'extratime', 'pool', 'vnuma'],
  ...['tsc_mode', 'msr_relaxed', 'localtime', 'rtc_timeoffset', 'xenstore_feature_mask', 'xenstore_quota'],
];

/** Of those, the ones that have to be lists. */
const LIST_KEYS: ReadonlySet<string> = new Set([
  ...['vif2', 'vkb', 'pci', 'vtpm', 'p9', 'pvcalls', 'virtio', 'usbctrl', 'usbdev'],
  ...['vdispl', 'vsnd', 'dtdev', 'iomem', 'ioports', 'irqs', 'vnuma'],
]);

export interface ReadOptions {
  /** Gets each warning, one line without its newline. */
  readonly warn: (line: string) => void;
  /** 16 random bytes for a domain whose config names no uuid; for tests. */
  readonly newUuid?: () => Uint8Array;
  /** How many CPUs the host has; as many as can be named if left out. */
  readonly hostCpus?: number;
}

/**
 * Parses and checks the text of a config file, `source` being its name in messages.
 * Throws ConfigError (xl exits with 1) and nothing else.
 */
export function readStated(source: string, text: string, options: ReadOptions): StatedConfig {
  const config = parseXlConfig(source, text, options.warn);
  checkType(config);

  const name = config.getString('name');
  if (name === undefined) throw new ConfigError('Domain name must be specified.');
  const uuidText = config.getString('uuid');
  const uuid = uuidText === undefined ? (options.newUuid ?? randomUuid)() : parseUuid(uuidText);

  const memoryMiB = getMemory(config, 'memory');
  const maxmemMiB = getMemory(config, 'maxmem');
  const vcpus = getVcpus(config, 'vcpus');
  if (vcpus < 0) throw new ConfigError('Unable to allocate cpumap');
  const maxvcpus = getVcpus(config, 'maxvcpus') || vcpus;
  if (maxvcpus < vcpus) throw new ConfigError('xl: maxvcpus < vcpus');
  const cpuWeight = getBetween(config, 'cpu_weight', 1, WEIGHT_MAX);
  const cap = getBetween(config, 'cap', 0, CAP_MAX);
  const hostCpus = options.hostCpus ?? HOST_CPUS_MAX;
  const cpus = getCpuSets(config, 'cpus', maxvcpus || 1, hostCpus);
  if (cpus.some((set) => set.length === 0)) throw new ConfigError('vcpu hard affinity map is empty');
  const cpusSoft = getCpuSets(config, 'cpus_soft', maxvcpus || 1, hostCpus);
  const limits = readLimits(config);

  const onPoweroff = getAction(config, 'on_poweroff', 'destroy');
  const onReboot = getAction(config, 'on_reboot', 'restart');
  const onWatchdog = getAction(config, 'on_watchdog', 'destroy');
  const onCrash = getAction(config, 'on_crash', 'destroy');
  const onSoftReset = getAction(config, 'on_soft_reset', 'soft-reset');
  const engine = getEngine(config);

  const kernel = config.getString('kernel') ?? null;
  const ramdisk = config.getString('ramdisk') ?? null;
  const bootloader = config.getString('bootloader') ?? null;
  const bootloaderArgs = getBootloaderArgs(config, options.warn);
  const cmdline = getCmdline(config, options.warn);
  const cpuid = getCpuid(config, options.warn);
  warnOfUnsupported(config);
  if (kernel === null && bootloader === null) throw new ConfigError('Neither kernel nor bootloader specified');
  return {
    name,
    uuid,
    memoryMiB,
    maxmemMiB,
    vcpus,
    maxvcpus,
    cpus,
    cpusSoft,
    cpuWeight,
    cap,
    limits,
    kernel,
    ramdisk,
    bootloader,
    bootloaderArgs,
    cmdline,
    onPoweroff,
    onReboot,
    onWatchdog,
    onCrash,
    onSoftReset,
    engine,
    cpuid,
    disks: readStrings(config, 'disk').map((spec) => parseDisk(source, spec)),
    vifs: readStrings(config, 'vif').map((spec, devid) => parseVif(source, spec, devid, options.warn)),
    vfbs: readStrings(config, 'vfb').map((spec, devid) => parseVfb(source, spec, devid)),
    engineMayChange: (config.getLong('engine_may_change') ?? 0n) !== 0n,
    driverDomain: (config.getLong('driver_domain') ?? 0n) !== 0n,
    channels: readStrings(config, 'channel').map((spec, index) => parseChannel(spec, index, options.warn)),
  };
}

/** The strings of a list; none when the setting is missing or no list, which has been warned of. */
function readStrings(config: XlConfig, name: string): string[] {
  return (config.getList(name) ?? []).flatMap((item) => (item.kind === 'string' ? [item.text] : []));
}

/** libxl's defaults: 32 MiB, one VCPU online, and each maximum equal to what the guest boots with. Throws ConfigError for maxmem below memory. */
export function withDefaults(stated: StatedConfig): DomainConfig {
  const maxmemMiB = stated.maxmemMiB ?? stated.memoryMiB ?? MEMORY_DEFAULT_MIB;
  const memoryMiB = stated.memoryMiB ?? maxmemMiB;
  if (maxmemMiB < memoryMiB) throw new ConfigError(`maxmem (${maxmemMiB} MiB) is less than memory (${memoryMiB} MiB)`);
  return {
    ...stated,
    type: 'pv',
    memoryMiB,
    maxmemMiB,
    vcpus: Math.max(stated.vcpus, 1),
    maxvcpus: Math.max(stated.maxvcpus, 1),
    cpuWeight: stated.cpuWeight ?? WEIGHT_DEFAULT,
    cap: stated.cap ?? 0,
    cmdline: stated.cmdline ?? '',
  };
}

/** Config text to a complete DomainConfig. Throws ConfigError. */
export function readDomainConfig(source: string, text: string, options: ReadOptions): DomainConfig {
  return withDefaults(readStated(source, text, options));
}

/**
 * libxl's JSON of what was stated, as `xl create -n` prints it, with a final newline. Members at their default are left out.
 * Source: libxl_types.idl (order of the members); recorded output of xl 4.17 (layout).
 */
export function configJson(stated: StatedConfig): string {
  const maxmemMiB = stated.maxmemMiB ?? stated.memoryMiB;
  const value = {
    c_info: {
      type: 'pv',
      name: stated.name,
      uuid: formatUuid(stated.uuid),
      run_hotplug_scripts: 'True',
      driver_domain: stated.driverDomain ? 'True' : undefined,
    },
    b_info: {
      max_vcpus: stated.maxvcpus || undefined,
      avail_vcpus: stated.vcpus === 0 ? undefined : Array.from({ length: stated.vcpus }, (_, vcpu) => vcpu),
      vcpu_hard_affinity: stated.cpus.length === 0 ? undefined : stated.cpus,
      vcpu_soft_affinity: stated.cpusSoft.length === 0 ? undefined : stated.cpusSoft,
      numa_placement: stated.cpus.length + stated.cpusSoft.length === 0 ? undefined : 'False',
      max_memkb: maxmemMiB === null ? undefined : maxmemMiB * 1024,
      target_memkb: stated.memoryMiB === null ? undefined : stated.memoryMiB * 1024,
      cpuid: cpuidJson(stated.cpuid),
      max_grant_frames: stated.limits.maxGrantFrames ?? undefined,
      max_maptrack_frames: stated.limits.maxMaptrackFrames ?? undefined,
      max_grant_version: stated.limits.maxGrantVersion ?? undefined,
      sched_params: { weight: stated.cpuWeight ?? undefined, cap: stated.cap ?? undefined },
      claim_mode: 'True',
      event_channels: stated.limits.maxEventChannels ?? undefined,
      kernel: stated.kernel ?? undefined,
      cmdline: stated.cmdline ?? undefined,
      ramdisk: stated.ramdisk ?? undefined,
      bootloader: stated.bootloader ?? undefined,
      bootloader_args: stated.bootloaderArgs.length === 0 ? undefined : stated.bootloaderArgs,
      'type.pv': {},
      arch_arm: {},
      arch_x86: {},
    },
    disks: stated.disks.length === 0 ? undefined : stated.disks.map(diskJson),
    nics: stated.vifs.length === 0 ? undefined : stated.vifs.map(vifJson),
    vfbs: stated.vfbs.length === 0 ? undefined : stated.vfbs.map(vfbJson),
    vkbs: stated.vfbs.length === 0 ? undefined : stated.vfbs.map(({ devid }) => ({ devid })),
    channels: stated.channels.length === 0 ? undefined : stated.channels.map(channelJson),
    on_poweroff: actionJson(stated.onPoweroff),
    on_reboot: actionJson(stated.onReboot),
    on_watchdog: actionJson(stated.onWatchdog),
    on_crash: actionJson(stated.onCrash),
    on_soft_reset: actionJson(stated.onSoftReset),
    engine: stated.engine === 'auto' ? undefined : stated.engine,
    engine_may_change: stated.engineMayChange ? 'True' : undefined,
  };
  return libxlJson(value);
}

/** JSON in the layout of libxl's printer, which puts an empty line into an empty object; with a final newline. */
export function libxlJson(value: unknown): string {
  const json = JSON.stringify(value, null, 4);
  return `${json.replace(/^( *)(".*": )\{\}/gm, '$1$2{\n\n$1}')}\n`;
}

function actionJson(action: ShutdownAction): string | undefined {
  return action === 'destroy' ? undefined : (ACTION_JSON[action] ?? action.replace('-', '_'));
}

/** The first letters of a type name it, as in xl. Source: xl_parse.c, strncmp(buf, "hvm", strlen(buf)). */
function checkType(config: XlConfig): void {
  const type = config.getString('type');
  const meant = type === undefined ? undefined : ['hvm', 'pv', 'pvh'].find((known) => known.startsWith(type));
  if (type !== undefined && meant === undefined) throw new ConfigError(`Invalid domain type ${type}.`);
  const builder = config.getString('builder');
  const built = builder === undefined ? undefined : ['hvm', 'generic'].find((known) => known.startsWith(builder));
  if (builder !== undefined && built === undefined) throw new ConfigError(`Invalid domain type ${builder}.`);
  const builderType = built === 'generic' ? 'pv' : built;
  if (meant !== undefined && builderType !== undefined && meant !== builderType) {
    throw new ConfigError('Contradicting "builder" and "type" options specified.');
  }
  const asked = builderType ?? meant ?? 'pv';
  if (asked === 'pv') return;
  const line = (config.settings.get('type') ?? config.settings.get('builder'))!.line;
  throw new ConfigError(
    `${config.source}:${line}: domain type "${asked}" is not supported: Domus runs PV guests, type="pv"`,
  );
}

/** MiB, or null when not given or not a number (which has been warned of). */
function getMemory(config: XlConfig, name: string): number | null {
  const value = config.getLong(name);
  if (value === undefined) return null;
  if (value >= 0n && value <= BigInt(MEMORY_MAX_MIB)) return Number(value);
  throw refusal(config, name, `is ${value}, but memory is given in MiB and lies between 0 and ${MEMORY_MAX_MIB}`);
}

/** 0 when not given. */
function getVcpus(config: XlConfig, name: string): number {
  const value = config.getLong(name) ?? 0n;
  if (value <= BigInt(VCPUS_MAX)) return value < 0n ? -1 : Number(value);
  throw refusal(config, name, `is ${value}, but a domain can have at most ${VCPUS_MAX} VCPUs`);
}

/** Null when not given. */
function getBetween(config: XlConfig, name: string, least: number, most: number): number | null {
  const value = config.getLong(name);
  if (value === undefined) return null;
  if (value >= BigInt(least) && value <= BigInt(most)) return Number(value);
  throw refusal(config, name, `is ${value}, but lies between ${least} and ${most}`);
}

/** A string is for all vCPUs, a list has one of each. Of lists the parser has no numbers: all are strings. */
function getCpuSets(config: XlConfig, name: string, vcpus: number, hostCpus: number): CpuSet[] {
  const setting = config.settings.get(name);
  if (setting === undefined) return [];
  const texts =
    setting.value.kind === 'list'
      ? readStrings(config, name).slice(0, vcpus)
      : Array.from({ length: vcpus }, () => config.getString(name) ?? '');
  return texts.map((text) => {
    const set = parseCpuSet(text, hostCpus);
    if (set === null) throw refusal(config, name, `is "${text}", but CPUs are named as in "all", "3" or "0-3,^2"`);
    return set;
  });
}

function refusal(config: XlConfig, name: string, what: string): ConfigError {
  return new ConfigError(`${config.source}:${config.settings.get(name)!.line}: parameter \`${name}' ${what}`);
}

function getAction(config: XlConfig, name: string, otherwise: ShutdownAction): ShutdownAction {
  const text = config.getString(name) ?? otherwise;
  const action = SHUTDOWN_ACTIONS.find((known) => known === text);
  if (action === undefined) throw new ConfigError(`Unknown ${name} action "${text}" specified`);
  return action;
}

function getEngine(config: XlConfig): EngineChoice {
  const text = config.getString('engine') ?? 'auto';
  const engine = ENGINES.find((known) => known === text);
  if (engine === undefined) throw refusal(config, 'engine', `is "${text}", but the engines are ${ENGINES.join(', ')}`);
  return engine;
}

function getCmdline(config: XlConfig, warn: (line: string) => void): string | null {
  const cmdline = config.getString('cmdline');
  const root = config.getString('root');
  const extra = config.getString('extra');
  if (cmdline !== undefined) {
    if (root !== undefined || extra !== undefined) warn('Warning: ignoring root= and extra= in favour of cmdline=');
    return cmdline;
  }
  if (root === undefined) return extra ?? null;
  return extra === undefined ? `root=${root}` : `root=${root} ${extra}`;
}

/** A list, or a string that is taken apart, with xl's own warning. */
function getBootloaderArgs(config: XlConfig, warn: (line: string) => void): string[] {
  const setting = config.settings.get('bootloader_args');
  if (setting === undefined) return [];
  if (setting.value.kind === 'list') return readStrings(config, 'bootloader_args');
  warn('WARNING: Specifying "bootloader_args" as a string is deprecated. Please use a list of arguments.');
  return (config.getString('bootloader_args') ?? '').split(/[ \t\n]+/).filter((word) => word !== '');
}

function getCpuid(config: XlConfig, warn: (line: string) => void): CpuidConfig {
  const value = config.settings.get('cpuid')?.value;
  if (value?.kind === 'list') return parseCpuid(readStrings(config, 'cpuid'), warn);
  return parseCpuid(config.getString('cpuid') ?? '', warn);
}

function warnOfUnsupported(config: XlConfig): void {
  const found = UNSUPPORTED_KEYS.map((key) => config.settings.get(key)).filter((setting) => setting !== undefined);
  for (const setting of found.sort((a: Setting, b: Setting) => a.line - b.line)) {
    if (LIST_KEYS.has(setting.name)) {
      const items = config.getList(setting.name);
      // A single value has been warned of, and xl ignores it too; an empty list asks for nothing.
      if (items === undefined || items.length === 0) continue;
    }
    config.warnAt(setting, `\`${setting.name}' is not supported yet and ignored`);
  }
}

/** Source: libuuid's uuid_parse, which libxl calls: 36 characters, no braces. */
function parseUuid(text: string): Uint8Array {
  if (!/^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$/.test(text))
    throw new ConfigError(`Failed to parse UUID: ${text}`);
  const digits = text.replaceAll('-', '');
  return Uint8Array.from({ length: 16 }, (_, i) => Number.parseInt(digits.slice(2 * i, 2 * i + 2), 16));
}

/** 16 bytes as `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`, in lower case. */
export function formatUuid(uuid: Uint8Array): string {
  const digits = Array.from(uuid, (byte) => byte.toString(16).padStart(2, '0')).join('');
  return digits.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}

/** A version 4 UUID. Source: RFC 9562, section 5.4. */
function randomUuid(): Uint8Array {
  const uuid = crypto.getRandomValues(new Uint8Array(16));
  uuid[6] = (uuid[6] & 0x0f) | 0x40;
  uuid[8] = (uuid[8] & 0x3f) | 0x80;
  return uuid;
}
