/**
 * Xenstore paths. A path that a client gave is checked once, here, and is a list of names from then on.
 *
 *   /local/domain/3/name   -> ['local', 'domain', '3', 'name']
 *   name (from domain 3)   -> the same
 *   /                      -> []
 *   @releaseDomain         -> ['@releaseDomain'], a node below the root that holds the permissions of a special watch
 *
 * Source: docs/misc/xenstore.txt (paths); xs-wire.out and xs-write-*.out recorded from Xen 4.17.
 */
import { XENSTORE_ABS_PATH_MAX, XENSTORE_REL_PATH_MAX } from '../abi/io/xs-wire.ts';

/** The names from the root to the node; [] is the root. */
export type Path = readonly string[];

const NAME = /^[A-Za-z0-9\-_@]+$/;
const DOMAIN_PREFIX = /^\/local\/domain\/\d+\//;

/** "/local/domain/<domid>": what a domain's relative paths start from. */
export function domainPath(domid: number): string {
  return `/local/domain/${domid}`;
}

/** A path relative to its domain, neither absolute nor special. */
export function isRelative(text: string): boolean {
  return !text.startsWith('/') && !text.startsWith('@');
}

/** `text` as it is, or below `/local/domain/<domid>` when relative. Not checked. */
export function absolutePath(text: string, domid: number): string {
  return isRelative(text) ? `${domainPath(domid)}/${text}` : text;
}

/**
 * The names of a path that a client of `domid` sent, or null (EINVAL).
 * The part below a domain's own directory is held to the limit of relative paths however the path was spelt: otherwise
 * a path could become too long when the domain gets a longer domid.
 */
export function parsePath(text: string, domid: number): Path | null {
  if (text === '') return null;
  const absolute = absolutePath(text, domid);
  if (absolute.length > XENSTORE_ABS_PATH_MAX) return null;
  const prefix = DOMAIN_PREFIX.exec(absolute);
  if (absolute.length - (prefix ? prefix[0].length : 0) > XENSTORE_REL_PATH_MAX) return null;
  if (absolute === '/') return [];
  if (absolute.startsWith('@')) return NAME.test(absolute.slice(1)) ? [absolute] : null;
  const names = absolute.slice(1).split('/');
  return names.every((name) => NAME.test(name)) ? names : null;
}

/** Does the path name the node of a special watch? */
export function isSpecial(path: Path): boolean {
  return path.length === 1 && path[0].startsWith('@');
}

/** The absolute path as text; not for special ones. */
export function formatPath(path: Path): string {
  return '/' + path.join('/');
}
