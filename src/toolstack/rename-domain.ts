/** Gives a domain another name. */

import type { XenstoreClient } from '../xenstore/client.ts';
import { nameMustBeFree } from './xenstore-nodes.ts';

/** @throws DomainNameTaken */
export async function renameDomain(store: XenstoreClient, domid: number, name: string): Promise<void> {
  await store.transaction(async (nodes) => {
    const path = `/local/domain/${domid}/name`;
    if ((await nodes.read(path)) === name) return;
    await nameMustBeFree(nodes, name);
    await nodes.write(path, name);
    const vm = await nodes.read(`/local/domain/${domid}/vm`);
    if (vm !== null) await nodes.write(`${vm}/name`, name);
  });
}
