/** What a copy of a domain goes on from, as its own process gets it: from the process of the domain, when that has been copied. */

import { createOverlay } from '../storage/host/overlay.ts';
import { DomainClientError, forkSourceOf } from './domain-client.ts';
import type { ForkRequest, ForkSource } from './forked-domain.ts';
import { HostError } from './host-error.ts';
import { overlayPath } from './state-dir.ts';

/** Asks the domain's process, and makes the copy's disks when it answers. @throws HostError, and what making them throws */
export async function sourceOfCopy({ domid, ticket, folder }: ForkRequest, root: string): Promise<ForkSource> {
  const fork = await answered(forkSourceOf(domid, ticket, root));
  if (fork === null) throw new HostError(`Domain ${domid}: its process is gone`);
  const disks: Record<number, string> = {};
  await Promise.all(
    fork.disks.map(async ({ id, vdev, base }) => {
      disks[id] = overlayPath(folder, vdev);
      await createOverlay(disks[id], base, { sync: false });
    }),
  );
  return { state: fork.state, memory: fork.memory, askedNs: fork.askedNs, stoppedNs: fork.stoppedNs, disks };
}

async function answered<T>(answer: Promise<T>): Promise<T> {
  try {
    return await answer;
  } catch (error) {
    if (error instanceof DomainClientError) throw new HostError(error.message);
    throw error;
  }
}
