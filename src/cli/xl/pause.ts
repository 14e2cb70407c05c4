/** `xl pause` and `xl unpause`. Doing it twice is no error. Source: xl(1); recorded output of xl 4.17. */

import { setPaused } from '../../host/domain-client.ts';
import { type Command, readWords } from './command.ts';
import { CommandError, findDomain, withStore } from './domains.ts';

export const pause = pauseCommand('pause', 'Pause execution of a domain', true);
export const unpause = pauseCommand('unpause', 'Unpause a paused domain', false);

function pauseCommand(name: string, summary: string, paused: boolean): Command {
  const command: Command = {
    name,
    modifies: true,
    canDryRun: false,
    summary,
    usage: '<Domain>',
    options: '',
    async run(words, context) {
      const parsed = readWords(command, words, { letters: '' }, 1, context);
      if (typeof parsed === 'number') return parsed;
      return await withStore(context, async (store) => {
        const { domid } = await findDomain(store, parsed.operands[0]);
        if (domid === 0) throw new CommandError(`libxl: error: Domain 0:Failed to ${name} domain: Invalid argument`);
        if (!(await setPaused(domid, paused)))
          throw new CommandError(`libxl: error: Domain ${domid}:Failed to ${name} domain: No such process`);
        return 0;
      });
    },
  };
  return command;
}
