/**
 * What the two ends of a migration say to each other, besides the domain (docs/migration.md). Each is a line.
 *
 *   target                                       source
 *   BANNER, with the version                     the stream's header, description and domain part
 *   ACCEPTED: it has what the guest has seen     a round of pages, while the domain runs
 *   TAKEN, at the end of each round              another round; or the rest, of when it stands still
 *   READY: all is there, and it stands still     GO: from now on it is the target's, whatever happens
 *   REPORT, then a line with a number: 0, it runs; or why not, and GO: the source may have it back
 *
 * The texts are those of xl, whose own banner is another one: its stream is.
 */

export const PROTOCOL_VERSION = 3;
const BANNER_START = 'domus migration receiver, version ';
export const BANNER = `${BANNER_START}${PROTOCOL_VERSION}: send the domain`;
export const ACCEPTED = 'domain accepted, send its memory';
export const TAKEN = 'memory taken';
export const READY = 'domain received, ready to unpause';
export const GO = 'domain is yours, you are cleared to unpause';
export const REPORT = 'my copy unpause results are as follows';

/** The version that a banner tells; null if it is none. */
export function bannerVersion(line: string): number | null {
  const version = line.startsWith(BANNER_START) ? /^\d{1,9}(?=:)/.exec(line.slice(BANNER_START.length)) : null;
  return version === null ? null : Number(version[0]);
}
