/** Commands of xl that are known, and not there yet. They check nothing: whatever is asked, they do not do it. */

import type { Command } from './command.ts';

export const migrate = command('migrate', 'Migrate a domain to another host', '[options] <Domain> <host>', [
  '-h              Print this help.',
  '-C <config>     Send <config> instead of config file from creation.',
  '-s <sshcommand> Use <sshcommand> instead of ssh.  String will be passed',
  '                to sh. If empty, run <host> instead of ssh <host> xl',
  '                migrate-receive [-d -e]',
  '-e              Do not wait in the background (on <host>) for the death',
  '                of the domain.',
  '--debug         Print huge (!) amount of debug during the migration process.',
  '-p              Do not unpause domain after migrating it.',
  '-D              Preserve the domain id',
]);

function command(name: string, summary: string, usage: string, options: readonly string[] = []): Command {
  return {
    name,
    modifies: true,
    canDryRun: false,
    summary,
    usage,
    options: options.join('\n'),
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
