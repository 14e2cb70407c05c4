/** Joins what the hypervisor offers Dom0 to the port that backends use. */

import type { GuestPort } from '../backends/guest-port.ts';
import type { Dom0Channels } from '../hypervisor/dom0-channels.ts';
import type { Domain } from '../hypervisor/domain.ts';
import type { GrantMappings } from '../hypervisor/grant-mappings.ts';

export function createGuestPort(
  domain: Domain,
  grants: GrantMappings,
  channels: Dom0Channels,
  memoryStored: (offset: number, sizeBytes: number) => void,
): GuestPort {
  return {
    domid: domain.domid,
    memory: domain.machine,
    mapGrant: (gref, writable) => grants.map(gref, writable),
    unmapGrant: (gref, writable) => grants.unmap(gref, writable),
    mapFrame: (mfn) => {
      const page = Math.max(grants.mapFrame(mfn), -1);
      // Nobody says when it is let go.
      if (page >= 0) domain.machine.dirty.always.add(page >>> 12);
      return page;
    },
    memoryStored,
    bindEventChannel: (port, onEvent) => channels.bind(port, onEvent),
  };
}
