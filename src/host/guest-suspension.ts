/**
 * Has a guest suspend itself before it is saved, as libxl does: by control/shutdown. Linux freezes its programs, stops its clocks and calls SCHEDOP_shutdown;
 * when it goes on, wherever and whenever that is, it sets its wall clock anew. A guest that does not offer it is not asked, and one that does not do it in
 * time is saved between two instructions, as if it had not been asked.
 *
 * Source: docs/misc/xenstore-paths.pandoc, control/shutdown and control/feature-suspend; tools/libs/light/libxl_dom_suspend.c (behaviour).
 */

import { setTimeout as sleep } from 'node:timers/promises';
import type { Domain } from '../hypervisor/domain.ts';
import { isSuspended } from '../hypervisor/domain-state.ts';
import { asksForSuspend, offersSuspend, takeBackShutdown } from '../toolstack/domain-control.ts';
import { NotSavable } from '../toolstack/saved/saved-state.ts';
import type { XenstoreClient } from '../xenstore/client.ts';

/** How long a guest may take to take the request, and then to do what it says. Linux gives its programs 20 s to be frozen, or goes on without. */
const TAKE_LIMIT_MS = 10_000;
const SUSPEND_LIMIT_MS = 60_000;
/** How often the domain's state is looked at, and, in as many looks, the node. */
const POLL_MS = 2;
const LOOKS_PER_READ = 25;

export interface GuestSuspensionOptions {
  readonly domain: Domain;
  readonly store: XenstoreClient;
  /** It is being destroyed. */
  readonly isEnding: () => boolean;
  readonly takeLimitMs?: number;
  readonly suspendLimitMs?: number;
}

export class GuestSuspension {
  readonly #options: GuestSuspensionOptions;
  #remark: string | null = null;

  constructor(options: GuestSuspensionOptions) {
    this.#options = options;
  }

  /** One line about a guest that has been asked in vain; null if there is nothing to say. */
  get remark(): string | null {
    return this.#remark;
  }

  /**
   * Resolves when the guest has suspended itself, with true, or with false when that is not to be. `isUnwanted`: it is to be paused, and cannot do what it is asked.
   * @throws NotSavable when the domain has shut down instead, or does not end what it has begun
   */
  async ask(isUnwanted: () => boolean): Promise<boolean> {
    const { domain, store, isEnding, takeLimitMs = TAKE_LIMIT_MS, suspendLimitMs = SUSPEND_LIMIT_MS } = this.#options;
    const { domid } = domain;
    if (!(await offersSuspend(store, domid))) return false;
    const before = await asksForSuspend(store, domid);
    if (before !== null) return this.#inVain(`it has not taken an earlier request: ${before}`);
    const startMs = performance.now();
    for (let look = 1; ; look++) {
      if (domain.shutdownReason !== -1 || isEnding()) throw new NotSavable('the domain has shut down meanwhile');
      if (isSuspended(domain)) return true;
      await sleep(POLL_MS);
      if (look % LOOKS_PER_READ !== 0) continue;
      const ms = performance.now() - startMs;
      // While it has not been taken, nothing has begun.
      if (ms > takeLimitMs || isUnwanted()) {
        const found = await takeBackShutdown(store, domid, 'suspend');
        if (found === 'suspend')
          return isUnwanted() ? false : this.#inVain(`it did not answer within ${takeLimitMs / 1000} s`);
        if (found !== '') return this.#inVain(`it was asked for something else meanwhile: ${found}`);
      }
      // It may do so yet, when nobody waits for it any more.
      if (ms > suspendLimitMs)
        throw new NotSavable(
          `the guest has begun to suspend itself, and has not done so within ${suspendLimitMs / 1000} s; when it has, xl resume ${domid}`,
        );
    }
  }

  #inVain(why: string): false {
    this.#remark = `saved without the guest's help, so its clock will be late: ${why}`;
    return false;
  }
}
