/**
 * What has to be known of a domain to start it again, `domains/DOMID/record.json`: its process reads it when the domain restarts (`xl config-update`
 * may have changed it), and domusd when the process was killed. Which devices it has by then stands in xenstore.
 */
import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { ConfigAndText } from '../toolstack/config/device-specs.ts';
import type { DomainConfig } from '../toolstack/config/domain-config.ts';
import type { StatedLimits } from '../toolstack/config/domain-limits.ts';
import { type PluggedDevices, withPlugged } from '../toolstack/plugged-devices.ts';
import { domainFolder } from './state-dir.ts';

export interface DomainRecord {
  readonly config: DomainConfig;
  /** What it was read from. */
  readonly configText: string;
  /** Options of `xl create`: nothing is said of restarts; no on_* action is done. */
  readonly quiet: boolean;
  readonly preserve: boolean;
  /** Where files of the config are looked for, and the settings of Domus by variables. */
  readonly cwd: string;
  readonly environment: Readonly<Record<string, string>>;
  /** By `xl config-update`: what counts from its next start on, devices included. Null if there is none; no such member in records of before. */
  readonly next?: ConfigAndText | null;
  /** Of the host's run in which the domain was started: what ended with the host has not crashed. */
  readonly bootId: string;
}

const VERSION = 1;
const NO_LIMITS: StatedLimits = {
  maxGrantFrames: null,
  maxMaptrackFrames: null,
  maxGrantVersion: null,
  maxEventChannels: null,
};

/** Empty where the system has no such thing. */
export function hostBootId(): string {
  try {
    return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  } catch {
    return '';
  }
}

/** A record of a domain of this process. */
export function recordOf(started: Pick<DomainRecord, 'config' | 'configText' | 'quiet' | 'preserve'>): DomainRecord {
  const environment: Record<string, string> = {};
  for (const [name, value] of Object.entries(process.env))
    if (/^(?:DOMUS_|XDG_CACHE_HOME$)/.test(name) && value !== undefined) environment[name] = value;
  return { ...started, cwd: process.cwd(), environment, bootId: hostBootId() };
}

function recordPath(root: string, domid: number): string {
  return join(domainFolder(root, domid), 'record.json');
}

/** The domain's folder must be there. */
export function writeRecord(root: string, domid: number, record: DomainRecord): void {
  prepareRecord(root, domid, record)();
}

/** Writes it where nobody looks for it; call what comes back to put it in its place. The domain's folder must be there. */
export function prepareRecord(root: string, domid: number, record: DomainRecord): () => void {
  const path = recordPath(root, domid);
  const text = JSON.stringify({ version: VERSION, ...record }, (_, value: unknown) =>
    value instanceof Uint8Array ? { hex: Buffer.from(value).toString('hex') } : value,
  );
  // At once or not at all: it may be read at any time.
  const temporary = `${path}.${process.pid}`;
  writeFileSync(temporary, text, { mode: 0o600 });
  return () => renameSync(temporary, path);
}

/** With what the domain is started again, if it has these devices now; null where that is not known. */
export function nextConfigOf(record: DomainRecord, plugged: PluggedDevices | null): ConfigAndText {
  if (record.next) return record.next;
  const now = { config: record.config, text: record.configText };
  return plugged === null ? now : withPlugged(now, plugged);
}

/** It ends for good: nobody starts it again. */
export function forgetRecord(root: string, domid: number): void {
  rmSync(recordPath(root, domid), { force: true });
}

/** Null if there is none, or one of another version of Domus. */
export function readRecord(root: string, domid: number): DomainRecord | null {
  let value: unknown;
  try {
    value = JSON.parse(readFileSync(recordPath(root, domid), 'utf8'), (_, member: unknown) => {
      const isBytes = typeof member === 'object' && member !== null && Object.keys(member).join() === 'hex';
      return isBytes ? Uint8Array.from(Buffer.from(String((member as { hex: unknown }).hex), 'hex')) : member;
    });
  } catch {
    return null;
  }
  if (typeof value !== 'object' || value === null || !('version' in value) || value.version !== VERSION) return null;
  // Written by us, in a folder that is the user's only.
  const record = value as unknown as DomainRecord;
  // A domain of before there were such settings.
  return 'limits' in record.config
    ? record
    : { ...record, config: { ...(record as DomainRecord).config, limits: NO_LIMITS } };
}
