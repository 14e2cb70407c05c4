/**
 * max_grant_frames, max_maptrack_frames, max_grant_version and max_event_channels of xl.cfg; the first three are of xl.conf too, as
 * defaults. What they limit is in hypervisor/domain-limits.ts.
 *
 * Deviations from xl 4.17: it ends without a word where one of the first three is no number or negative, and leaves what else cannot
 * be to Xen ("Invalid argument"); here the line is named. One event channel is refused: those of xenstore and console are two.
 *
 * Source: xl.cfg(5), xl.conf(5); tools/xl/xl_parse.c parse_config_data; tools/libs/light/libxl_create.c; xen/common/grant_table.c
 * grant_table_init (read for behaviour).
 */

import type { DomainLimits } from '../../hypervisor/domain-limits.ts';
import { GRANT_FRAMES_MAX } from '../../machine/memory.ts';
import { ConfigError, type XlConfig } from './xl-cfg.ts';

/** Source: Xen's default `gnttab_max_maptrack_frames`. */
const MAPTRACK_FRAMES_MAX = 1024;
const GRANT_VERSION_MAX = 2;
/** Source: libxl_create.c, libxl__domain_build_info_setdefault. */
const EVENT_CHANNELS_DEFAULT = 1023;
/** Xenstore's and the console's. */
const EVENT_CHANNELS_MIN = 2;

/** What a file says of grants; null is "nothing". */
export interface StatedGrantLimits {
  readonly maxGrantFrames: number | null;
  readonly maxMaptrackFrames: number | null;
  readonly maxGrantVersion: number | null;
}

export interface StatedLimits extends StatedGrantLimits {
  /** Any u32; null for Xen's default. */
  readonly maxEventChannels: number | null;
}

/** Throws ConfigError. */
export function readGrantLimits(config: XlConfig): StatedGrantLimits {
  return {
    maxGrantFrames: getBetween(config, 'max_grant_frames', 1, GRANT_FRAMES_MAX),
    maxMaptrackFrames: getBetween(config, 'max_maptrack_frames', 0, MAPTRACK_FRAMES_MAX),
    maxGrantVersion: getBetween(config, 'max_grant_version', 1, GRANT_VERSION_MAX),
  };
}

/** Throws ConfigError. */
export function readLimits(config: XlConfig): StatedLimits {
  // libxl has 32 bits for it, so -1 is all that there are.
  const channels = Number(BigInt.asUintN(32, config.getLong('max_event_channels') ?? 0n));
  if (channels > 0 && channels < EVENT_CHANNELS_MIN)
    throw refusal(config, 'max_event_channels', `is ${channels}, but a domain needs at least ${EVENT_CHANNELS_MIN}`);
  return { ...readGrantLimits(config), maxEventChannels: channels === 0 ? null : channels };
}

/** `limits`, and where it says nothing, `defaults`. */
export function withGrantDefaults<T extends StatedGrantLimits>(limits: T, defaults: StatedGrantLimits): T {
  return {
    ...limits,
    maxGrantFrames: limits.maxGrantFrames ?? defaults.maxGrantFrames,
    maxMaptrackFrames: limits.maxMaptrackFrames ?? defaults.maxMaptrackFrames,
    maxGrantVersion: limits.maxGrantVersion ?? defaults.maxGrantVersion,
  };
}

export function domainLimits(stated: StatedLimits): DomainLimits {
  return {
    grantFrames: stated.maxGrantFrames ?? GRANT_FRAMES_MAX,
    maptrackFrames: stated.maxMaptrackFrames ?? MAPTRACK_FRAMES_MAX,
    grantVersion: stated.maxGrantVersion ?? GRANT_VERSION_MAX,
    port: stated.maxEventChannels ?? EVENT_CHANNELS_DEFAULT,
  };
}

/** The limits of grants as lines of xl.cfg. */
export function grantLimitSettings(limits: StatedGrantLimits): string[] {
  const settings = {
    max_grant_frames: limits.maxGrantFrames,
    max_maptrack_frames: limits.maxMaptrackFrames,
    max_grant_version: limits.maxGrantVersion,
  };
  return Object.entries(settings).flatMap(([name, value]) => (value === null ? [] : [`${name}=${value}`]));
}

/** Null when not given. A value that is no number has been warned of. */
function getBetween(config: XlConfig, name: string, least: number, most: number): number | null {
  if (!config.settings.has(name)) return null;
  const value = config.getLong(name);
  if (value !== undefined && value >= BigInt(least) && value <= BigInt(most)) return Number(value);
  throw refusal(config, name, `is ${value ?? 'no number'}, but lies between ${least} and ${most}`);
}

function refusal(config: XlConfig, name: string, what: string): ConfigError {
  return new ConfigError(`${config.source}:${config.settings.get(name)!.line}: parameter \`${name}' ${what}`);
}
