/** The backends of a restored domain, by its nodes. */

import type { SavedNode } from '../toolstack/saved/saved-store.ts';
import { textToBytes } from '../xenstore/wire.ts';
import { BACKEND_KINDS } from './plug-watcher.ts';

export interface BackendNodes {
  readonly path: string;
  readonly backendKind: string;
  readonly name: string;
  readonly values: Readonly<Record<string, string>>;
}

/** Those that the domain's process serves, kind by kind. */
export function backendsIn(nodes: readonly SavedNode[], domid: number): BackendNodes[] {
  const values = new Map<string, Record<string, string>>();
  for (const [path, value] of nodes) {
    const match = /^(\/local\/domain\/0\/backend\/\w+\/\d+\/\w+)\/([^/]+)$/.exec(path);
    if (match === null) continue;
    const own = values.get(match[1]) ?? {};
    own[match[2]] = new TextDecoder().decode(textToBytes(value));
    values.set(match[1], own);
  }
  return BACKEND_KINDS.flatMap((backendKind) => {
    const folder = `/local/domain/0/backend/${backendKind}/${domid}/`;
    const paths = [...values.keys()].filter((path) => path.startsWith(folder));
    return paths.map((path) => ({
      path,
      backendKind,
      name: path.slice(folder.length),
      values: values.get(path) ?? {},
    }));
  });
}
