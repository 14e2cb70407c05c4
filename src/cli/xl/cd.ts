/** `xl cd-insert` and `xl cd-eject`: of HVM guests only, as in Xen, and Domus runs PV guests. Source: xl(1); recorded output of xl 4.17. */

import { vdevNumber } from '../../toolstack/config/disk.ts';
import { type Command, readWords } from './command.ts';
import { CommandError, findDomain, withStore } from './domains.ts';

export const cdInsert = cdCommand(
  'cd-insert',
  "Insert a cdrom into a guest's cd drive",
  '<Domain> <VirtualDevice> <path>',
  3,
);
export const cdEject = cdCommand('cd-eject', "Eject a cdrom from a guest's cd drive", '<Domain> <VirtualDevice>', 2);

function cdCommand(name: string, summary: string, usage: string, operandsMin: number): Command {
  const command: Command = {
    name,
    modifies: true,
    canDryRun: true,
    summary,
    usage,
    options: '',
    async run(words, context) {
      const parsed = readWords(command, words, { letters: '' }, operandsMin, context);
      if (typeof parsed === 'number') return parsed;
      const [word, vdev] = parsed.operands;
      return await withStore(context, async (store) => {
        const { domid } = await findDomain(store, word);
        if (vdevNumber(vdev) === null)
          throw new CommandError(`libxl: error: Invalid or unsupported virtual disk identifier ${vdev}`);
        throw new CommandError(`libxl: error: Domain ${domid}:cdrom-insert requires an HVM domain`);
      });
    },
  };
  return command;
}
