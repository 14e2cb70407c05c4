/**
 * The `domus` command: what Xen has no command for, which is getting a guest to boot.
 *
 * Everything about a running domain is xl's; `domus demo` builds a guest and then runs xl in this same process.
 * Exit codes: 0 done, 1 wrong usage or failure, 130 interrupted; `domus demo` otherwise gives xl's; `domus daemon` 3 if one runs.
 */

import { parseArgs } from 'node:util';
import { KernelImageError } from '../../toolstack/builder/errors.ts';
import { useCompileCache } from '../../toolstack/compile-cache.ts';
import { AptError } from '../../toolstack/guest-image/apt.ts';
import { type BuildGuestOptions, buildGuest, GuestBuildError } from '../../toolstack/guest-image/build.ts';
import { type BuildDiskOptions, buildDisk } from '../../toolstack/guest-image/build-disk.ts';
import { DebError } from '../../toolstack/guest-image/deb.ts';

const HELP = `usage: domus COMMAND [OPTIONS]

Xen in TypeScript: boots Linux kernels as Xen PV guests inside Node.

Commands:
  demo           build a small Debian guest if needed and start it with its console here (Ctrl-] leaves)
  guest build    build the guest and print where its files are
  disk resize DOMAIN VDEV [SIZE]
                 make a disk of a running domain larger, for example xvda 20G; without SIZE take up the size that its file or
                 device has by now
  disk flatten IMAGE
                 make a qcow2 image stand alone that lies over others, as after fork and snapshot, while nobody uses it
  fork DOMAIN [-n COUNT] [--name PATTERN] [-p]
                 make copies of a running domain, each with memory and disks of its own from now on; %d in PATTERN is the
                 number of a copy (default DOMAIN-fork-%d); -p leaves them paused
  snapshot DOMAIN [SNAPSHOT]
                 keep a running domain as it is now, memory and disks; it goes on
  snapshots [DOMAIN]
                 list the snapshots of a domain, or of all
  snapshots remove DOMAIN SNAPSHOT
                 forget one
  revert DOMAIN SNAPSHOT [-p]
                 go on with a domain as it was when the snapshot was taken; what has happened since is lost; -p leaves it
                 paused
  keys           show the key of this host and whom it trusts, for xl migrate DOMAIN tls:HOST
  keys create [NAME ...] [--days N] [--replace]
                 make this host's key, and a certificate for the names and addresses by which others call it (default: its
                 host name), good for N days (default 3650)
  keys show      print this host's certificate, to be trusted by others
  keys trust FILE ...
                 trust the hosts whose certificates are in these files: they may send domains here, and get some; - is
                 standard input
  keys forget NAME
                 trust a host no more; NAME is one of its names, or the start of its fingerprint
  top            show the host and its domains, again and again; the same as xl top
  daemon         serve xenstore in the foreground; other commands start it by themselves, in the background
  daemon stop    end the daemon; running domains start it again when they need it
  domains start  create the guests whose configs are in the folder "auto" of the state folder
  domains stop   shut all guests down, and take away those that have not within 300 s
  completion bash  print a script that completes the words of xl

Options of demo and guest build:
  --kernel-package NAME   Debian package with the kernel (default linux-image-cloud-amd64)
  --package NAME          add this Debian package and what it depends on to the ramdisk, or to the disk; may be given
                          again; NAME:i386 for 32-bit ones
  --suite SUITE           take it from this suite, for example bookworm-backports for Linux 6.12
  --kernel FILE           use this kernel instead of a package; needs --initrd
  --initrd FILE           use this ramdisk; needs --kernel
  --output DIR            put the guest's files there (default: a folder below the cache)
  --force                 build again even if nothing has changed

Options of "guest build" for a guest with a disk of its own:
  --disk SIZE             build one of this size, for example 2G: Debian, which pygrub boots
  --format FORMAT         of the disk: qcow2 (default) or raw
  -h, --help              print this text

The cache is $DOMUS_CACHE_DIR, else $XDG_CACHE_HOME/domus, else ~/.cache/domus. What the daemon keeps is in $DOMUS_STATE_DIR,
else $XDG_STATE_HOME/domus, else ~/.local/state/domus. Domains are managed with xl.
`;

/** The command line is wrong; the message is followed by a hint at --help. */
class UsageError extends Error {
  override readonly name = 'UsageError';
}

