/** A domain is made known to xenstore: one that was built with its first nodes, one that goes on with those that it had (restored-nodes.ts). */

import { MFN_BASE } from '../machine/memory.ts';
import { formatUuid } from '../toolstack/config/domain-config.ts';
import { DomainNameTaken, introduceDomain } from '../toolstack/xenstore-nodes.ts';
import { CONSOLE_PORT, STORE_PORT } from './domain-content.ts';
import type { LifeOptions } from './domain-life.ts';
import { HostError } from './host-error.ts';

/** A name that is taken is the user's to solve. */
export async function hostErrorOf<T>(done: Promise<T>): Promise<T> {
  try {
    return await done;
  } catch (error) {
    if (error instanceof DomainNameTaken) throw new HostError(error.message);
    throw error;
  }
}

/** @throws HostError */
export async function introduce({ config, xenstore, domid, built, restoring }: LifeOptions): Promise<void> {
  const storeMfn = built.storePfn + MFN_BASE;
  if (restoring !== null) {
    await xenstore.client.introduce(domid, storeMfn, restoring.saved.outline.store.port);
    return;
  }
  const introduced = introduceDomain(xenstore.client, {
    domid,
    uuid: formatUuid(config.uuid),
    name: config.name,
    memoryKiB: config.memoryMiB * 1024,
    maxMemKiB: config.maxmemMiB * 1024,
    vcpus: config.vcpus,
    vcpusMax: config.maxvcpus,
    storePort: STORE_PORT,
    storeMfn,
    consolePort: CONSOLE_PORT,
    consoleMfn: built.consolePfn + MFN_BASE,
    startTimeSeconds: Date.now() / 1000,
    driverDomain: config.driverDomain,
  });
  await hostErrorOf(introduced);
}
