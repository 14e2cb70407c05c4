/**
 * `xl sched-credit` and `xl sched-rtds`: of schedulers that the host does not have. They list the domains of cpupools with theirs: none.
 * Source: xl(1); recorded output of xl 4.17.
 */

import type { OptionSyntax } from '../getopt.ts';
import { type Command, readWords } from './command.ts';
import { findDomain, withStore } from './domains.ts';
import { POOL } from './sched-credit2.ts';

export const schedCredit = schedulerCommand(
  'sched-credit',
  'Get/set credit scheduler parameters',
  '[-d <Domain> [-w[=WEIGHT]|-c[=CAP]]] [-s [-t TSLICE] [-r RATELIMIT]] [-p CPUPOOL]',
  [
    '-d DOMAIN, --domain=DOMAIN        Domain to modify',
    '-w WEIGHT, --weight=WEIGHT        Weight (int)',
    '-c CAP, --cap=CAP                 Cap (int)',
    '-s         --schedparam           Query / modify scheduler parameters',
    '-t TSLICE, --tslice_ms=TSLICE     Set the timeslice, in milliseconds',
    '-r RLIMIT, --ratelimit_us=RLIMIT  Set the scheduling rate limit, in microseconds',
    '-m DLY, --migration_delay_us=DLY  Set the migration delay, in microseconds',
    '-p CPUPOOL, --cpupool=CPUPOOL     Restrict output to CPUPOOL',
  ],
  {
    letters: 'd:w:c:p:t:r:m:s',
    long: [
      { name: 'domain', takesValue: true, key: 'd' },
      { name: 'weight', takesValue: true, key: 'w' },
      { name: 'cap', takesValue: true, key: 'c' },
      { name: 'schedparam', takesValue: false, key: 's' },
      { name: 'tslice_ms', takesValue: true, key: 't' },
      { name: 'ratelimit_us', takesValue: true, key: 'r' },
      { name: 'migration_delay_us', takesValue: true, key: 'm' },
      { name: 'cpupool', takesValue: true, key: 'p' },
    ],
  },
  'p',
);

export const schedRtds = schedulerCommand(
  'sched-rtds',
  'Get/set rtds scheduler parameters',
  '[-d <Domain> [-v[=VCPUID/all]] [-p[=PERIOD]] [-b[=BUDGET]] [-e[=Extratime]]]',
  [
    '-d DOMAIN, --domain=DOMAIN     Domain to modify',
    '-v VCPUID/all, --vcpuid=VCPUID/all    VCPU to modify or output;',
    "               Using '-v all' to modify/output all vcpus",
    '-p PERIOD, --period=PERIOD     Period (us)',
    '-b BUDGET, --budget=BUDGET     Budget (us)',
    '-e Extratime, --extratime=Extratime Extratime (1=yes, 0=no)',
  ],
  {
    letters: 'd:p:b:e:v:c:',
    long: [
      { name: 'domain', takesValue: true, key: 'd' },
      { name: 'period', takesValue: true, key: 'p' },
      { name: 'budget', takesValue: true, key: 'b' },
      { name: 'extratime', takesValue: true, key: 'e' },
      { name: 'vcpuid', takesValue: true, key: 'v' },
      { name: 'cpupool', takesValue: true, key: 'c' },
    ],
  },
  'c',
);

/** `poolKey`: the option that names a cpupool. */
function schedulerCommand(
  name: string,
  summary: string,
  usage: string,
  options: readonly string[],
  syntax: Omit<OptionSyntax, 'program'>,
  poolKey: string,
): Command {
  const command: Command = {
    name,
    modifies: true,
    canDryRun: false,
    summary,
    usage,
    options: options.join('\n'),
    async run(words, context) {
      const parsed = readWords(command, words, syntax, 0, context);
      if (typeof parsed === 'number') return parsed;
      const given = new Map(parsed.options.map(({ key, value }) => [key, value ?? '']));
      const pool = given.get(poolKey);
      if (pool !== undefined && pool !== POOL && pool !== '0') {
        context.err(`unknown cpupool '${pool}'`);
        return 1;
      }
      const domain = given.get('d');
      given.delete(poolKey);
      if (given.size === 0) return 0;
      if (domain === undefined && !given.has('s')) {
        context.err('Must specify a domain.');
        return 1;
      }
      return await withStore(context, async (store) => {
        const whose = domain === undefined ? `Cpupool ${POOL}` : `Domain ${(await findDomain(store, domain)).domid}`;
        context.err(`libxl: error: ${whose}:its scheduler is credit2: see xl sched-credit2`);
        return 1;
      });
    },
  };
  return command;
}