/**
 * Runs the command.
 *
 * @param argv the arguments after the program's name
 * @returns the exit code; user errors are printed, not thrown
 */
export async function main(argv: readonly string[]): Promise<number> {
  try {
    return await run(argv);
  } catch (error) {
    if (error instanceof UsageError) {
      process.stderr.write(`domus: ${error.message}\nTry 'domus --help'.\n`);
      return 1;
    }
    if (
      error instanceof GuestBuildError ||
      error instanceof AptError ||
      error instanceof DebError ||
      error instanceof KernelImageError
    ) {
      process.stderr.write(`domus: ${error.message}\n`);
      return 1;
    }
    if (isSystemError(error) || (error instanceof Error && error.name === 'DaemonError')) {
      process.stderr.write(`domus: ${error.message}\n`);
      return 1;
    }
    throw error;
  }
}

/** Errors of the host, such as a full disk: the user's to solve. Anything else is our bug and keeps its stack. */
function isSystemError(error: unknown): error is Error {
  return error instanceof Error && 'syscall' in error;
}

async function run(argv: readonly string[]): Promise<number> {
  if (argv[0] === 'top') {
    const xl = await import('../xl/main.ts');
    return await xl.main([...argv]);
  }
  if (COPYING.includes(argv[0] ?? '')) return await copying(argv);
  if (argv[0] === 'keys') return await keysOfHost(argv.slice(1));
  const { words, options, disk } = parse(argv);
  if (words.length === 0) {
    if (options === 'help') {
      process.stdout.write(HELP);
      return 0;
    }
    process.stderr.write(HELP);
    return 1;
  }
  const command = words.join(' ');
  if (words[0] === 'domains' && options !== 'help') return await domains(words.slice(1), argv.length > words.length);
  if (command === 'completion bash' && options !== 'help') {
    const { bashCompletion } = await import('./completion.ts');
    process.stdout.write(await bashCompletion());
    return 0;
  }
  if (words[0] === 'daemon' && options !== 'help') return await daemon(words.slice(1), argv.length > words.length);
  if (words[0] === 'disk' && options !== 'help') return await disks(words.slice(1), argv.length > words.length);
  const hasHelp = [
    ...['guest', 'daemon', 'daemon stop', 'disk', 'disk resize', 'disk flatten'],
    ...['domains', 'domains start', 'domains stop', 'completion', 'completion bash'],
  ].includes(command);
  if (command !== 'demo' && command !== 'guest build' && !(hasHelp && options === 'help')) {
    throw new UsageError(command === 'guest' ? 'guest: expected "guest build"' : `unknown command "${command}"`);
  }
  if (options === 'help') {
    process.stdout.write(HELP);
    return 0;
  }
  if (disk !== undefined) {
    if (command !== 'guest build') throw new UsageError(`--disk is for "guest build"`);
    const built = await withProgress((onProgress) => buildDisk({ ...disk, onProgress }));
    process.stdout.write(`disk     ${built.disk}\nconfig   ${built.config}\n`);
    return 0;
  }
  const guest = await withProgress((onProgress) => buildGuest({ ...options, onProgress }));
  if (command === 'guest build') {
    process.stdout.write(`kernel   ${guest.kernel}\nramdisk  ${guest.ramdisk}\nconfig   ${guest.config}\n`);
    return 0;
  }
  // Loaded only now: "domus --help" and "domus guest build" need nothing of the hypervisor.
  const xl = await import('../xl/main.ts');
  return await xl.main(['create', '-c', guest.config]);
}

async function keysOfHost(words: readonly string[]): Promise<number> {
  if (words.includes('-h') || words.includes('--help')) {
    process.stdout.write(HELP);
    return 0;
  }
  const { keys } = await import('./keys.ts');
  try {
    return keys(words, (message) => {
      throw new UsageError(message);
    });
  } catch (error) {
    if (error instanceof TypeError && 'code' in error) throw new UsageError(`keys: ${error.message}`);
    throw error;
  }
}

const COPYING: readonly string[] = ['fork', 'snapshot', 'snapshots', 'revert'];

