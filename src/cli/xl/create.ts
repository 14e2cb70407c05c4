/**
 * `xl create`: a config file (and `key=value` words behind it) to a running domain.
 *
 * In this version there is no daemon: the domain lives in this process, `create` stays in the foreground whether -F is given or
 * not, and what needs the domain to outlive the command (-e, -p) is refused once the config has been found good.
 *
 * Exit codes: 0; 1 for a bad config; 2 for bad words; 3 for a config file that cannot be read or a domain that cannot be built;
 * 6 without a config file; 128+n when signal n ended it, 141 when standard output was closed; else the domain's own.
 *
 * Source: xl(1); tools/xl/xl_vmcontrol.c main_create, create_domain (read for behaviour); recorded output of xl 4.17.
 */

import { readFileSync } from 'node:fs';
import {
  configJson,
  type DomainConfig,
  readStated,
  type StatedConfig,
  withDefaults,
} from '../../toolstack/config/domain-config.ts';
import { appendOverrides, ConfigError } from '../../toolstack/config/xl-cfg.ts';
import { openTerminal } from '../terminal.ts';
import { type Command, type Context, type RunDomain, readWords } from './command.ts';

/** How long a domain that is told to end may take before the process ends without it. */
const END_GRACE_MS = 2000;

const LONG_OPTIONS = [
  { name: 'defconfig', takesValue: true, key: 'f' },
  { name: 'dryrun', takesValue: false, key: 'n' },
  { name: 'ignore-global-affinity-masks', takesValue: false, key: 'i' },
  { name: 'quiet', takesValue: false, key: 'q' },
  { name: 'vncviewer', takesValue: false, key: 'V' },
  { name: 'vncviewer-autopass', takesValue: false, key: 'A' },
  { name: 'console_autoconnect', takesValue: false, key: 'c' },
];

/** Options of xl that cannot be honoured yet, and why. -i has nothing to ignore: there is no xl.conf. */
const REFUSED: Readonly<Record<string, string>> = {
  e: "the domain lives in the process of `xl create', which has to wait for its end",
  p: "there is no `xl unpause' yet that could start the domain",
  V: 'there is no VNC display',
  A: 'there is no VNC display',
};

export const create: Command = {
  name: 'create',
  modifies: true,
  canDryRun: true,
  summary: 'Create a domain from config file <filename>',
  usage: '<ConfigFile> [options] [vars]',
  options: [
    '-c                      Connect to the console after the domain is created.',
    '-d                      Enable debug messages.',
    '-F                      Run in foreground until death of the domain.',
    '-f FILE, --defconfig=FILE\n                     Use the given configuration file.',
    '-h                      Print this help.',
    '-n, --dryrun            Dry run - prints the resulting configuration',
    '                         (deprecated in favour of global -N option).',
    '-q, --quiet             Quiet.',
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
      stated = readStated(file, appendOverrides(text, overrides), { warn: context.err });
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
    for (const [letter, reason] of Object.entries(REFUSED)) {
      if (!given.has(letter)) continue;
      context.err(`xl: option \`-${letter}' is not supported yet: ${reason}`);
      return 1;
    }
    return await run(config, { console: given.has('c'), quiet: given.has('q') }, context);
  },
};

interface RunFlags {
  readonly console: boolean;
  readonly quiet: boolean;
}

/** Runs the domain to its end. An error that is nobody's but ours passes through. */
async function run(config: DomainConfig, flags: RunFlags, context: Context): Promise<number> {
  const runDomain: RunDomain = context.runDomain ?? (await import('../../host/run-domain.ts')).runDomain;
  const name = `domain \`${config.name}'`;
  const leaving = new AbortController();
  let leave: (exitCode: number) => void = () => {};
  const left = new Promise<number>((resolve) => {
    leave = (exitCode) => {
      leaving.abort();
      resolve(exitCode);
    };
  });
  const terminal = flags.console
    ? openTerminal({
        onEscape: () => {
          context.err(`\nxl: ${name} ends: it lives only as long as the \`xl create' that was left with Ctrl-]`);
          leave(0);
        },
        onHangup: leave,
      })
    : null;
  /** Said only now: what is wrong with the config or the host leaves one line, without a promise in front of it. */
  const onStart = (): void => {
    if (flags.quiet) return;
    if (terminal === null)
      context.err(`xl: ${name} runs in the foreground without its console (-c attaches it); Ctrl-C ends it`);
    else if (terminal.interactive) context.err(`xl: this is the console of ${name}; Ctrl-] ends the domain`);
  };
  try {
    const end = runDomain(config, {
      console: terminal,
      log: context.err,
      quiet: flags.quiet,
      xenstore: 'daemon',
      onStart,
      signal: leaving.signal,
    });
    const ended = end.then(({ exitCode }) => exitCode);
    const exitCode = await Promise.race([ended, left]);
    if (!leaving.signal.aborted) return exitCode;
    terminal?.close();
    const timer = setTimeout(() => process.exit(exitCode), END_GRACE_MS);
    await end;
    clearTimeout(timer);
    return exitCode;
  } catch (error) {
    terminal?.close();
    if (!isHostsFault(error)) throw error;
    context.err(`libxl: error: ${error.message}`);
    return 3;
  } finally {
    terminal?.close();
  }
}

/** Told apart by name, so that `create -n` need not load the host. */
function isHostsFault(error: unknown): error is Error {
  return error instanceof Error && ['HostError', 'KernelImageError', 'BuildError'].includes(error.name);
}

/** The text, or null after a message. Line ends of Windows and a byte order mark are no part of it. */
function readConfigFile(file: string, context: Context): string | null {
  // The name stands for "no file" in xl, on every system.
  if (file === '/dev/null') return '';
  try {
    return new TextDecoder().decode(readFileSync(file)).replaceAll('\r\n', '\n');
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? String(error.code) : '';
    const reason = ERRNO_TEXTS[code];
    if (reason === undefined) throw error;
    context.err(`Failed to read config file: ${file}: ${reason}`);
    return null;
  }
}

/** strerror(3) of glibc for what open(2) and read(2) can say of a path. */
const ERRNO_TEXTS: Readonly<Record<string, string>> = {
  EACCES: 'Permission denied',
  EINVAL: 'Invalid argument',
  EIO: 'Input/output error',
  EISDIR: 'Is a directory',
  ELOOP: 'Too many levels of symbolic links',
  EMFILE: 'Too many open files',
  ENAMETOOLONG: 'File name too long',
  ENFILE: 'Too many open files in system',
  ENODEV: 'No such device',
  ENOENT: 'No such file or directory',
  ENOMEM: 'Cannot allocate memory',
  ENOTDIR: 'Not a directory',
  ENXIO: 'No such device or address',
  EPERM: 'Operation not permitted',
  ERR_FS_FILE_TOO_LARGE: 'File too large',
  ERR_INVALID_ARG_VALUE: 'Invalid argument',
};
