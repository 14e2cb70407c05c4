/** `xl channel-list`. Source: xl(1); tools/xl/xl_console.c, main_channellist (behaviour). */

import { type Command, readWords } from './command.ts';
import { devicesOf, numberIn } from './devices.ts';
import { findDomain, withStore } from './domains.ts';

export const channelList: Command = {
  name: 'channel-list',
  modifies: false,
  canDryRun: false,
  summary: 'List virtual channel devices for a domain',
  usage: '<Domain(s)>',
  options: '',
  async run(words, context) {
    const parsed = readWords(channelList, words, { letters: '' }, 1, context);
    if (typeof parsed === 'number') return parsed;
    context.out(`Idx BE state evt-ch ring-ref connection ${' '.repeat(30)}\n`);
    return await withStore(context, async (store) => {
      for (const word of parsed.operands) {
        const { domid } = await findDomain(store, word);
        // Channels are the consoles that have a name; they are counted from 0.
        const channels = (await devicesOf(store, domid, 'console')).filter(({ backend }) => backend('name') !== null);
        channels.forEach(({ backendId, frontend, backend }, index) => {
          const connection = backend('connection') ?? '';
          const columns = [
            String(index).padEnd(3),
            String(backendId).padEnd(2),
            String(numberIn(frontend('state'))).padEnd(5),
            String(numberIn(frontend('port'))).padEnd(6),
            String(numberIn(frontend('ring-ref'))).padEnd(8),
            connection.padEnd(10),
          ];
          const tty = connection === 'pty' ? `${(frontend('tty') ?? '/NO-SUCH-PATH').padEnd(30)} ` : '';
          context.out(`${columns.join(' ')} ${tty}\n`);
        });
      }
      return 0;
    });
  },
};
