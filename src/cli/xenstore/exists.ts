/** xenstore-exists: says by its exit code whether all the nodes are there. */
import { type Command, orNull } from './command.ts';

export const exists: Command = {
  name: 'exists',
  usage: '[-h] [-p] [-s] key [...]',
  letters: '',
  usesTransaction: () => true,
  accepts: (operands) => operands > 0,

  async run(keys, { nodes }) {
    for (const key of keys) if ((await orNull(nodes.readBytes(key))) === null) return false;
    return true;
  },
};
