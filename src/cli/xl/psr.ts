/**
 * `xl psr-*`: monitoring and allocation of the CPU's caches and memory bandwidth. A guest's vCPUs are threads of the host, which has the CPU's
 * registers for itself; so it is as on a host whose CPU has no such features.
 *
 * Source: xl(1); recorded output and exit code of xl 4.17.
 */

import { type Command, type Context, readWords } from './command.ts';
import { findDomain, withStore } from './domains.ts';

/** libxl's ERROR_FAIL as an exit code. */
const EXIT_NO_FEATURE = 253;

export const psrHwinfo: Command = {
  name: 'psr-hwinfo',
  modifies: false,
  canDryRun: false,
  summary: 'Show hardware information for Platform Shared Resource',
  usage: '[options]',
  options: [
    '-m, --cmt       Show Cache Monitoring Technology (CMT) hardware info',
    '-a, --cat       Show Cache Allocation Technology (CAT) hardware info',
    '-b, --mba       Show Memory Bandwidth Allocation (MBA) hardware info\n',
  ].join('\n'),
  async run(words, context) {
    const long = [
      { name: 'cmt', takesValue: false, key: 'm' },
      { name: 'cat', takesValue: false, key: 'a' },
      { name: 'mba', takesValue: false, key: 'b' },
    ];
    const parsed = readWords(psrHwinfo, words, { letters: 'mab', long }, 0, context);
    if (typeof parsed === 'number') return parsed;
    const asked = new Set(parsed.options.map(({ key }) => key));
    // Monitoring is looked at first, and the first that is not there ends it.
    if (asked.size === 0 || asked.has('m')) context.out('Cache Monitoring Technology (CMT):\nEnabled         : 0\n');
    return EXIT_NO_FEATURE;
  },
};

export const psrCmtAttach = domainCommand(
  'psr-cmt-attach',
  'Attach Cache Monitoring Technology service to a domain',
  '<Domain>',
);
export const psrCmtDetach = domainCommand(
  'psr-cmt-detach',
  'Detach Cache Monitoring Technology service from a domain',
  '<Domain>',
);
export const psrCmtShow = domainCommand(
  'psr-cmt-show',
  'Show Cache Monitoring Technology information',
  '<PSR-CMT-Type> <Domain>',
  [
    'Available monitor types:',
    '"cache-occupancy":         Show L3 cache occupancy(KB)',
    '"total-mem-bandwidth":     Show total memory bandwidth(KB/s)',
    '"local-mem-bandwidth":     Show local memory bandwidth(KB/s)\n',
  ],
  1,
);
export const psrCatSet = domainCommand(
  'psr-cat-set',
  'Set cache capacity bitmasks(CBM) for a domain',
  '[options] <Domain> <CBM>',
  [
    '-s <socket>       Specify the socket to process, otherwise all sockets are processed',
    '-l <level>        Specify the cache level to process, otherwise L3 cache is processed',
    '-c                Set code CBM if CDP is supported',
    '-d                Set data CBM if CDP is supported\n',
  ],
);
export const psrCatShow = domainCommand(
  'psr-cat-show',
  'Show Cache Allocation Technology information',
  '[options] <Domain>',
  ['-l <level>        Specify the cache level to process, otherwise L3 cache is processed\n'],
);
export const psrMbaSet = domainCommand(
  'psr-mba-set',
  'Set throttling value (THRTL) for a domain',
  '[options] <Domain> <THRTL>',
  ['-s <socket>       Specify the socket to process, otherwise all sockets are processed\n'],
);
export const psrMbaShow = domainCommand('psr-mba-show', 'Show Memory Bandwidth Allocation information', '<Domain>');

function domainCommand(
  name: string,
  summary: string,
  usage: string,
  options: readonly string[] = [],
  domainAt = 0,
): Command {
  const command: Command = {
    name,
    modifies: true,
    canDryRun: false,
    summary,
    usage,
    options: options.join('\n'),
    async run(words, context: Context) {
      const operandsMin = usage.split(' ').filter((word) => word.startsWith('<')).length;
      const parsed = readWords(command, words, { letters: 's:l:cd' }, operandsMin, context);
      if (typeof parsed === 'number') return parsed;
      return await withStore(context, async (store) => {
        await findDomain(store, parsed.operands[domainAt]);
        context.err(`xl: ${name}: the CPU's cache and bandwidth controls are not to be had here`);
        return 1;
      });
    },
  };
  return command;
}
