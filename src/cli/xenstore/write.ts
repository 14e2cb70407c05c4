/** xenstore-write: sets the values of nodes, and makes them if they are missing. */
import { type Command, orNull } from './command.ts';
import { unescapeValue } from './value.ts';

export const write: Command = {
  name: 'write',
  usage: '[-h] [-s] [-R] key value [...]',
  letters: 'R',
  usesTransaction: (operands) => operands > 2,
  accepts: (operands) => operands > 0 && operands % 2 === 0,

  async run(operands, { nodes, options, warn }) {
    for (let i = 0; i < operands.length; i += 2) {
      const [key, text] = operands.slice(i, i + 2);
      const value = options.has('R') ? new TextEncoder().encode(text) : unescapeValue(text);
      if ((await orNull(nodes.write(key, value).then(() => true))) === null) {
        warn(`could not write path ${key}`);
        return false;
      }
    }
    return true;
  },
};
