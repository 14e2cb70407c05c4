/**
 * What a subcommand of xl is, what it is given, and how its options are read. One file per command; main.ts has the table.
 */

import type { Duplex } from 'node:stream';
import type { StartedDomain, StartOptions } from '../../host/start-domain.ts';
import type { DomainConfig } from '../../toolstack/config/domain-config.ts';
import { getopt, type OptionEvent, type OptionSyntax } from '../getopt.ts';

/** What `xl create` has of the host; tests have their own. */
export interface DomainStarter {
  /** src/host/start-domain.ts */
  startDomain(config: DomainConfig, options: StartOptions): Promise<StartedDomain>;
  /** src/host/domain-client.ts */
  connectConsole(domid: number): Promise<Duplex | null>;
}

export interface Context {
  /** Standard output, as it is. */
  readonly out: (text: string) => void;
  /** A line on standard error. */
  readonly err: (line: string) => void;
  /** -N: only show what would be done. */
  readonly dryRun: boolean;
  /** -v, counted. */
  readonly verbosity: number;
  /** -f */
  readonly force: boolean;
  /** Prints the help of the command that runs, whose name it may be given. */
  readonly help: (name?: string) => void;
  /** Instead of the host's; for tests. */
  readonly starter?: DomainStarter;
}

export interface Command {
  readonly name: string;
  /** Changes something: understands -f. */
  readonly modifies: boolean;
  /** Understands -N. */
  readonly canDryRun: boolean;
  readonly summary: string;
  readonly usage: string;
  /** A line an option, or empty; '\n' is a heading with nothing below. */
  readonly options: string;
  /** `words`: the command line behind the command's name. Returns the exit code. */
  run(words: readonly string[], context: Context): Promise<number>;
}

/** A command in the table: its file is loaded when it is asked for. */
export interface CommandEntry {
  readonly name: string;
  readonly load: () => Promise<Command>;
}

export interface CommandWords {
  readonly options: readonly Extract<OptionEvent, { kind: 'option' }>[];
  readonly operands: readonly string[];
}

/**
 * Options and operands of a command, or the exit code when that is all: 0 after `-h`, 2 for a bad option or too few operands.
 * Source: tools/xl/xl_utils.c, def_getopt (read for behaviour). xl names a bad long option by a NUL; here getopt's message is printed.
 */
export function readWords(
  command: Command,
  words: readonly string[],
  syntax: Omit<OptionSyntax, 'program'>,
  operandsMin: number,
  context: Context,
): CommandWords | number {
  const long = [...(syntax.long ?? []), { name: 'help', takesValue: false, key: 'h' }];
  const { events, operands } = getopt(words, { ...syntax, long, program: 'xl' });
  const options: Extract<OptionEvent, { kind: 'option' }>[] = [];
  for (const event of events) {
    if (event.kind === 'error' && event.option !== 'h') {
      const unknownLetter = event.message.includes('invalid option');
      context.err(unknownLetter ? `option \`${event.option}' not supported.` : event.message);
      return 2;
    }
    if (event.kind === 'error' || event.key === 'h') {
      context.help(command.name);
      return 0;
    }
    options.push(event);
  }
  if (operands.length < operandsMin) {
    const plural = operandsMin > 1 ? 's' : '';
    context.err(`'xl ${command.name}' requires at least ${operandsMin} argument${plural}.\n`);
    context.help(command.name);
    return 2;
  }
  return { options, operands };
}
