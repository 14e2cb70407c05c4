/**
 * `xl suspend` and `xl resume`: the guest is asked to suspend itself, and goes on as from a suspend that was cancelled.
 * Source: xl(1); tools/libs/light/libxl_dom_suspend.c (behaviour).
 */

import { setTimeout as sleep } from 'node:timers/promises';
import { SHUTDOWN_suspend } from '../../abi/xen.ts';
import { domainStateOf, resumeDomain } from '../../host/domain-client.ts';
import { requestShutdown } from '../../toolstack/domain-control.ts';
import type { XenstoreClient } from '../../xenstore/client.ts';
import { type Command, type Context, readWords } from './command.ts';
import { CommandError, findDomain, withStore } from './domains.ts';

/** How long a guest may take. Source: libxl_dom_suspend.c, 60 s to take the request and 60 s to be suspended. */
const LIMIT_MS = 60_000;
const POLL_MS = 50;

export const suspend = command('suspend', 'Suspend a domain to RAM', async (store, domid) => {
  await requestShutdown(store, domid, 'suspend');
  const endMs = performance.now() + LIMIT_MS;
  for (;;) {
    const state = await domainStateOf(domid);
    if (state === null || (state.shutdownReason !== -1 && state.shutdownReason !== SHUTDOWN_suspend))
      throw new CommandError(`libxl: error: Domain ${domid}:guest did not suspend, domain has shut down`);
    if (state.shutdownReason === SHUTDOWN_suspend) return;
    if (performance.now() > endMs)
      throw new CommandError(`libxl: error: Domain ${domid}:guest did not suspend, timed out`);
    await sleep(POLL_MS);
  }
});

export const resume = command('resume', 'Resume a domain from RAM', async (_store, domid) => {
  if (!(await resumeDomain(domid)))
    throw new CommandError(`libxl: error: Domain ${domid}:Failed to resume domain: No such process`);
});

type Act = (store: XenstoreClient, domid: number) => Promise<void>;

function command(name: string, summary: string, act: Act): Command {
  const made: Command = {
    name,
    modifies: true,
    canDryRun: false,
    summary,
    usage: '<Domain>',
    options: '',
    async run(words: readonly string[], context: Context) {
      const parsed = readWords(made, words, { letters: '' }, 1, context);
      if (typeof parsed === 'number') return parsed;
      return await withStore(context, async (store) => {
        const { domid } = await findDomain(store, parsed.operands[0]);
        if (domid === 0) throw new CommandError(`libxl: error: Domain 0:Failed to ${name} domain: Invalid argument`);
        await act(store, domid);
        return 0;
      });
    },
  };
  return made;
}
