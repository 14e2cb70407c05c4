/**
 * Who may read and write a node.
 *
 * The first entry names the owner, who may do everything, and what every domain without an entry of its own may do; the
 * entries after it name single domains. Domain 0 may do everything everywhere. A domain with a target (SET_TARGET, a
 * stub domain) may do what its target may.
 *
 * Source: docs/misc/xenstore.txt.
 */

export type Access = 'n' | 'r' | 'w' | 'b';

export interface PermissionEntry {
  readonly domid: number;
  readonly access: Access;
}

/** Owner first; never empty, never changed in place. */
export type Permissions = readonly [PermissionEntry, ...PermissionEntry[]];

/** Who asks. */
export interface Caller {
  readonly domid: number;
  /** Domain it acts for as well, if any. */
  readonly target: number | null;
}

const ENTRY = /^([nrwb])(\d{1,5})$/;
const DOMID_MAX = 65535;

/** "n0", "r5", ... as permissions; null (EINVAL) if one is malformed or there is none. */
export function parsePermissions(texts: readonly string[]): Permissions | null {
  const entries: PermissionEntry[] = [];
  for (const text of texts) {
    const match = ENTRY.exec(text);
    if (match === null) return null;
    const domid = Number(match[2]);
    if (domid > DOMID_MAX) return null;
    entries.push({ domid, access: match[1] as Access });
  }
  const [owner, ...others] = entries;
  return owner === undefined ? null : [owner, ...others];
}

export function formatPermissions(permissions: Permissions): string[] {
  return permissions.map((entry) => entry.access + entry.domid);
}

export function isPrivileged(caller: Caller): boolean {
  return caller.domid === 0;
}

/** The owner may change permissions, not only use them. */
export function isOwner(caller: Caller, permissions: Permissions): boolean {
  const owner = permissions[0].domid;
  return isPrivileged(caller) || caller.domid === owner || caller.target === owner;
}

export function mayAccess(caller: Caller, permissions: Permissions, wanted: 'r' | 'w'): boolean {
  if (isOwner(caller, permissions)) return true;
  return (
    grants(permissions, caller.domid, wanted) || (caller.target !== null && grants(permissions, caller.target, wanted))
  );
}

function grants(permissions: Permissions, domid: number, wanted: 'r' | 'w'): boolean {
  let access = permissions[0].access;
  for (let i = 1; i < permissions.length; i++) {
    if (permissions[i].domid === domid) {
      access = permissions[i].access;
      break;
    }
  }
  return access === 'b' || access === wanted;
}

/** `permissions` without the entries of a domain that is gone; the owner stays. */
export function withoutDomain(permissions: Permissions, domid: number): Permissions {
  const [owner, ...others] = permissions;
  return others.some((entry) => entry.domid === domid)
    ? [owner, ...others.filter((entry) => entry.domid !== domid)]
    : permissions;
}
