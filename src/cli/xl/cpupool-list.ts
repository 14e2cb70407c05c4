/** `xl cpupool-list`: there is one pool, with all CPUs of the host. Source: xl(1); recorded output of xl 4.17. */

import { cpus } from 'node:os';
import { type Command, readWords } from './command.ts';
import { allDomains, withStore } from './domains.ts';
import { POOL } from './sched-credit2.ts';

export const cpupoolList: Command = {
  name: 'cpupool-list',
  modifies: false,
  canDryRun: false,
  summary: 'List CPU pools on host',
  usage: '[-c|--cpus] [<CPU Pool>]',
  options: '-c, --cpus                     Output list of CPUs used by a pool',
  async run(words, context) {
    const long = [{ name: 'cpus', takesValue: false, key: 'c' }];
    const parsed = readWords(cpupoolList, words, { letters: 'c', long }, 0, context);
    if (typeof parsed === 'number') return parsed;
    const pool = parsed.operands[0];
    if (pool !== undefined && pool !== POOL && pool !== '0') {
      context.err(`Pool '${pool}' does not exist`);
      return 1;
    }
    return await withStore(context, async (store) => {
      const host = cpus();
      if (parsed.options.length > 0) {
        context.out(`${'Name'.padEnd(19)}CPU list\n`);
        context.out(`${POOL.padEnd(19)}${host.map((_, cpu) => cpu).join(',')}\n`);
        return 0;
      }
      const domains = (await allDomains(store)).length;
      context.out(`${'Name'.padEnd(19)}CPUs   Sched     Active   Domain count\n`);
      const row = `${POOL.padEnd(19)}${String(host.length).padStart(3)} ${'credit2'.padStart(9)}`;
      context.out(`${row}       y       ${String(domains).padStart(4)}\n`);
      return 0;
    });
  },
};
