/** Commands of xl that are known, and not there yet. They check nothing: whatever is asked, they do not do it. */

import type { Command } from './command.ts';

export const save = command(
  'save',
  'Save a domain state to restore later',
  '[options] <Domain> <CheckpointFile> [<ConfigFile>]',
);
export const migrate = command('migrate', 'Migrate a domain to another host', '[options] <Domain> <host>');
export const restore = command(
  'restore',
  'Restore a domain from a saved state',
  '[options] [<ConfigFile>] <CheckpointFile>',
);
export const dumpCore = command('dump-core', 'Core dump a domain', '<Domain> <filename>');
export const suspend = command('suspend', 'Suspend a domain to RAM', '<Domain>');
export const resume = command('resume', 'Resume a domain from RAM', '<Domain>');

function command(name: string, summary: string, usage: string): Command {
  return {
    name,
    modifies: true,
    canDryRun: false,
    summary,
    usage,
    options: '',
    run: async (words, context) => {
      if (words.includes('-h') || words.includes('--help')) {
        context.help(name);
        return 0;
      }
      context.err(`xl: \`${name}' is not built yet`);
      return 1;
    },
  };
}
