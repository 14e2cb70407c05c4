/** xenstore-list: the names of a node's children. */
import { type Command, orNull } from './command.ts';

export const list: Command = {
  name: 'list',
  usage: '[-h] [-p] [-s] key [...]',
  letters: 'p',
  usesTransaction: () => true,
  accepts: (operands) => operands > 0,

  async run(keys, { nodes, options, out, warn }) {
    for (const key of keys) {
      const names = await orNull(nodes.directory(key));
      if (names === null) {
        warn(`could not list path ${key}`);
        return false;
      }
      for (const name of names) out(`${options.has('p') ? `${key}/` : ''}${name}\n`);
    }
    return true;
  },
};
