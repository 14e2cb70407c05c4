/** What processes of copies wait for, by the ticket that they have of who starts them. They may ask before the domain is copied, or after. */

import { NotSavable } from '../toolstack/saved/saved-state.ts';
import type { FrozenMemory } from './copied-memory.ts';
import type { ForkStart } from './domain-copies.ts';

/** How long they wait. */
const WAIT_MS = 600_000;

/** In the order in which a copy has use for them. */
export interface AwaitedFork {
  readonly start: PromiseWithResolvers<ForkStart>;
  /** Null: the state has the pages too. */
  readonly memory: PromiseWithResolvers<FrozenMemory | null>;
}

export class ForkTickets {
  readonly #awaited = new Map<string, AwaitedFork>();

  /** Whoever comes first makes it. */
  of(ticket: string): AwaitedFork {
    const known = this.#awaited.get(ticket);
    if (known !== undefined) return known;
    const awaited = {
      start: Promise.withResolvers<ForkStart>(),
      memory: Promise.withResolvers<FrozenMemory | null>(),
    };
    // There need not be anybody who waits.
    for (const { promise } of Object.values(awaited)) promise.catch(() => undefined);
    this.#awaited.set(ticket, awaited);
    setTimeout(() => {
      reject(awaited, new NotSavable('it has not been copied'));
      this.forget(ticket);
    }, WAIT_MS).unref();
    return awaited;
  }

  /** Nobody will get what has not been given yet, nor who asks for it later. */
  refuse(ticket: string, error: unknown): void {
    reject(this.of(ticket), error);
  }

  /** All have what they need. */
  forget(ticket: string): void {
    this.#awaited.delete(ticket);
  }
}

function reject({ start, memory }: AwaitedFork, error: unknown): void {
  start.reject(error);
  memory.reject(error);
}
