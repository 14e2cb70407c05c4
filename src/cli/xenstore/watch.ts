/** xenstore-watch: prints the path of each event, for ever or (-n) so many of them. */
import { type Command, Failure, orNull } from './command.ts';

export const watch: Command = {
  name: 'watch',
  usage: '[-h] [-n NR] key',
  letters: 'n',
  usesTransaction: () => false,
  accepts: (operands) => operands > 0,

  async run(keys, { client, number, out }) {
    // Only -1, which is what it is without -n, has no end.
    let left = number === null || number === -1 ? Infinity : Math.max(number, 0);
    if (left === 0) return true;
    await new Promise<void>((resolve, reject) => {
      const add = async (): Promise<void> => {
        for (const key of keys) {
          const set = client.watch(key, key, (path) => {
            if (left === 0) return;
            out(`${path}\n`);
            left--;
            if (left === 0) resolve();
          });
          if ((await orNull(set.then(() => true))) === null) throw new Failure(`Unable to add watch on ${key}\n`);
        }
      };
      add().catch(reject);
      void client.closed.then(() => reject(new Failure('the connection to xenstored has ended')));
    });
    return true;
  },
};
