/** `xl dump-core`: a domain's memory and registers to a file. Source: xl(1); recorded output of xl 4.17. */

import { resolve } from 'node:path';
import { DomainClientError, dumpCore as writeCore } from '../../host/domain-client.ts';
import { type Command, readWords } from './command.ts';
import { CommandError, findDomain, withStore } from './domains.ts';

export const dumpCore: Command = {
  name: 'dump-core',
  modifies: true,
  canDryRun: false,
  summary: 'Core dump a domain',
  usage: '<Domain> <filename>',
  options: '',
  async run(words, context) {
    const parsed = readWords(dumpCore, words, { letters: '' }, 2, context);
    if (typeof parsed === 'number') return parsed;
    const [domain, file] = parsed.operands;
    return await withStore(context, async (store) => {
      const { domid } = await findDomain(store, domain);
      const failed = (why: string): CommandError =>
        new CommandError(
          `libxl: error: Domain ${domid}:Core dumping domain to ${file}: ${why}\ncore dump failed (rc=-3)`,
        );
      if (domid === 0) throw failed('Invalid argument');
      try {
        if (await writeCore(domid, resolve(file))) return 0;
      } catch (error) {
        if (error instanceof DomainClientError) throw failed(error.message);
        throw error;
      }
      throw failed('No such process');
    });
  },
};
