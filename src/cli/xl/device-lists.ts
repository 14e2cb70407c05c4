/**
 * `xl pci-list`, `usb-list`, `vtpm-list`, `vkb-list`, `vdispl-list` and `vsnd-list`: devices beside disks and interfaces. Of these kinds
 * Domus has keyboards only, which come with a `vfb`; the other lists are what they are on a host without such devices.
 *
 * Source: xl(1); recorded output of xl 4.17.
 */

import type { XenstoreClient } from '../../xenstore/client.ts';
import { type Command, readWords } from './command.ts';
import { devicesOf, numberIn } from './devices.ts';
import { domidOf, findDomain, withStore } from './domains.ts';

type Rows = (store: XenstoreClient, domid: number) => Promise<string>;
const none: Rows = async () => '';

const DOMAINS = '<Domain(s)>';

export const vtpmList = listCommand(
  'vtpm-list',
  'List virtual TPM devices for a domain',
  DOMAINS,
  'Idx BE Uuid                                 handle state evt-ch ring-ref BE-path   \n',
  none,
);
export const vkbList = listCommand(
  'vkb-list',
  'List virtual keyboard devices for a domain',
  DOMAINS,
  'Idx BE handle state evt-ch    ref ID         BE-type    BE-path                       \n',
  keyboards,
);
export const vdisplList = listCommand('vdispl-list', 'List virtual display devices for a domain', DOMAINS, '', none);
// The summary is xl's.
export const vsndList = listCommand('vsnd-list', 'List virtual display devices for a domain', DOMAINS, '', none);
export const pciList = listCommand('pci-list', 'List pass-through pci devices for a domain', '<Domain>', '', none);
export const usbList = listCommand(
  'usb-list',
  'List information about all USB controllers and devices for a domain',
  '<Domain>',
  '',
  none,
);

async function keyboards(store: XenstoreClient, domid: number): Promise<string> {
  const devices = await devicesOf(store, domid, 'vkbd');
  return devices
    .map(({ id, backendId, state, frontend, backend, backendPath }) => {
      const columns = [
        String(id).padEnd(3),
        String(backendId).padEnd(2),
        String(id).padEnd(6),
        String(state).padEnd(5),
        String(numberIn(frontend('event-channel'))).padEnd(6),
        String(numberIn(frontend('page-gref'))).padStart(6),
        (backend('unique-id') ?? '').padEnd(10),
        'linux'.padEnd(10),
        backendPath.padEnd(30),
      ];
      return `${columns.join(' ')}\n`;
    })
    .join('');
}

function listCommand(name: string, summary: string, usage: string, header: string, rowsOf: Rows): Command {
  const command: Command = {
    name,
    modifies: false,
    canDryRun: false,
    summary,
    usage,
    options: '',
    async run(words, context) {
      const parsed = readWords(command, words, { letters: '' }, 1, context);
      if (typeof parsed === 'number') return parsed;
      return await withStore(context, async (store) => {
        // Those with a header print it whoever is meant.
        if (header !== '') context.out(header);
        for (const word of parsed.operands) {
          const domid = header === '' ? await domidOf(store, word) : (await findDomain(store, word)).domid;
          context.out(await rowsOf(store, domid));
        }
        return 0;
      });
    },
  };
  return command;
}
