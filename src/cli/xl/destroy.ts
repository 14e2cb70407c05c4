/** `xl destroy`: ends a domain at once. Source: xl(1); recorded output of xl 4.17. */

import { destroyDomain } from '../../host/domain-client.ts';
import { removeDomain } from '../../toolstack/xenstore-nodes.ts';
import { type Command, readWords } from './command.ts';
import { CommandError, domidOf, nameOf, withStore } from './domains.ts';

export const destroy: Command = {
  name: 'destroy',
  modifies: true,
  canDryRun: false,
  summary: 'Terminate a domain immediately',
  usage: '[options] <Domain>\n',
  options: [
    '-f                      Permit destroying domain 0, which will only succeed',
    '                        when run from disaggregated toolstack domain with a',
    '                        hardware domain distinct from domain 0.',
  ].join('\n'),

  async run(words, context) {
    const parsed = readWords(destroy, words, { letters: 'f' }, 1, context);
    if (typeof parsed === 'number') return parsed;
    const force = context.force || parsed.options.length > 0;
    return await withStore(context, async (store) => {
      const domid = await domidOf(store, parsed.operands[0]);
      if (domid === 0 && !force)
        throw new CommandError(
          'Not destroying domain 0; use -f to force.\n' +
            'This can only be done when using a disaggregated hardware domain and toolstack.\n',
        );
      if (domid === 0) throw new CommandError('libxl: error: Domain 0:Permission denied\ndestroy failed (rc=-3)');
      if ((await nameOf(store, domid)) === null)
        throw new CommandError(`libxl: error: Domain ${domid}:Non-existant domain\ndestroy failed (rc=-6)`);
      await destroyDomain(domid);
      // Left by a process that was killed, or has not got round to it.
      if ((await nameOf(store, domid)) !== null) await removeDomain(store, domid);
      return 0;
    });
  },
};
