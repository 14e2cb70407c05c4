/**
 * `xl create`: a config file (and `key=value` words behind it) to a running domain.
 *
 * The domain gets a process of its own. `create` returns when it runs; with -c it stays at the console, with -F until the domain
 * has ended for good. Leaving either ends nothing.
 *
 * Exit codes: 0; 1 for a bad config; 2 for bad words; 3 for a config file that cannot be read or a domain that cannot be built;
 * 6 without a config file; 128+n when signal n ended it, 141 when standard output was closed; with -c and -F that of the domain:
 * 4 if it crashed and was not restarted.
 *
 * Source: xl(1); tools/xl/xl_vmcontrol.c main_create, create_domain (read for behaviour); recorded output of xl 4.17.
 */

import { cpus } from 'node:os';
import type { EarlyProcess } from '../../host/start-domain.ts';
import { readXlConf } from '../../host/xl-conf-file.ts';
import {
  configJson,
  type DomainConfig,
  readStated,
  type StatedConfig,
  withDefaults,
} from '../../toolstack/config/domain-config.ts';
import { appendOverrides, ConfigError } from '../../toolstack/config/xl-cfg.ts';
import { withXlConf } from '../../toolstack/config/xl-conf.ts';
import { openTerminal } from '../terminal.ts';
import { type Command, type Context, type DomainStarter, readWords } from './command.ts';
import { readConfigFile } from './config-file.ts';
import { showConsole } from './console.ts';
import { showDisplay } from './vncviewer.ts';

/** Exit code when the domain's process was killed, as of a domain that crashed. */
const EXIT_KILLED = 4;

const LONG_OPTIONS = [
  { name: 'defconfig', takesValue: true, key: 'f' },
  { name: 'dryrun', takesValue: false, key: 'n' },
  { name: 'ignore-global-affinity-masks', takesValue: false, key: 'i' },
  { name: 'quiet', takesValue: false, key: 'q' },
  { name: 'vncviewer', takesValue: false, key: 'V' },
  { name: 'vncviewer-autopass', takesValue: false, key: 'A' },
  { name: 'console_autoconnect', takesValue: false, key: 'c' },
];

export const create: Command = {
  name: 'create',
  modifies: true,
  canDryRun: true,
  summary: 'Create a domain from config file <filename>',
  usage: '<ConfigFile> [options] [vars]',
  options: [
    '-c                      Connect to the console after the domain is created.',
    '-d                      Enable debug messages.',
    '-e                      Do not wait in the background for the death of the domain.',
    '-F                      Run in foreground until death of the domain.',
    '-f FILE, --defconfig=FILE\n                     Use the given configuration file.',
    '-h                      Print this help.',
    '-n, --dryrun            Dry run - prints the resulting configuration',
    '                         (deprecated in favour of global -N option).',
    '-p                      Leave the domain paused after it is created.',
    '-q, --quiet             Quiet.',
    '-V, --vncviewer         Connect to the VNC display after the domain is created.',
    '-A, --vncviewer-autopass\n                        Pass VNC password to viewer via stdin.',
    '--ignore-global-affinity-masks Ignore global masks in xl.conf.',
  ].join('\n'),

  async run(words, context) {
    const parsed = readWords(create, words, { letters: 'AFVcdef:inpq', long: LONG_OPTIONS }, 0, context);
    if (typeof parsed === 'number') return parsed;
    const given = new Set(parsed.options.map((option) => option.key));
    const overrides = parsed.operands.filter((word) => word.includes('='));
    const files = parsed.operands.filter((word) => !word.includes('='));
    // A file in front of all options is taken first in xl, so that -f replaces it; one behind them is too many beside -f.
    const defconfig = parsed.options.findLast((option) => option.key === 'f')?.value ?? undefined;
    const replaced = defconfig !== undefined && files.length > 0 && words[0] === files[0];
    if (files.length > (defconfig === undefined || replaced ? 1 : 0)) {
      context.help('create');
      return 2;
    }
    const file = defconfig ?? files[0];
    if (file === undefined) {
      context.err('Config file not specified and none in save file');
      return 6;
    }
    const text = readConfigFile(file, context);
    if (text === null) return 3;
    if (!given.has('q')) context.err(`Parsing config from ${file}`);

    const dryRun = context.dryRun || given.has('n');
    let stated: StatedConfig;
    let config: DomainConfig;
    try {
      const conf = readXlConf(context.err);
      const options = { warn: context.err, hostCpus: cpus().length };
      stated = withXlConf(readStated(file, appendOverrides(text, overrides), options), conf, given.has('i'));
      if (dryRun) {
        context.out(configJson(stated));
        return 0;
      }
      config = withDefaults(stated);
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      context.err(error.message);
      return 1;
    }
    if (given.has('d')) context.err(configJson(stated).trimEnd());
    const flags = {
      console: given.has('c'),
      foreground: given.has('F'),
      viewer: given.has('V') || given.has('A'),
      autopass: given.has('A'),
      quiet: given.has('q'),
      paused: given.has('p'),
      preserve: given.has('e'),
    };
    return await runNew(config, { ...flags, configText: appendOverrides(text, overrides) }, context);
  },
};

