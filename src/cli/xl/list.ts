/**
 * `xl list`: domains, their state and what they have used; and `xl claims`.
 *
 * Source: xl(1); recorded output of xl 4.17.
 */

import { type Command, type CommandWords, type Context, readWords } from './command.ts';
import { type DomainReport, domainReports, memoryMiB, SHUTDOWN_LETTERS } from './domain-report.ts';
import { allDomains, CommandError, domidOf, withStore } from './domains.ts';
import { longList } from './list-long.ts';

const LONG = [
  { name: 'long', takesValue: false, key: 'l' },
  { name: 'verbose', takesValue: false, key: 'v' },
  { name: 'context', takesValue: false, key: 'Z' },
  { name: 'cpupool', takesValue: false, key: 'c' },
  { name: 'numa', takesValue: false, key: 'n' },
];

export const list: Command = {
  name: 'list',
  modifies: false,
  canDryRun: false,
  summary: 'List information about all/some domains',
  usage: '[options] [Domain]\n',
  options: [
    '-l, --long              Output all VM details',
    '-v, --verbose           Prints out UUIDs and security context',
    '-Z, --context           Prints out security context',
    '-c, --cpupool           Prints the cpupool the domain is in',
    '-n, --numa              Prints out NUMA node affinity',
  ].join('\n'),

  async run(words, context) {
    const parsed = readWords(list, words, { letters: 'lvZcn', long: LONG }, 0, context);
    if (typeof parsed === 'number') return parsed;
    if (parsed.operands.length > 1) {
      context.help('list');
      return 2;
    }
    return await withStore(context, async (store) => {
      const domains = await allDomains(store);
      const word = parsed.operands[0];
      const wanted = word === undefined ? null : await domidOf(store, word);
      const shown = domains.filter(({ domid }) => wanted === null || domid === wanted);
      if (shown.length === 0) throw new CommandError(`Error: Domain '${word}' does not exist.`);
      const reports = await domainReports(store, shown, domains);
      if (parsed.options.some(({ key }) => key === 'l')) context.out(await longList(store, reports));
      else showTable(reports, parsed.options, context);
      return 0;
    });
  },
};

const HEADER = 'Name                                        ID   Mem VCPUs\tState\tTime(s)';

function showTable(reports: readonly DomainReport[], options: CommandWords['options'], context: Context): void {
  const given = new Set(options.map(({ key }) => key));
  const verbose = given.has('v');
  const label = given.has('Z') && !verbose;
  let header = HEADER;
  if (verbose) header += '   UUID                            Reason-Code\tSecurity Label';
  if (label) header += '   Security Label';
  if (given.has('c')) header += '         Cpupool';
  if (given.has('n')) header += ' NODE Affinity';
  context.out(`${header}\n`);
  for (const report of reports) {
    const { uuid, shutdownReason } = report;
    let row = rowOf(report);
    if (verbose) {
      const reason = shutdownReason === -1 ? '-' : shutdownReason.toString(16);
      row += ` ${uuid} ${reason.padStart(8)} ${'-'.padStart(16)}`;
    }
    if (label) row += ` ${'-'.padStart(16)}`;
    if (given.has('c')) row += 'Pool-0'.padStart(16);
    if (given.has('n')) row += ' all';
    context.out(`${row}\n`);
  }
}

function rowOf(report: DomainReport): string {
  const { name, domid, vcpus, seconds } = report;
  const online = vcpus.filter((vcpu) => vcpu.online).length;
  const start = `${name.padEnd(40)} ${String(domid).padStart(5)} ${String(memoryMiB(report)).padStart(5)}`;
  return `${start} ${String(online).padStart(5)}     ${stateLetters(report)}  ${seconds.toFixed(1).padStart(8)}`;
}

/** A domain has its memory when it is created: there is never a claim for more. */
export const claims: Command = {
  name: 'claims',
  modifies: false,
  canDryRun: false,
  summary: 'List outstanding claim information about all domains',
  usage: '',
  options: '\n',
  async run(words, context) {
    const parsed = readWords(claims, words, { letters: '' }, 0, context);
    if (typeof parsed === 'number') return parsed;
    return await withStore(context, async (store) => {
      context.out(`${HEADER}  Claimed\n`);
      const all = await allDomains(store);
      for (const report of await domainReports(store, all, all)) context.out(`${rowOf(report)} ${'0'.padStart(5)}\n`);
      return 0;
    });
  },
};

function stateLetters({ running, blocked, paused, shutdownReason, dying }: DomainReport): string {
  const reason = shutdownReason === -1 ? '-' : (SHUTDOWN_LETTERS[shutdownReason] ?? '?');
  const flag = (isSet: boolean, letter: string): string => (isSet ? letter : '-');
  const shutdown = shutdownReason !== -1;
  return [
    flag(running, 'r'),
    flag(blocked, 'b'),
    flag(paused, 'p'),
    flag(shutdown, 's'),
    reason,
    flag(dying, 'd'),
  ].join('');
}
