/**
 * `xl shutdown` and `xl reboot`: ask the guest's kernel through xenstore; -w waits until it has done it.
 * Source: xl(1); tools/xl/xl_vmcontrol.c (read for behaviour); recorded output of xl 4.17.
 */

import { waitForShutdown } from '../../host/domain-client.ts';
import { requestShutdown } from '../../toolstack/domain-control.ts';
import { type Command, type Context, readWords } from './command.ts';
import { allDomains, CommandError, domidOf, withStore } from './domains.ts';

const LONG = [
  { name: 'all', takesValue: false, key: 'a' },
  { name: 'wait', takesValue: false, key: 'w' },
];

export const shutdown = shutdownCommand('shutdown', 'Issue a shutdown signal to a domain', 'Shutting down domain', [
  '-a, --all               Shutdown all guest domains.',
  '-h                      Print this help.',
  '-F                      Fallback to ACPI power event for HVM guests with',
  '                        no PV drivers.',
  '-w, --wait              Wait for guest(s) to shutdown.',
]);

export const reboot = shutdownCommand('reboot', 'Issue a reboot signal to a domain', 'Rebooting domain', [
  '-a, --all               Shutdown all guest domains.',
  '-h                      Print this help.',
  '-F                      Fallback to ACPI reset event for HVM guests with',
  '                        no PV drivers.',
  '-w, --wait              Wait for guest(s) to reboot.',
]);

function shutdownCommand(
  name: 'shutdown' | 'reboot',
  summary: string,
  announcement: string,
  options: readonly string[],
): Command {
  const command: Command = {
    name,
    modifies: true,
    canDryRun: false,
    summary,
    usage: '[options] <-a|Domain>',
    options: `${options.join('\n')}\n`,
    async run(words, context) {
      const parsed = readWords(command, words, { letters: 'awF', long: LONG }, 0, context);
      if (typeof parsed === 'number') return parsed;
      const given = new Set(parsed.options.map(({ key }) => key));
      const [word] = parsed.operands;
      if (word === undefined && !given.has('a')) {
        context.err('You must specify -a or a domain id.\n');
        return 1;
      }
      return await withStore(context, async (store) => {
        const domids = given.has('a')
          ? (await allDomains(store)).map(({ domid }) => domid).filter((domid) => domid !== 0)
          : [await domidOf(store, word)];
        const waiting: Promise<void>[] = [];
        for (const domid of domids) {
          context.err(`${announcement} ${domid}`);
          if (domid === 0) throw new CommandError(`${name} failed (rc=-3)`);
          // Asked first: a guest may be quick.
          if (given.has('w')) waiting.push(tellEnd(domid, context));
          await requestShutdown(store, domid, name === 'shutdown' ? 'poweroff' : 'reboot');
        }
        if (!given.has('w')) return 0;
        context.err(`Waiting for ${domids.length} domains`);
        await Promise.all(waiting);
        return 0;
      });
    },
  };
  return command;
}

async function tellEnd(domid: number, context: Context): Promise<void> {
  const reason = await waitForShutdown(domid);
  context.err(
    reason === null
      ? `Domain ${domid} has been destroyed`
      : `Domain ${domid} has been shut down, reason code ${reason}`,
  );
}