export interface RunFlags {
  readonly console: boolean;
  readonly foreground: boolean;
  readonly viewer: boolean;
  readonly autopass: boolean;
  readonly quiet: boolean;
  readonly paused: boolean;
  readonly preserve: boolean;
  /** What the config was read from. */
  readonly configText: string;
  /** A saved domain that goes on. */
  readonly restoreFrom?: string;
  /** For the domain, started already. */
  readonly process?: EarlyProcess;
}

/** Starts the domain, and stays as long as the flags say. An error that is nobody's but ours passes through. */
export async function runNew(config: DomainConfig, flags: RunFlags, context: Context): Promise<number> {
  const starter = context.starter ?? (await hostStarter());
  let leave: (exitCode: number) => void = () => {};
  const left = new Promise<number>((resolve) => {
    leave = resolve;
  });
  const terminal = flags.console ? openTerminal({ onEscape: () => leave(0), onHangup: leave }) : null;
  try {
    const starting = starter.startDomain(config, {
      quiet: flags.quiet,
      paused: flags.paused,
      preserve: flags.preserve,
      configText: flags.configText,
      ...(flags.process === undefined ? {} : { process: flags.process }),
      ...(flags.restoreFrom === undefined ? {} : { restoreFrom: flags.restoreFrom, force: context.force }),
      log: context.err,
      note: flags.foreground ? context.err : () => {},
    });
    const started = await Promise.race([starting, left]);
    if (typeof started === 'number') {
      starting.then(
        (domain) => domain.leave(),
        () => {},
      );
      return started;
    }
    if (flags.viewer) await showDisplay(started.domid, flags.autopass, context);
    let exitCode: number | null = 0;
    if (terminal !== null) {
      if (terminal.interactive && !flags.quiet)
        context.err(`xl: this is the console of domain \`${config.name}'; Ctrl-] leaves it, and the domain runs on`);
      const console = await starter.connectConsole(started.domid);
      // Null: it has ended already.
      const watched = console === null ? Promise.resolve() : showConsole(console, terminal);
      exitCode = await Promise.race([watched.then(() => started.ended), left]);
      console?.destroy();
    } else if (flags.foreground) exitCode = await started.ended;
    started.leave();
    // Null: the domain's process was killed.
    return exitCode ?? EXIT_KILLED;
  } catch (error) {
    terminal?.close();
    if (!(error instanceof Error && error.name === 'StartError')) throw error;
    if ('isExpected' in error && !error.isExpected) throw error;
    context.err(`libxl: error: ${error.message}`);
    return 3;
  } finally {
    terminal?.close();
  }
}

/** Loaded only now: `create -n` needs nothing of the host. */
async function hostStarter(): Promise<DomainStarter> {
  const [{ startDomain }, { connectConsole }] = await Promise.all([
    import('../../host/start-domain.ts'),
    import('../../host/domain-client.ts'),
  ]);
  return { startDomain, connectConsole };
}
