/** Batches of random instructions, one seed after the other, until there are enough of them or too many differences. */

import { compareBatch, type Prepared } from './compare.ts';
import { Result, type Subject } from './machine.ts';

/** Differences that are reported; more would be the same again. */
const SHOWN_MAX = 10;

/** Batches by their seed. */
export interface SeededCases extends Prepared {
  fill(seed: number): void;
  /** How to run the batch of a seed alone. */
  again(seed: number): string;
  /** Instructions of a case that ran. */
  executed(slot: number, result: Result): number;
}

export interface Search {
  /** Instructions that ran. */
  readonly count: number;
  /** One past the seed of the last batch. */
  readonly nextSeed: number;
  /** What differs, each with the seed that shows it again. */
  readonly differences: readonly string[];
}

/**
 * Compares an engine with the real CPU.
 *
 * @param seed of the first batch
 * @param wanted instructions at least
 * @param told is called after each batch with the instructions so far, and with what differs if it is new
 */
export function search(
  subject: Subject,
  real: Subject,
  cases: SeededCases,
  seed: number,
  wanted: number,
  told?: (count: number, nextSeed: number, difference: string | null) => void,
): Search {
  const results = [new Result(), new Result()] as const;
  const found = new Map<string, string>();
  let count = 0;
  let next = seed;
  while (count < wanted && found.size < SHOWN_MAX) {
    cases.fill(next);
    const difference = compareBatch(subject, real, cases, results);
    for (const slot of cases.batch.slots) count += cases.executed(slot, results[1]);
    let fresh: string | null = null;
    if (difference !== null) {
      const key = `${difference.form} ${difference.parts}`;
      if (!found.has(key)) {
        fresh = `${cases.again(next)}\n${difference.text}`;
        found.set(key, fresh);
      }
    }
    told?.(count, ++next, fresh);
  }
  return { count, nextSeed: next, differences: [...found.values()] };
}
