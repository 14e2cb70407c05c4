/**
 * `xl migrate` and `xl migrate-receive`: a domain goes on at another host, and hardly notices.
 * Source: xl(1); tools/xl/xl_migrate.c (read for behaviour); recorded output of xl 4.17.
 */

import { DomainClientError, pidOf } from '../../host/domain-client.ts';
import type { TlsTarget } from '../../host/migration-carrier.ts';
import { migrateDomain } from '../../host/migration-client.ts';
import { receiveDomain } from '../../host/receive-domain.ts';
import { stateRoot } from '../../host/state-dir.ts';
import { parseHostPort } from '../../toolstack/config/xl-conf.ts';
import { type Command, type Context, readWords } from './command.ts';
import { readConfigFile } from './config-file.ts';
import { CommandError, findDomain, withStore } from './domains.ts';

const DEBUG = 'debug';

export const migrate: Command = {
  name: 'migrate',
  modifies: true,
  canDryRun: false,
  summary: 'Migrate a domain to another host',
  usage: '[options] <Domain> <host>',
  options: [
    '-h              Print this help.',
    '-C <config>     Send <config> instead of config file from creation.',
    '-s <sshcommand> Use <sshcommand> instead of ssh.  String will be passed',
    '                to sh. If empty, run <host> instead of ssh <host> xl',
    '                migrate-receive [-d -e]',
    '                A <host> that is tls:HOST or tls:HOST:PORT needs no ssh: its',
    '                daemon listens there (domus keys --help).',
    '-e              Do not wait in the background (on <host>) for the death',
    '                of the domain.',
    '--debug         Print huge (!) amount of debug during the migration process.',
    '-p              Do not unpause domain after migrating it.',
    '-D              Preserve the domain id',
  ].join('\n'),

  async run(words, context) {
    const long = [
      { name: 'debug', takesValue: false, key: DEBUG },
      { name: 'live', takesValue: false, key: 'live' },
    ];
    const parsed = readWords(migrate, words, { letters: 'FC:s:epD', long }, 2, context);
    if (typeof parsed === 'number') return parsed;
    const given = new Map(parsed.options.map(({ key, value }) => [key, value]));
    const [word, host] = parsed.operands;
    return await withStore(context, async (store) => {
      const tls = tlsTarget(given, host);
      const { domid } = await findDomain(store, word);
      if (domid === 0) throw new CommandError('libxl: error: Domain 0: the host cannot be migrated');
      const file = given.get('C') ?? null;
      const config = file === null ? null : readConfigFile(file, context);
      if (file !== null && config === null) return 1;
      if (pidOf(stateRoot(), domid) === null) throw new CommandError(`libxl: error: Domain ${domid}:No such process`);
      context.err('Saving to migration stream');
      const code = await migrateDomain({
        domid,
        way: tls ?? commandFor(given, host, context),
        config,
        debug: given.has(DEBUG),
        tell: context.err,
        detail: context.verbosity > 0 ? context.err : () => {},
      });
      if (code === null) throw new DomainClientError(`Domain ${domid}: its process does not answer`);
      if (code === 0) context.err('Migration successful.');
      return code;
    });
  },
};

/** For `tls:HOST[:PORT]` and `tls://HOST[:PORT]`; null for other hosts. Throws CommandError. */
function tlsTarget(given: ReadonlyMap<string, string | null>, host: string): Omit<TlsTarget, 'root'> | null {
  const match = /^tls:(?:\/\/(?=[^/]))?(.*?)\/?$/.exec(host);
  if (match === null || given.get('s') === '') return null;
  if (given.has('s'))
    throw new CommandError(`libxl: error: ${host}: without ssh, so there is nothing that -s could do`);
  const address = parseHostPort(match[1]);
  if (address === null)
    throw new CommandError(`libxl: error: ${host}: expected tls:HOST or tls:HOST:PORT, an IPv6 address in brackets`);
  return { address, paused: given.has('p'), preserve: given.has('e') || given.has('F') };
}

/** What a shell is to run, so that a `migrate-receive` of the target is at the other end. */
function commandFor(given: ReadonlyMap<string, string | null>, host: string, context: Context): string {
  const ssh = given.get('s') ?? 'ssh';
  if (ssh === '') return host;
  const verbose = context.verbosity > 0 ? ` -${'v'.repeat(context.verbosity)}` : '';
  const options = [
    given.has('e') || given.has('F') ? ' -e' : '',
    given.has(DEBUG) ? ' -d' : '',
    given.has('p') ? ' -p' : '',
  ];
  return `exec ${ssh} ${host} xl${verbose} migrate-receive${options.join('')}`;
}

export const migrateReceive: Command = {
  name: 'migrate-receive',
  modifies: true,
  canDryRun: false,
  summary: 'Restore a domain from a saved state',
  usage: '- for internal use only',
  options: '',

  async run(words, context) {
    const parsed = readWords(migrateReceive, words, { letters: 'Fedp' }, 0, context);
    if (typeof parsed === 'number') return parsed;
    if (parsed.operands.length > 0) {
      context.help('migrate-receive');
      return 1;
    }
    const given = new Set(parsed.options.map(({ key }) => key));
    return await receiveDomain({
      from: 'stdio',
      paused: given.has('p'),
      preserve: given.has('e'),
      force: context.force,
      tell: context.err,
    });
  },
};
