/** `xl console`: the terminal on a domain's console. Ctrl-] leaves, and the domain runs on. Source: xl(1), xenconsole(8). */

import type { Duplex } from 'node:stream';
import { connectConsole } from '../../host/domain-client.ts';
import { openTerminal, type Terminal } from '../terminal.ts';
import { type Command, readWords } from './command.ts';
import { CommandError, findDomain, withStore } from './domains.ts';

const TYPES = ['pv', 'serial', 'vuart'];

export const console: Command = {
  name: 'console',
  modifies: false,
  canDryRun: false,
  summary: "Attach to domain's console",
  usage: '[options] <Domain>\n-t <type>       console type, pv , serial or vuart\n-n <number>     console number',
  options: '',

  async run(words, context) {
    const parsed = readWords(console, words, { letters: 'n:t:e:' }, 1, context);
    if (typeof parsed === 'number') return parsed;
    let escapeText = '^]';
    for (const { key, value } of parsed.options) {
      if (key === 't' && !TYPES.includes(value ?? '')) {
        context.err('console type supported are: pv, serial, vuart');
        return 1;
      }
      if (key === 't' && value !== 'pv') {
        context.err(`xl: a PV domain has no ${value} console`);
        return 1;
      }
      if (key === 'n' && value !== '0') {
        context.err(`xl: console ${value}: a domain has one console, number 0`);
        return 1;
      }
      if (key === 'e') escapeText = value ?? '';
    }
    const escapeByte = escapeByteOf(escapeText);
    if (escapeByte === null) {
      context.err(`xl: escape character \`${escapeText}': expected one character, or ^ and one`);
      return 1;
    }
    return await withStore(context, async (store) => {
      const { domid } = await findDomain(store, parsed.operands[0]);
      const socket = domid === 0 ? null : await connectConsole(domid);
      if (socket === null) throw new CommandError(`libxl: error: Domain ${domid}: it has no console`);
      store.close();
      let leave: (exitCode: number) => void = () => {};
      const left = new Promise<number>((resolve) => {
        leave = resolve;
      });
      const terminal = openTerminal({ onEscape: () => leave(0), onHangup: leave, escape: escapeByte });
      try {
        return await Promise.race([showConsole(socket, terminal).then(() => 0), left]);
      } finally {
        socket.destroy();
        terminal.close();
      }
    });
  },
};

/** Source: tools/console/client/main.c, -e (behaviour): `^` and a letter, or a character. */
function escapeByteOf(text: string): number | null {
  if (text.length === 2 && text.startsWith('^')) return text.charCodeAt(1) & 0x1f;
  return text.length === 1 && text <= '\x7f' ? text.charCodeAt(0) : null;
}

/** Joins a console with the terminal; resolves when the console has ended. */
export async function showConsole(socket: Duplex, terminal: Terminal): Promise<void> {
  socket.on('data', (bytes: Uint8Array) => terminal.write(bytes));
  terminal.onInput((bytes) => void socket.write(bytes));
  await new Promise<void>((resolve) => {
    socket.on('error', () => {});
    socket.on('close', () => resolve());
  });
}