/** Copies and snapshots of running domains. */
async function copying(argv: readonly string[]): Promise<number> {
  const fail = (message: string): never => {
    throw new UsageError(message);
  };
  if (argv.includes('-h') || argv.includes('--help')) {
    process.stdout.write(HELP);
    return 0;
  }
  const [command, ...words] = argv;
  if (command === 'fork') {
    const { fork, parseFork } = await import('./fork.ts');
    try {
      return await fork(parseFork(words, fail));
    } catch (error) {
      if (error instanceof TypeError && 'code' in error) fail(`fork: ${error.message}`);
      throw error;
    }
  }
  const paused = command === 'revert' && words.includes('-p');
  const operands = paused ? words.filter((word) => word !== '-p') : words;
  const [domain, name] = operands;
  const option = operands.find((word) => word.startsWith('-'));
  if (option !== undefined) return fail(`${command}: unknown option "${option}"`);
  const { listAllSnapshots, listSnapshots, removeOne, revert, snapshot } = await import('./snapshot.ts');
  if (command === 'snapshot' && domain !== undefined && operands.length <= 2)
    return await snapshot(domain, name ?? null);
  if (command === 'snapshots' && domain === undefined) return await listAllSnapshots();
  if (command === 'snapshots' && operands.length === 1) return await listSnapshots(domain);
  if (command === 'snapshots' && domain === 'remove' && operands.length === 3)
    return await removeOne(name, operands[2]);
  if (command === 'revert' && domain !== undefined && operands.length === 2) return await revert(domain, name, paused);
  const expected: Readonly<Record<string, string>> = {
    snapshot: '"snapshot DOMAIN [SNAPSHOT]"',
    snapshots: '"snapshots [DOMAIN]" or "snapshots remove DOMAIN SNAPSHOT"',
    revert: '"revert DOMAIN SNAPSHOT [-p]"',
  };
  return fail(`${command}: expected ${expected[command]}`);
}

async function daemon(words: readonly string[], hasOptions: boolean): Promise<number> {
  if (hasOptions || words.length > 1 || (words.length === 1 && words[0] !== 'stop'))
    throw new UsageError('daemon: expected "daemon" or "daemon stop", without options');
  const { runDaemon, stopDaemon } = await import('../../host/domusd.ts');
  if (words.length === 0) return await runDaemon();
  const pid = await stopDaemon();
  process.stderr.write(pid === null ? 'domus: no daemon runs\n' : `domus: the daemon, process ${pid}, has ended\n`);
  return 0;
}

async function disks(words: readonly string[], hasOptions: boolean): Promise<number> {
  const [verb, domain, vdev, size] = words;
  const isFlatten = verb === 'flatten' && words.length === 2;
  const isResize = verb === 'resize' && vdev !== undefined && words.length <= 4;
  if (hasOptions || domain === undefined || !(isFlatten || isResize))
    throw new UsageError('disk: expected "disk resize DOMAIN VDEV [SIZE]" or "disk flatten IMAGE", without options');
  const { flatten, parseSize, resize } = await import('./disk.ts');
  if (!isResize) return await flatten(domain);
  const sizeBytes = size === undefined ? null : parseSize(size);
  if (size !== undefined && sizeBytes === null)
    throw new UsageError(`disk resize: expected a size such as 20G or 1500M, found "${size}"`);
  return await resize(domain, vdev, sizeBytes);
}

async function domains(words: readonly string[], hasOptions: boolean): Promise<number> {
  const [what] = words;
  if (hasOptions || words.length !== 1 || (what !== 'start' && what !== 'stop'))
    throw new UsageError('domains: expected "domains start" or "domains stop", without options');
  const { startDomains, stopDomains, STOP_LIMIT_S } = await import('./domains.ts');
  const say = (line: string): void => void process.stderr.write(`${line}\n`);
  if (what === 'stop') return await stopDomains(STOP_LIMIT_S, say);
  const xl = await import('../xl/main.ts');
  return await startDomains((file) => xl.main(['create', '-q', file]), say);
}

interface Request {
  readonly words: readonly string[];
  readonly options: BuildGuestOptions | 'help';
  /** With --disk. */
  readonly disk?: BuildDiskOptions;
}

