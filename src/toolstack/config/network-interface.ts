/**
 * `vif = [ "SPEC", ... ]`: what one specification says.
 *
 * As in xl, a key that nobody knows and a bad MAC address are told and passed over: the interface is there without them. A bad rate
 * or number ends the program; so does, unlike there, a MAC address of a group, with which no guest brings its interface up.
 *
 * `forward` and `loopback` are Domus's own, for NAT; so is `macfilter`, for every network.
 *
 * Source: xl-network-configuration(5); tools/xl/xl_parse.c parse_nic_config, tools/libs/util/libxlu_vif.c (read for behaviour).
 */

import { boolJson } from './disk.ts';
import { ConfigError } from './xl-cfg.ts';

export interface VifRate {
  readonly bytesPerInterval: number;
  readonly intervalUs: number;
}

/** What was said; null is "nothing". */
export interface VifConfig {
  readonly devid: number;
  readonly mtu: number | null;
  readonly model: string | null;
  /** Six bytes; null for an address that is to be made up. */
  readonly mac: Uint8Array | null;
  readonly ip: string | null;
  readonly bridge: string | null;
  readonly ifname: string | null;
  readonly script: string | null;
  readonly type: 'vif' | 'vif_ioemu' | null;
  readonly backendDomain: string | null;
  readonly gatewaydev: string | null;
  readonly rate: VifRate | null;
  readonly trusted: boolean | null;
  /** Ports of the host that lead into the guest, as written (network/nat/forwards.ts). Domus's own. */
  readonly forwards: readonly string[];
  /** With NAT, the gateway's address is the host's loopback. Domus's own. */
  readonly loopback: boolean;
  /** Frames from another address than `mac` are thrown away. Domus's own. */
  readonly macFilter: boolean;
}

const U32_END = 2 ** 32;
const DEFAULT_INTERVAL_US = 50_000;

interface MutableVif {
  devid: number;
  mtu: number | null;
  model: string | null;
  mac: Uint8Array | null;
  ip: string | null;
  bridge: string | null;
  ifname: string | null;
  script: string | null;
  type: 'vif' | 'vif_ioemu' | null;
  backendDomain: string | null;
  gatewaydev: string | null;
  rate: VifRate | null;
  trusted: boolean | null;
  forwards: string[];
  loopback: boolean;
  macFilter: boolean;
}

/**
 * Parses an interface; `devid` is its number unless it names another, `warn` gets what was passed over.
 * @throws ConfigError
 */
export function parseVif(source: string, spec: string, devid: number, warn: (line: string) => void): VifConfig {
  const vif: MutableVif = {
    devid,
    mtu: null,
    model: null,
    mac: null,
    ip: null,
    bridge: null,
    ifname: null,
    script: null,
    type: null,
    backendDomain: null,
    gatewaydev: null,
    rate: null,
    trusted: null,
    forwards: [],
    loopback: true,
    macFilter: false,
  };
  for (const part of spec.split(',')) if (part !== '') setParameter(vif, source, part.replace(/^ +/, ''), warn);
  if (vif.mac !== null && (vif.mac[0] & 1) !== 0)
    throw new ConfigError(
      `${source}: vif: mac=${formatMac(vif.mac)}: expected the address of one interface, found one of a group`,
    );
  if (vif.macFilter && vif.backendDomain !== null)
    throw new ConfigError(`${source}: vif: macfilter=1: not with backend=, whose domain filters as it likes`);
  return vif;
}

function setParameter(vif: MutableVif, source: string, token: string, warn: (line: string) => void): void {
  const equals = token.indexOf('=');
  const key = equals < 0 ? token : token.slice(0, equals + 1);
  const value = equals < 0 ? '' : token.slice(equals + 1);
  switch (key) {
    case 'type=':
      if (value === 'vif') vif.type = 'vif';
      else if (value === 'ioemu') vif.type = 'vif_ioemu';
      else warn("Invalid parameter `type'.");
      return;
    case 'mac=':
      vif.mac = parseMac(value, warn);
      return;
    case 'bridge=':
      vif.bridge = value;
      return;
    case 'netdev=':
      warn('the netdev parameter is deprecated, please use gatewaydev instead');
      vif.gatewaydev = value;
      return;
    case 'gatewaydev=':
      vif.gatewaydev = value;
      return;
    case 'ip=':
      vif.ip = value;
      return;
    case 'script=':
      vif.script = value;
      return;
    case 'backend=':
      vif.backendDomain = value;
      return;
    case 'vifname=':
      vif.ifname = value;
      return;
    case 'model=':
      vif.model = value;
      return;
    case 'rate=':
      vif.rate = parseRate(source, value);
      return;
    case 'accel=':
      warn('the accel parameter for vifs is currently not supported');
      return;
    case 'devid=':
      vif.devid = parseNumber(value);
      return;
    case 'mtu=':
      vif.mtu = parseNumber(value);
      return;
    case 'forward=':
      vif.forwards.push(value);
      return;
    case 'loopback=':
      vif.loopback = parseFlag(source, token, value);
      return;
    case 'macfilter=':
      vif.macFilter = parseFlag(source, token, value);
      return;
    case 'trusted':
      vif.trusted = true;
      return;
    case 'untrusted':
      vif.trusted = false;
      return;
    default:
      // Of COLO, which needs HVM guests.
      if (/^(colo_\w+|forwarddev)=$/.test(key)) return;
      warn(`unrecognized argument \`${token}'`);
  }
}

