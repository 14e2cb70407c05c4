/**
 * xl: the toolstack's command line. Global options, the table of commands, and the program's entry.
 *
 * Source: xl(1); tools/xl/xl.c main (read for behaviour); recorded output of xl 4.17.
 */

import { useCompileCache } from '../../toolstack/compile-cache.ts';
import { getopt } from '../getopt.ts';
import type { Context, DomainStarter } from './command.ts';
import { commandHelp, findEntry, listHelp } from './help.ts';
import { COMMANDS } from './table.ts';

export interface Streams {
  readonly out: (text: string) => void;
  readonly err: (line: string) => void;
  /** Instead of the host's; for tests. */
  readonly starter?: DomainStarter;
}

const PROCESS_STREAMS: Streams = {
  out: (text) => process.stdout.write(text),
  err: (line) => process.stderr.write(`${line}\n`),
};

/**
 * Runs one command line, without the program's name, and returns its exit code.
 * An exception that no command expects is a defect of Domus: its stack is printed and the code is 1.
 */
export async function main(argv: string[], streams: Streams = PROCESS_STREAMS): Promise<number> {
  const { events, operands } = getopt(argv, { program: 'xl', letters: 'vftTN', inOrder: true });
  const flags = new Set<string>();
  let verbosity = 0;
  for (const event of events) {
    if (event.kind === 'error') {
      streams.err(event.message);
      streams.err('unknown global option');
      return 1;
    }
    flags.add(event.key);
    if (event.key === 'v') verbosity++;
  }
  const [name, ...words] = operands;
  if (name === undefined) {
    streams.out(await listHelp(COMMANDS));
    return 1;
  }
  const entry = findEntry(COMMANDS, name);
  if (entry === undefined) {
    if (name === 'help') {
      streams.out(await helpFor(words[0]));
      return 0;
    }
    streams.err('command not implemented');
    return 1;
  }
  const command = await entry.load();
  const dryRun = flags.has('N');
  if (dryRun && !command.canDryRun) {
    streams.err('command does not implement -N (dryrun) option');
    return 1;
  }
  const context: Context = {
    ...streams,
    err: timestamped(streams.err, flags.has('T')),
    dryRun,
    verbosity,
    force: flags.has('f'),
    help: () => streams.out(commandHelp(command)),
  };
  try {
    return await command.run(words, context);
  } catch (error) {
    streams.err(
      `xl: this is a defect of Domus: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`,
    );
    return 1;
  }
}

/** What `xl help` and `xl help WORD` print. */
async function helpFor(word: string | undefined): Promise<string> {
  if (word === undefined || word === 'help') return await listHelp(COMMANDS);
  const entry = findEntry(COMMANDS, word);
  return entry === undefined ? `command "${word}" not implemented\n` : commandHelp(await entry.load());
}

/** -T: libxl's lines get the time and the process behind their level. */
function timestamped(err: (line: string) => void, wanted: boolean): (line: string) => void {
  if (!wanted) return err;
  return (line) => {
    const time = new Date().toISOString().replace('T', ' ').replace(/\..*/, ' UTC');
    err(line.startsWith('libxl: ') ? `${time} [${process.pid}] ${line}` : line);
  };
}

if (import.meta.main) {
  useCompileCache();
  // A reader that has had enough (`xl help | head -1`) is no error.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error;
  });
  process.exitCode = await main(process.argv.slice(2));
}