function parse(argv: readonly string[]): Request {
  let parsed: ReturnType<typeof parseStrictly>;
  try {
    parsed = parseStrictly(argv);
  } catch (error) {
    if (error instanceof TypeError) throw new UsageError(error.message);
    throw error;
  }
  const { values, positionals } = parsed;
  if (values.help || positionals[0] === 'help')
    return { words: positionals.filter((word) => word !== 'help'), options: 'help' };
  return {
    words: positionals,
    options: {
      ...(values['kernel-package'] === undefined ? {} : { kernelPackage: values['kernel-package'] }),
      ...(values.package === undefined ? {} : { packages: values.package }),
      ...(values.suite === undefined ? {} : { suite: values.suite }),
      ...(values.kernel === undefined ? {} : { kernel: values.kernel }),
      ...(values.initrd === undefined ? {} : { initrd: values.initrd }),
      ...(values.output === undefined ? {} : { outDir: values.output }),
      force: values.force ?? false,
    },
    ...(values.disk === undefined ? {} : { disk: diskOptions(values.disk, values) }),
  };
}

function diskOptions(size: string, values: ReturnType<typeof parseStrictly>['values']): BuildDiskOptions {
  if (values.kernel !== undefined || values.initrd !== undefined) {
    throw new UsageError('--disk has a kernel of its own: use --kernel-package instead of --kernel and --initrd');
  }
  const match = /^(\d+)([MGT])$/i.exec(size);
  if (match === null) throw new UsageError(`--disk: expected a size such as 2G or 1500M, found "${size}"`);
  const { format = 'qcow2' } = values;
  if (format !== 'raw' && format !== 'qcow2')
    throw new UsageError(`--format: expected raw or qcow2, found "${format}"`);
  return {
    sizeMiB: Number(match[1]) * { M: 1, G: 1024, T: 1 << 20 }[match[2]!.toUpperCase() as 'M' | 'G' | 'T'],
    format,
    include: values.package ?? [],
    ...(values['kernel-package'] === undefined ? {} : { kernelPackage: values['kernel-package'] }),
    ...(values.suite === undefined ? {} : { suite: values.suite }),
    ...(values.output === undefined ? {} : { outDir: values.output }),
    force: values.force ?? false,
  };
}

function parseStrictly(argv: readonly string[]) {
  return parseArgs({
    args: [...argv],
    allowPositionals: true,
    options: {
      'kernel-package': { type: 'string' },
      package: { type: 'string', multiple: true },
      suite: { type: 'string' },
      kernel: { type: 'string' },
      initrd: { type: 'string' },
      output: { type: 'string' },
      force: { type: 'boolean' },
      disk: { type: 'string' },
      format: { type: 'string' },
      help: { type: 'boolean', short: 'h' },
    },
  });
}

/** Builds with progress on standard error: a spinner on a terminal, lines elsewhere, nothing if there is nothing to do. */
async function withProgress<T>(build: (onProgress: Progress['step']) => Promise<T>): Promise<T> {
  // process.exit() lets the cache remove its temporary files; the signal's default would leave them.
  const interrupted = (): never => process.exit(130);
  process.once('SIGINT', interrupted);
  const started = performance.now();
  const progress = process.stderr.isTTY ? await spinnerProgress() : plainProgress();
  try {
    const guest = await build(progress.step);
    progress.done(`guest built in ${((performance.now() - started) / 1000).toFixed(1)} s`);
    return guest;
  } catch (error) {
    progress.failed();
    throw error;
  } finally {
    process.removeListener('SIGINT', interrupted);
  }
}

interface Progress {
  readonly step: (step: string, detail: string) => void;
  readonly done: (message: string) => void;
  readonly failed: () => void;
}

function plainProgress(): Progress {
  let steps = 0;
  let last = '';
  return {
    step(step, detail) {
      steps++;
      // A guest may have hundreds of packages to unpack: a line for the first will do.
      if (step === last && step === 'unpack') return;
      last = step;
      process.stderr.write(`domus: ${step}: ${detail}\n`);
    },
    done(message) {
      if (steps > 0) process.stderr.write(`domus: ${message}\n`);
    },
    failed() {},
  };
}

async function spinnerProgress(): Promise<Progress> {
  const { spinner } = await import('@clack/prompts');
  let spin: ReturnType<typeof spinner> | undefined;
  return {
    step(step, detail) {
      if (spin) spin.message(`${step}: ${detail}`);
      else {
        spin = spinner({ output: process.stderr });
        spin.start(`${step}: ${detail}`);
      }
    },
    done(message) {
      spin?.stop(message);
    },
    failed() {
      spin?.error('guest not built');
    },
  };
}

if (import.meta.main) {
  useCompileCache();
  process.exitCode = await main(process.argv.slice(2));
}
