/** `xl sysrq`: presses a magic SysRq key in the guest. Source: xl(1). */

import { sendSysrq } from '../../toolstack/domain-control.ts';
import { type Command, readWords } from './command.ts';
import { findDomain, withStore } from './domains.ts';

export const sysrq: Command = {
  name: 'sysrq',
  modifies: true,
  canDryRun: false,
  summary: 'Send a sysrq to a domain',
  usage: '<Domain> <letter>',
  options: '',
  async run(words, context) {
    const parsed = readWords(sysrq, words, { letters: '' }, 2, context);
    if (typeof parsed === 'number') return parsed;
    const [word, letter] = parsed.operands;
    if (letter.length !== 1) {
      context.err('Invalid sysrq.\n');
      context.help('sysrq');
      return 1;
    }
    return await withStore(context, async (store) => {
      await sendSysrq(store, (await findDomain(store, word)).domid, letter);
      return 0;
    });
  },
};
