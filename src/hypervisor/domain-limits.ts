/** What a domain may have of grants and event channels at most. The toolstack decides; its defaults are in toolstack/config/domain-limits.ts. */

import { GRANT_FRAMES_MAX } from '../machine/memory.ts';

/** Ports of the 2-level ABI, port 0 among them. Source: xen/include/public/event_channel.h, EVTCHN_2L_NR_CHANNELS. */
export const EVENT_CHANNELS = 4096;
/** Grants that a domain can have mapped at a time, each with a handle. */
export const MAPTRACK_ENTRIES = 8192;
/** Handles of a maptrack frame. Source: xen/common/grant_table.c, MAPTRACK_PER_PAGE (entries of 16 bytes). */
const MAPTRACK_PER_FRAME = 256;

export interface DomainLimits {
  /** 1..GRANT_FRAMES_MAX. */
  readonly grantFrames: number;
  /** From 0 on. There are MAPTRACK_ENTRIES handles at most, whatever this says. */
  readonly maptrackFrames: number;
  /** 1 or 2. */
  readonly grantVersion: number;
  /** The highest port, from 1 on. */
  readonly port: number;
}

/** All that a domain can have here. */
export const NO_LIMITS: DomainLimits = {
  grantFrames: GRANT_FRAMES_MAX,
  maptrackFrames: MAPTRACK_ENTRIES / MAPTRACK_PER_FRAME,
  grantVersion: 2,
  port: EVENT_CHANNELS - 1,
};

export function maptrackEntries(frames: number): number {
  return Math.min(frames * MAPTRACK_PER_FRAME, MAPTRACK_ENTRIES);
}
