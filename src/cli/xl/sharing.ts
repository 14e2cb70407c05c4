/** `xl sharing`: pages that domains share. They never do: each has memory of its own. Source: xl(1); recorded output of xl 4.17. */

import { type Command, readWords } from './command.ts';
import { domainReport, memoryMiB } from './domain-report.ts';
import { allDomains, findDomain, withStore } from './domains.ts';

export const sharing: Command = {
  name: 'sharing',
  modifies: false,
  canDryRun: false,
  summary: 'Get information about page sharing',
  usage: '[Domain]',
  options: '',
  async run(words, context) {
    const parsed = readWords(sharing, words, { letters: '' }, 0, context);
    if (typeof parsed === 'number') return parsed;
    const [word] = parsed.operands;
    return await withStore(context, async (store) => {
      const found = word === undefined ? await allDomains(store) : [await findDomain(store, word)];
      context.out('Name                                        ID   Mem Shared\n');
      for (const { domid } of found) {
        const report = await domainReport(store, domid);
        if (report === null) continue;
        const memory = String(memoryMiB(report)).padStart(5);
        context.out(`${report.name.padEnd(40)} ${String(domid).padStart(5)} ${memory}  ${'0'.padStart(5)}\n`);
      }
      return 0;
    });
  },
};
