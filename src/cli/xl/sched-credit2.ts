/**
 * `xl sched-credit2`: weight and cap of domains (src/hypervisor/scheduling.ts). Source: xl(1); recorded output of xl 4.17.
 *
 * There is one cpupool, and its rate limit is the least time that a vCPU runs: it cannot be set.
 */

import { setSchedule } from '../../host/domain-client.ts';
import { type Command, type CommandWords, type Context, readWords } from './command.ts';
import { allDomains, CommandError, type Found, findDomain, tryState, withStore } from './domains.ts';

export const POOL = 'Pool-0';
const HEADER = 'Name                                ID Weight  Cap\n';
const RATE_LIMIT_US = 1000;
/** Domain 0 is the host's. */
const DOM0 = { weight: 256, cap: 0 };

const LONG = [
  { name: 'domain', takesValue: true, key: 'd' },
  { name: 'weight', takesValue: true, key: 'w' },
  { name: 'cap', takesValue: true, key: 'c' },
  { name: 'schedparam', takesValue: false, key: 's' },
  { name: 'ratelimit_us', takesValue: true, key: 'r' },
  { name: 'cpupool', takesValue: true, key: 'p' },
];

export const schedCredit2: Command = {
  name: 'sched-credit2',
  modifies: true,
  canDryRun: false,
  summary: 'Get/set credit2 scheduler parameters',
  usage: '[-d <Domain> [-w[=WEIGHT]]] [-p CPUPOOL]',
  options: [
    '-d DOMAIN, --domain=DOMAIN     Domain to modify',
    '-w WEIGHT, --weight=WEIGHT     Weight (int)',
    '-c CAP,    --cap=CAP           Cap (int)',
    '-s         --schedparam        Query / modify scheduler parameters',
    '-r RLIMIT, --ratelimit_us=RLIMIT Set the scheduling rate limit, in microseconds',
    '-p CPUPOOL, --cpupool=CPUPOOL  Restrict output to CPUPOOL',
  ].join('\n'),
  async run(words, context) {
    const parsed = readWords(schedCredit2, words, { letters: 'd:w:c:p:r:s', long: LONG }, 0, context);
    if (typeof parsed === 'number') return parsed;
    const given = valuesOf(parsed);
    const domain = given.get('d');
    const [weight, cap, pool] = [given.get('w'), given.get('c'), given.get('p')];
    if (pool !== undefined && (domain !== undefined || weight !== undefined || cap !== undefined)) {
      context.err('Specifying a cpupool is not allowed with other options.');
      return 1;
    }
    if (domain === undefined && (weight !== undefined || cap !== undefined)) {
      context.err('Must specify a domain.');
      return 1;
    }
    if (pool !== undefined && pool !== POOL && pool !== '0') {
      context.err(`unknown cpupool '${pool}'`);
      return 1;
    }
    if (given.has('s')) return poolParameters(given, context);
    return await withStore(context, async (store) => {
      if (domain === undefined) {
        context.out(`Cpupool ${POOL}: ratelimit=${RATE_LIMIT_US}us\n`);
        await show(await allDomains(store), context);
        return 0;
      }
      const found = await findDomain(store, domain);
      if (weight === undefined && cap === undefined) await show([found], context);
      else await change(found, { weight, cap });
      return 0;
    });
  },
};

/** The last value of each option; empty for one that takes none. */
function valuesOf({ options }: CommandWords): ReadonlyMap<string, string> {
  return new Map(options.map(({ key, value }) => [key, value ?? '']));
}

function poolParameters(given: ReadonlyMap<string, string>, context: Context): number {
  if (!given.has('r')) {
    context.out(`Cpupool ${POOL}: ratelimit=${RATE_LIMIT_US}us\n`);
    return 0;
  }
  context.err(`libxl: error: the rate limit is ${RATE_LIMIT_US} us and cannot be changed`);
  return 1;
}

async function show(domains: readonly Found[], context: Context): Promise<void> {
  context.out(HEADER);
  for (const { domid, name } of domains) {
    const parameters = domid === 0 ? DOM0 : await tryState(domid);
    // It has ended meanwhile.
    if (parameters === null) continue;
    const { weight, cap } = parameters;
    context.out(
      `${name.padEnd(33)} ${String(domid).padStart(4)} ${String(weight).padStart(6)} ${String(cap).padStart(4)}\n`,
    );
  }
}

async function change(
  { domid }: Found,
  texts: { readonly weight: string | undefined; readonly cap: string | undefined },
): Promise<void> {
  if (domid === 0) throw failed('Domain 0:the host schedules it');
  // As strtol() takes them: what is no number is 0.
  const numberIn = (text: string): number => Number(/^\s*[+-]?\d{1,15}/.exec(text)?.[0] ?? 0);
  try {
    const isThere = await setSchedule(domid, {
      ...(texts.weight === undefined ? {} : { weight: numberIn(texts.weight) }),
      ...(texts.cap === undefined ? {} : { cap: numberIn(texts.cap) }),
    });
    if (!isThere) throw failed(`Domain ${domid}:No such process`);
  } catch (error) {
    if (error instanceof Error && error.name === 'DomainClientError') throw failed(error.message);
    throw error;
  }
}

function failed(reason: string): CommandError {
  return new CommandError(`libxl: error: ${reason}\nlibxl_domain_sched_params_set failed.`);
}
