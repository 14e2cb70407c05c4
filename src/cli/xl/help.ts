/** The help texts of xl, in xl's layout. Source: output of xl 4.17; tools/xl/xl.c help (read for behaviour). */

import type { Command } from './command.ts';

/** A command by its name or the beginning of one, as long as no other begins so. */
export function findCommand(commands: readonly Command[], word: string): Command | undefined {
  const exact = commands.find((command) => command.name === word);
  if (exact !== undefined) return exact;
  const found = commands.filter((command) => command.name.startsWith(word));
  return found.length === 1 ? found[0] : undefined;
}

/** Help for one command, or the list of all. Ends with a newline. */
export function helpText(commands: readonly Command[], word?: string): string {
  if (word === undefined || word === 'help') {
    const lines = commands.map(({ name, summary }) => {
      const start = ` ${name.padEnd(19)} `;
      return name.length > 19 ? `${start}\n ${' '.repeat(19)} ${summary}\n` : `${start}${summary}\n`;
    });
    return `Usage xl [-vfNtT] <subcommand> [args]\n\nxl full list of subcommands:\n\n${lines.join('')}`;
  }
  const command = findCommand(commands, word);
  if (command === undefined) return `command "${word}" not implemented\n`;
  const flags = (command.modifies ? 'f' : '') + (command.canDryRun ? 'N' : '');
  const usage = `Usage: xl [-vtT${flags}] ${command.name} ${command.usage}\n\n${command.summary}.\n\n`;
  return command.options === '' ? usage : `${usage}Options:\n\n${command.options}\n`;
}
