/** xenstore-read: the values of nodes. */
import { type Command, orNull } from './command.ts';
import { escapeValue } from './value.ts';

export const read: Command = {
  name: 'read',
  usage: '[-h] [-p] [-s] [-R] key [...]',
  letters: 'pR',
  usesTransaction: (operands) => operands > 1,
  accepts: (operands) => operands > 0,

  async run(keys, { nodes, options, out, warn }) {
    for (const key of keys) {
      const value = await orNull(nodes.readBytes(key));
      if (value === null) {
        warn(`couldn't read path ${key}`);
        return false;
      }
      if (options.has('p')) out(`${key}: `);
      out(options.has('R') ? value : `${escapeValue(value)}\n`);
    }
    return true;
  },
};
