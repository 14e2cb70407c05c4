/**
 * The commands of xenstore: `xenstore-read`, `xenstore-ls` and so on, each also as `xenstore read`. The first word of the
 * command line is the program's name, which the launcher puts there.
 *
 * Exit codes: 0; 1 for everything that goes wrong (xenstore-control: see control.ts).
 *
 * XENSTORED_PATH (a socket) or XENSTORED_RUNDIR (a folder with `socket` in it) name an xenstored; else it is the one of the
 * state folder, which is started if it does not run.
 *
 * Source: tools/xenstore/xenstore_client.c of Xen 4.17 (read for behaviour); recorded output of Debian's xenstore-utils 4.17.
 */
import { join } from 'node:path';
import { connectXenstored, openXenstored, XenstoredError } from '../../host/xenstored.ts';
import { XenstoreClient, XenstoreClosed, XenstoreError } from '../../xenstore/client.ts';
import { getopt, type OptionSyntax } from '../getopt.ts';
import { chmod } from './chmod.ts';
import { type Command, type Context, Failure, leadingNumber } from './command.ts';
import { control } from './control.ts';
import { exists } from './exists.ts';
import { list } from './list.ts';
import { ls } from './ls.ts';
import { read } from './read.ts';
import { rm } from './rm.ts';
import { watch } from './watch.ts';
import { write } from './write.ts';

const COMMANDS: readonly Command[] = [read, write, rm, exists, list, ls, chmod, watch];

const OPTIONS: Omit<OptionSyntax, 'program'> = {
  letters: 'hfspturn:R',
  long: [
    { name: 'help', takesValue: false, key: 'h' },
    { name: 'flat', takesValue: false, key: 'f' },
    { name: 'prefix', takesValue: false, key: 'p' },
    { name: 'tidy', takesValue: false, key: 't' },
    { name: 'upto', takesValue: false, key: 'u' },
    { name: 'recurse', takesValue: false, key: 'r' },
    { name: 'number', takesValue: true, key: 'n' },
    { name: 'raw', takesValue: false, key: 'R' },
  ],
};

export interface Streams {
  readonly out: (output: string | Uint8Array) => void;
  /** As it is. */
  readonly err: (text: string) => void;
  /** Columns of the terminal that standard output is, or null. */
  readonly columns: number | null;
}

const PROCESS_STREAMS: Streams = {
  out: (output) => process.stdout.write(output),
  err: (text) => process.stderr.write(text),
  columns: process.stdout.isTTY ? process.stdout.columns : null,
};

/** The command has failed, and has said so. */
class Failed extends Error {}

/** Runs `program` (xenstore, or xenstore-NAME) with its words, and returns the exit code. */
export async function main(
  [program = 'xenstore', ...words]: readonly string[],
  streams: Streams = PROCESS_STREAMS,
): Promise<number> {
  const warn = (line: string): void => streams.err(`${program}: ${line}\n`);
  if (program === 'xenstore-control') return await control(words, connect, streams);
  const isPlain = program === 'xenstore';
  const name = isPlain ? words[0] : program.slice('xenstore-'.length);
  if (name === undefined) {
    warn('Usage: xenstore <mode> [-h] [...]');
    return 1;
  }
  const command = COMMANDS.find((candidate) => candidate.name === name);
  if (command === undefined) {
    warn(`unknown mode ${name}\n`);
    return 1;
  }
  const usage = (): number => {
    warn(`Usage: ${program} ${isPlain ? `${name} ` : ''}${command.usage}`);
    return 1;
  };
  const { events, operands } = getopt(isPlain ? words.slice(1) : words, {
    ...OPTIONS,
    program: isPlain ? name : program,
  });
  const options = new Set<string>();
  let number: number | null = null;
  for (const event of events) {
    if (event.kind === 'error') {
      // And that is all: an unknown option has no other effect.
      streams.err(`${event.message}\n`);
      continue;
    }
    if (event.key === 's') continue;
    if (event.key === 'h' || !command.letters.includes(event.key)) return usage();
    options.add(event.key);
    if (event.key === 'n') number = leadingNumber(event.value ?? '');
  }
  if (!command.accepts(operands.length)) return usage();

  let client: XenstoreClient;
  try {
    client = await connect();
  } catch (error) {
    if (!(error instanceof XenstoredError)) throw error;
    warn(`xs_open: ${CONNECT_ERRORS[error.code] ?? error.message}`);
    return 1;
  }
  try {
    const context = { client, options, number, warn, columns: streams.columns };
    if (!command.usesTransaction(operands.length)) {
      const done = await command.run(operands, { ...context, nodes: client, out: streams.out });
      return done ? 0 : 1;
    }
    return await runInTransaction(command, operands, context, streams.out);
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    warn(error.message);
    return 1;
  } finally {
    client.close();
  }
}

async function runInTransaction(
  command: Command,
  operands: readonly string[],
  context: Omit<Context, 'nodes' | 'out'>,
  out: Streams['out'],
): Promise<number> {
  let output: (string | Uint8Array)[] = [];
  let code = 0;
  try {
    await context.client.transaction(async (nodes) => {
      // Of a run that conflicted nothing is shown.
      output = [];
      const done = await command.run(operands, { ...context, nodes, out: (part) => output.push(part) });
      if (!done) throw new Failed();
    });
  } catch (error) {
    if (error instanceof XenstoreError || error instanceof XenstoreClosed) {
      const isStart = error instanceof XenstoreError && error.operation === 'TRANSACTION_START';
      throw new Failure(isStart ? "couldn't start transaction" : "couldn't end transaction");
    }
    if (!(error instanceof Failed)) throw error;
    code = 1;
  }
  // Also what a command has to show that failed later.
  for (const part of output) out(part);
  return code;
}

/** strerror(3) of glibc for what connect(2) says. */
const CONNECT_ERRORS: Readonly<Record<string, string>> = {
  ENOENT: 'No such file or directory',
  ECONNREFUSED: 'Connection refused',
  EACCES: 'Permission denied',
  ENOTDIR: 'Not a directory',
};

async function connect(): Promise<XenstoreClient> {
  const { XENSTORED_PATH: path, XENSTORED_RUNDIR: folder } = process.env;
  if (path) return new XenstoreClient(await connectXenstored(path));
  if (folder) return new XenstoreClient(await connectXenstored(join(folder, 'socket')));
  return new XenstoreClient(await openXenstored());
}

if (import.meta.main) {
  // A reader that has had enough (`xenstore-ls | head`) is no error.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error;
    process.exit(0);
  });
  process.exitCode = await main(process.argv.slice(2));
}