function parseFlag(source: string, token: string, value: string): boolean {
  if (value !== '0' && value !== '1') throw new ConfigError(`${source}: vif: ${token}: expected 0 or 1`);
  return value === '1';
}

/** Six bytes in hexadecimal with any one character between them. */
function parseMac(text: string, warn: (line: string) => void): Uint8Array | null {
  const match =
    /^([0-9a-f]{1,2}).([0-9a-f]{1,2}).([0-9a-f]{1,2}).([0-9a-f]{1,2}).([0-9a-f]{1,2}).([0-9a-f]{1,2})/i.exec(text);
  if (match === null) {
    warn("Invalid parameter `mac'.");
    return null;
  }
  const mac = Uint8Array.from(match.slice(1), (digits) => Number.parseInt(digits, 16));
  // All zero is how libxl says "none".
  return mac.some((byte) => byte !== 0) ? mac : null;
}

function parseNumber(text: string): number {
  const match = /^\s*(\d+)/.exec(text);
  const value = match === null ? Number.NaN : Number(match[1]);
  if (!Number.isSafeInteger(value)) throw new ConfigError(`xl: failed to convert "${text}" to number`);
  return value;
}

const UNITS: Readonly<Record<string, bigint>> = { '': 1n, K: 1000n, M: 1000_000n, G: 1000_000_000n };
const INTERVAL_UNITS: Readonly<Record<string, number>> = {
  '': 1_000_000,
  s: 1_000_000,
  ms: 1000,
  m: 1000,
  us: 1,
  u: 1,
};

/** Such as `10Mb/s@20ms`. */
function parseRate(source: string, rate: string): VifRate {
  const error = (what: string, where: string): ConfigError =>
    new ConfigError(`${source}: config parsing error in vif: ${what} in \`${where}'`);
  const at = rate.indexOf('@');
  const amount = at < 0 ? rate : rate.slice(0, at);
  const interval = at < 0 ? null : rate.slice(at + 1);
  if (amount === '') throw error('no rate specified', rate);
  const match = /^(\d+)([GMK]?)([Bb])\/s$/.exec(amount);
  if (match === null) throw error('invalid rate', amount);
  const count = BigInt(match[1]);
  if (count === 0n || count >= BigInt(U32_END)) throw error('rate overflow', amount);
  const bytesPerSecond = (count * UNITS[match[2]]) / (match[3] === 'b' ? 8n : 1n);
  let intervalUs = DEFAULT_INTERVAL_US;
  if (interval !== null) {
    const parts = /^(\d+)([mu]?s?)$/.exec(interval);
    if (parts === null) throw error('invalid replenishment interval', interval);
    const value = Number(parts[1]);
    intervalUs = value * INTERVAL_UNITS[parts[2]];
    if (value === 0 || intervalUs >= U32_END) throw error('replenishment interval overflow', interval);
  }
  if (bytesPerSecond * BigInt(intervalUs) >= 1n << 64n) throw error('rate overflow', rate);
  return { bytesPerInterval: Number((bytesPerSecond * BigInt(intervalUs)) / 1_000_000n), intervalUs };
}

/** `00:16:3e:...`. */
export function formatMac(mac: Uint8Array): string {
  return Array.from(mac, (byte) => byte.toString(16).padStart(2, '0')).join(':');
}

/** Members of libxl's JSON, in the order of libxl_types.idl; undefined where they are at their default. */
export function vifJson(vif: VifConfig): Record<string, unknown> {
  return {
    backend_domname: vif.backendDomain ?? undefined,
    devid: vif.devid,
    mtu: vif.mtu ?? undefined,
    model: vif.model ?? undefined,
    mac: vif.mac === null ? undefined : formatMac(vif.mac),
    ip: vif.ip ?? undefined,
    bridge: vif.bridge ?? undefined,
    ifname: vif.ifname ?? undefined,
    script: vif.script ?? undefined,
    nictype: vif.type ?? undefined,
    rate_bytes_per_interval: vif.rate?.bytesPerInterval,
    rate_interval_usecs: vif.rate?.intervalUs,
    gatewaydev: vif.gatewaydev ?? undefined,
    trusted: boolJson(vif.trusted),
    forward: vif.forwards.length === 0 ? undefined : vif.forwards,
    loopback: vif.loopback ? undefined : boolJson(false),
    macfilter: vif.macFilter ? boolJson(true) : undefined,
  };
}

/** An address in the range of Xen's. Source: libxl_nic.c, libxl__device_nic_setdefault. */
export function makeUpMac(): Uint8Array {
  const random = crypto.getRandomValues(new Uint8Array(3));
  return Uint8Array.of(0x00, 0x16, 0x3e, random[0] & 0x7f, random[1], random[2]);
}
