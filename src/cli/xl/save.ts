/** `xl save`: a domain to a file. Source: xl(1); recorded output of xl 4.17. */

import { resolve } from 'node:path';
import { DomainClientError, saveDomain } from '../../host/domain-client.ts';
import { type Command, readWords } from './command.ts';
import { CommandError, findDomain, withStore } from './domains.ts';

export const save: Command = {
  name: 'save',
  modifies: true,
  canDryRun: false,
  summary: 'Save a domain state to restore later',
  usage: '[options] <Domain> <CheckpointFile> [<ConfigFile>]',
  options: [
    '-h  Print this help.',
    '-c  Leave domain running after creating the snapshot.',
    '-p  Leave domain paused after creating the snapshot.',
    '-D  Store the domain id in the configuration.',
  ].join('\n'),

  async run(words, context) {
    const parsed = readWords(save, words, { letters: 'cpD' }, 2, context);
    if (typeof parsed === 'number') return parsed;
    const given = new Set(parsed.options.map(({ key }) => key));
    const [domain, file, , tooMany] = parsed.operands;
    if (tooMany !== undefined) {
      context.help('save');
      return 2;
    }
    return await withStore(context, async (store) => {
      const { domid } = await findDomain(store, domain);
      context.err(`Saving to ${file}`);
      if (domid === 0) throw new CommandError('libxl: error: Domain 0: the host cannot be saved');
      const then = given.has('c') ? 'run' : given.has('p') ? 'pause' : 'end';
      try {
        if (await saveDomain(domid, resolve(file), then)) return 0;
      } catch (error) {
        if (!(error instanceof DomainClientError)) throw error;
        throw new CommandError(`libxl: error: ${error.message}\nFailed to save domain, resuming domain`);
      }
      throw new CommandError(`libxl: error: Domain ${domid}:Failed to save domain: No such process`);
    });
  },
};
