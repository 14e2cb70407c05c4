/** xenstore-rm: removes nodes and all below them; with -t also the parents that become empty and have no value. */
import type { XenstoreNodes } from '../../xenstore/client.ts';
import { type Command, orNull } from './command.ts';

export const rm: Command = {
  name: 'rm',
  usage: '[-h] [-s] [-t] key [...]',
  letters: 't',
  usesTransaction: () => true,
  accepts: (operands) => operands > 0,

  async run(keys, { nodes, options, warn }) {
    for (const key of keys) {
      for (let path: string | null = key; path !== null; ) {
        // False: there is no parent.
        if ((await orNull(nodes.remove(path))) !== true) {
          warn(`could not remove path ${path}`);
          return false;
        }
        path = options.has('t') ? await emptyParentOf(path, nodes) : null;
      }
    }
    return true;
  },
};

async function emptyParentOf(path: string, nodes: XenstoreNodes): Promise<string | null> {
  const slash = path.lastIndexOf('/');
  if (slash < 0) return null;
  const parent = path.slice(0, slash);
  const value = await orNull(nodes.readBytes(parent));
  if (value === null || value.length > 0) return null;
  const names = await orNull(nodes.directory(parent));
  return names !== null && names.length === 0 ? parent : null;
}
