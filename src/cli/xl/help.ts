/** The help texts of xl, in xl's layout. Source: output of xl 4.17; tools/xl/xl.c help (read for behaviour). */

import type { Command, CommandEntry } from './command.ts';

/** A command by its name or the beginning of one, as long as no other begins so. */
export function findEntry(entries: readonly CommandEntry[], word: string): CommandEntry | undefined {
  const exact = entries.find(({ name }) => name === word);
  if (exact !== undefined) return exact;
  const found = entries.filter(({ name }) => name.startsWith(word));
  return found.length === 1 ? found[0] : undefined;
}

/** The list of all. Ends with a newline. */
export async function listHelp(entries: readonly CommandEntry[]): Promise<string> {
  const commands = await Promise.all(entries.map((entry) => entry.load()));
  const lines = commands.map(({ name, summary }) => {
    const start = ` ${name.padEnd(19)} `;
    return name.length > 19 ? `${start}\n ${' '.repeat(19)} ${summary}\n` : `${start}${summary}\n`;
  });
  return `Usage xl [-vfNtT] <subcommand> [args]\n\nxl full list of subcommands:\n\n${lines.join('')}`;
}

/** Help for one command. Ends with a newline. */
export function commandHelp(command: Command): string {
  const flags = (command.modifies ? 'f' : '') + (command.canDryRun ? 'N' : '');
  const usage = `Usage: xl [-vtT${flags}] ${command.name} ${command.usage}\n\n${command.summary}.\n\n`;
  return command.options === '' ? usage : `${usage}Options:\n\n${command.options === '\n' ? '' : command.options}\n`;
}
