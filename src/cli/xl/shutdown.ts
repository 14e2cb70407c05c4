/**
 * `xl shutdown` and `xl reboot`: ask the guest's kernel through xenstore; -w waits until it has done it.
 * Source: xl(1); tools/xl/xl_vmcontrol.c (read for behaviour); recorded output of xl 4.17.
 */

import { requestShutdown } from '../../toolstack/domain-control.ts';
import type { XenstoreClient } from '../../xenstore/client.ts';
import { type Command, type Context, readWords } from './command.ts';
import { allDomains, CommandError, domidOf, nameOf, tryState, withStore } from './domains.ts';

const LONG = [
  { name: 'all', takesValue: false, key: 'a' },
  { name: 'wait', takesValue: false, key: 'w' },
];
/** How often a domain that stays after its end is looked at. */
const LOOK_MS = 200;

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
        // Set first: a guest may be quick.
        const ends = given.has('w') ? await watchForEnds(store) : null;
        for (const domid of domids) {
          context.err(`${announcement} ${domid}`);
          if (domid === 0) throw new CommandError(`${name} failed (rc=-3)`);
          await requestShutdown(store, domid, name === 'shutdown' ? 'poweroff' : 'reboot');
        }
        if (ends === null) return 0;
        context.err(`Waiting for ${domids.length} domains`);
        await ends.wait(domids, context);
        return 0;
      });
    },
  };
  return command;
}

interface Ends {
  wait(domids: readonly number[], context: Context): Promise<void>;
}

/** Tells when domains shut down, or are gone. */
async function watchForEnds(store: XenstoreClient): Promise<Ends> {
  let look = (): void => {};
  await store.watch('@releaseDomain', 'shutdown', () => look());
  return {
    wait: async (domids, context) => {
      const left = new Set(domids);
      /** What was seen of those that have shut down is told by their reason. */
      while (left.size > 0) {
        for (const domid of left) {
          const state = await tryState(domid);
          if (state !== null && state.shutdownReason !== -1) {
            context.err(`Domain ${domid} has been shut down, reason code ${state.shutdownReason}`);
            left.delete(domid);
          } else if (state === null && (await nameOf(store, domid)) === null) {
            context.err(`Domain ${domid} has been destroyed`);
            left.delete(domid);
          }
        }
        if (left.size === 0) return;
        await new Promise<void>((resolve) => {
          const timer = setTimeout(resolve, LOOK_MS);
          look = () => {
            clearTimeout(timer);
            resolve();
          };
        });
      }
    },
  };
}
