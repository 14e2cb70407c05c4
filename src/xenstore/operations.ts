/**
 * The requests that read or change nodes, which are the ones a transaction can hold: executed against any tree, with no
 * effect but on that tree, so that a transaction can execute them again when it commits.
 *
 * Source: docs/misc/xenstore.txt; xs-wire.out recorded from Xen 4.17.
 */
import { XENSTORE_PAYLOAD_MAX, XS, type XsErrorName } from '../abi/io/xs-wire.ts';
import { domainPath, type Path, parsePath } from './path.ts';
import { type Caller, formatPermissions, parsePermissions } from './permissions.ts';
import type { Tree } from './tree.ts';
import { bytesToText, joinStrings, splitStrings, textToBytes } from './wire.ts';

/** Payload of a reply, or the name of an error. */
export type Answer = Uint8Array | XsErrorName;

/** One change that watches hear of. Parents made on the way are not among them. */
export interface Change {
  readonly kind: 'write' | 'mkdir' | 'remove' | 'permissions';
  readonly path: Path;
}

export const OK: Uint8Array = textToBytes('OK\0');

const DOMID_MAX = 65535;

/** Is `type` a request that `executeOperation` knows? */
export function isOperation(type: number): boolean {
  switch (type) {
    case XS.DIRECTORY:
    case XS.DIRECTORY_PART:
    case XS.READ:
    case XS.GET_PERMS:
    case XS.GET_DOMAIN_PATH:
    case XS.WRITE:
    case XS.MKDIR:
    case XS.RM:
    case XS.SET_PERMS:
      return true;
    default:
      return false;
  }
}

/** Does a request of this type only read? */
export function isRead(type: number): boolean {
  return type !== XS.WRITE && type !== XS.MKDIR && type !== XS.RM && type !== XS.SET_PERMS;
}

/** Executes one request. Adds what it changed to `changes`; an error has changed nothing. */
export function executeOperation(
  tree: Tree,
  caller: Caller,
  type: number,
  payload: Uint8Array,
  changes: Change[],
): Answer {
  if (type === XS.GET_DOMAIN_PATH) return getDomainPath(payload);

  // All others start with a path.
  const pathEnd = payload.indexOf(0);
  if (pathEnd < 0) return 'EINVAL';
  const path = parsePath(bytesToText(payload.subarray(0, pathEnd)), caller.domid);
  if (path === null) return 'EINVAL';
  const rest = payload.subarray(pathEnd + 1);

  switch (type) {
    case XS.WRITE: {
      const error = tree.write(caller, path, rest.slice());
      if (error !== null) return error;
      changes.push({ kind: 'write', path });
      return OK;
    }
    case XS.SET_PERMS: {
      const permissions = parsePermissions(splitStrings(rest).strings);
      if (permissions === null) return 'EINVAL';
      const error = tree.setPermissions(caller, path, permissions);
      if (error !== null) return error;
      changes.push({ kind: 'permissions', path });
      return OK;
    }
    case XS.DIRECTORY_PART:
      return directoryPart(tree, caller, path, rest);
  }

  // The remaining ones are a path and nothing else.
  if (rest.length > 0) return 'EINVAL';
  switch (type) {
    case XS.READ:
      return tree.read(caller, path);
    case XS.DIRECTORY: {
      const list = tree.list(caller, path);
      return typeof list === 'string' ? list : joinStrings(list.names);
    }
    case XS.GET_PERMS: {
      const permissions = tree.permissions(caller, path);
      return typeof permissions === 'string' ? permissions : joinStrings(formatPermissions(permissions));
    }
    case XS.MKDIR: {
      const made = tree.mkdir(caller, path);
      if (typeof made === 'string') return made;
      if (made) changes.push({ kind: 'mkdir', path });
      return OK;
    }
    case XS.RM: {
      const removed = tree.remove(caller, path);
      if (typeof removed === 'string') return removed;
      if (removed) changes.push({ kind: 'remove', path });
      return OK;
    }
    default:
      return 'ENOSYS';
  }
}

/** The domain's directory, whether there is such a domain or not. As recorded, text without digits counts as 0. */
function getDomainPath(payload: Uint8Array): Answer {
  const { strings, rest } = splitStrings(payload);
  if (strings.length !== 1 || rest > 0) return 'EINVAL';
  const domid = Number(/\d+/.exec(strings[0])?.[0] ?? 0);
  return domid > DOMID_MAX ? 'EINVAL' : joinStrings([domainPath(domid)]);
}

/**
 * A part of a directory too long for one reply: the generation, then whole names from a byte offset of the full list
 * on, then one more NUL after the last name. A client that sees another generation starts over.
 */
function directoryPart(tree: Tree, caller: Caller, path: Path, rest: Uint8Array): Answer {
  const { strings } = splitStrings(rest);
  if (strings.length !== 1 || !/^\d{1,9}$/.test(strings[0])) return 'EINVAL';
  const offset = Number(strings[0]);
  const list = tree.list(caller, path);
  if (typeof list === 'string') return list;
  const generation = list.generation + '\0';
  const all = list.names.map((name) => name + '\0').join('');
  if (offset >= all.length) return textToBytes(generation + '\0');
  const partMax = XENSTORE_PAYLOAD_MAX - generation.length - 1;
  if (all.length - offset <= partMax) return textToBytes(generation + all.slice(offset) + '\0');
  // A name has at most 3071 bytes, so at least one fits.
  const end = all.lastIndexOf('\0', offset + partMax - 1) + 1;
  return textToBytes(generation + all.slice(offset, end));
}
