/**
 * The host's memory as its domains share it.
 *
 *   total = domain 0 + what the domains have + free
 *
 * Free is what the host can still give (MemAvailable, or what a container's limit leaves), less what domains may have and have not
 * touched yet: that is promised. Domain 0 is the rest: the host's own programs, and what domains' processes need besides.
 */

import { totalmem } from 'node:os';
import { DomainClientError, domainStateOf, domidsIn } from './domain-client.ts';
import { HostError } from './host-error.ts';
import { seenState } from './seen-state.ts';
import { stateRoot } from './state-dir.ts';

/** What a domain's process needs besides the guest's memory, once it runs. */
const PROCESS_KIB = 90 * 1024;

export interface DomainMemory {
  /** What the domain may have, KiB. */
  readonly promisedKiB: number;
  /** What its process has of the host's, KiB. */
  readonly residentKiB: number;
}

export interface HostMemory {
  readonly totalKiB: number;
  readonly freeKiB: number;
}

export function hostMemory(domains: readonly DomainMemory[]): HostMemory {
  const totalKiB = Math.floor(Math.min(totalmem(), limitBytes()) / 1024);
  let freeKiB = Math.floor(process.availableMemory() / 1024);
  for (const { promisedKiB, residentKiB } of domains) freeKiB -= Math.max(0, promisedKiB + PROCESS_KIB - residentKiB);
  return { totalKiB, freeKiB: Math.max(0, Math.min(freeKiB, totalKiB)) };
}

/** Of the container that this process is in. */
function limitBytes(): number {
  const limit = process.constrainedMemory();
  return limit > 0 ? limit : Number.POSITIVE_INFINITY;
}

/** What domains that run have been promised. */
export async function domainMemories(root: string = stateRoot()): Promise<DomainMemory[]> {
  const states = await Promise.all(
    domidsIn(root).map(async (domid) => {
      try {
        return seenState(domid, root) ?? (await domainStateOf(domid, root));
      } catch (error) {
        if (error instanceof DomainClientError) return null;
        throw error;
      }
    }),
  );
  return states.flatMap((state) => {
    if (state === null || state.shutdownReason !== -1) return [];
    return [{ promisedKiB: state.promisedPages * 4, residentKiB: Math.floor(state.residentBytes / 1024) }];
  });
}

/** @throws HostError when there is not so much left for a new domain */
export async function mustHaveMemory(neededMiB: number): Promise<void> {
  const { freeKiB } = hostMemory(await domainMemories());
  const neededKiB = neededMiB * 1024 + PROCESS_KIB;
  if (neededKiB <= freeKiB) return;
  throw new HostError(
    `not enough memory: ${neededMiB} MiB and ${PROCESS_KIB / 1024} MiB for the domain's process are needed, ${Math.floor(freeKiB / 1024)} MiB are free`,
  );
}
