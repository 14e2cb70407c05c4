/** `xl domid`, `xl domname` and `xl rename`. Source: xl(1); recorded output of xl 4.17. */

import { renameDomain } from '../../toolstack/rename-domain.ts';
import { type Command, readWords } from './command.ts';
import { allDomains, CommandError, findDomain, nameOf, withStore } from './domains.ts';

export const domid: Command = {
  name: 'domid',
  modifies: false,
  canDryRun: false,
  summary: 'Convert a domain name to domain id',
  usage: '<DomainName>',
  options: '',
  async run(words, context) {
    const parsed = readWords(domid, words, { letters: '' }, 1, context);
    if (typeof parsed === 'number') return parsed;
    const [word] = parsed.operands;
    return await withStore(context, async (store) => {
      const found = (await allDomains(store)).find(({ name }) => name === word);
      if (found === undefined)
        throw new CommandError(`Can't get domid of domain name '${word}', maybe this domain does not exist.`);
      context.out(`${found.domid}\n`);
      return 0;
    });
  },
};

export const domname: Command = {
  name: 'domname',
  modifies: false,
  canDryRun: false,
  summary: 'Convert a domain id to domain name',
  usage: '<DomainId>',
  options: '',
  async run(words, context) {
    const parsed = readWords(domname, words, { letters: '' }, 1, context);
    if (typeof parsed === 'number') return parsed;
    const [word] = parsed.operands;
    if (!/^\d{1,9}$/.test(word)) {
      context.err('Invalid domain id.\n');
      return 1;
    }
    return await withStore(context, async (store) => {
      const name = await nameOf(store, Number(word));
      if (name === null)
        throw new CommandError(`Can't get domain name of domain id '${word}', maybe this domain does not exist.`);
      context.out(`${name}\n`);
      return 0;
    });
  },
};

export const rename: Command = {
  name: 'rename',
  modifies: true,
  canDryRun: false,
  summary: 'Rename a domain',
  usage: '<Domain> <NewDomainName>',
  options: '',
  async run(words, context) {
    const parsed = readWords(rename, words, { letters: '' }, 2, context);
    if (typeof parsed === 'number') return parsed;
    const [word, name] = parsed.operands;
    return await withStore(context, async (store) => {
      const { domid: renamed, name: before } = await findDomain(store, word);
      if (name === before) return 0;
      const failed = `Can't rename domain '${word}'.`;
      if (renamed === 0) throw new CommandError(`libxl: error: Domain 0:Permission denied\n${failed}`);
      try {
        await renameDomain(store, renamed, name);
      } catch (error) {
        if (!(error instanceof Error && error.name === 'DomainNameTaken')) throw error;
        throw new CommandError(`libxl: error: Domain ${renamed}:${error.message}\n${failed}`);
      }
      return 0;
    });
  },
};
