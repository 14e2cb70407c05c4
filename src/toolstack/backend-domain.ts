/**
 * Which domain serves a device: Dom0, or a driver domain by its number or name (`backend=` of disks and interfaces). What a driver
 * domain does with its devices is its own affair: Linux there runs xen-blkback or xen-netback, and `xl devd` the scripts.
 *
 * Source: libxl_utils.c, libxl_domain_qualifier_to_domid; libxl.c, libxl__resolve_domid (behaviour).
 */

import type { XenstoreClient } from '../xenstore/client.ts';
import { DevicePlugError } from './device-plug.ts';

/** `backend` as given, null for nothing. @throws DevicePlugError when there is no such domain */
export async function backendDomid(store: XenstoreClient, backend: string | null): Promise<number> {
  if (backend === null || backend === '0' || backend === 'Domain-0') return 0;
  for (const domid of (await store.directory('/local/domain')) ?? []) {
    if (domid === backend || (await store.read(`/local/domain/${domid}/name`)) === backend) return Number(domid);
  }
  throw new DevicePlugError(`backend=${backend}: there is no such domain`);
}
