/**
 * Random instructions, alone and in sequences, with random state on each engine and on the real CPU: no difference.
 *
 *   DOMUS_CONFORMANCE_COUNT   how many (default: a slice for the gate)
 *   DOMUS_CONFORMANCE_SEED    of the first batch; each further batch has the next. A difference names the seed of its own batch.
 *   DOMUS_CONFORMANCE_FORMS   a regular expression: only forms whose key it matches
 *   DOMUS_CONFORMANCE_ENGINE  only this one of the engines
 */

import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { FORMS } from '../../src/engine/x86/forms.ts';
import { unstable } from './compare.ts';
import type { Subject } from './machine.ts';
import { comparedForms, RandomCases } from './random-cases.ts';
import { type SeededCases, search } from './search.ts';
import { SequenceCases } from './sequence-cases.ts';
import { CANDIDATES, createRealCpu, noRealCpu } from './subjects.ts';

const COUNT = process.env['DOMUS_CONFORMANCE_COUNT'];
const COUNT_OF_GATE = 100_000;
const SEQUENCES_OF_GATE = 10_000;
const SEED = Number(process.env['DOMUS_CONFORMANCE_SEED'] ?? 1);
const ONLY = new RegExp(process.env['DOMUS_CONFORMANCE_FORMS'] ?? '');
const ENGINE = process.env['DOMUS_CONFORMANCE_ENGINE'];
const HOURS_MS = 12 * 3600_000;

const reason = noRealCpu();
let real: ReturnType<typeof createRealCpu>;

beforeAll(() => {
  if (reason === undefined) real = createRealCpu();
});

afterAll(() => real?.close());

describe.each(CANDIDATES.filter(({ name }) => ENGINE === undefined || name === ENGINE))('$name', ({ create, cost }) => {
  const wanted = COUNT === undefined ? COUNT_OF_GATE / cost : Number(COUNT);
  let subject: Subject;
  beforeAll(() => {
    if (reason === undefined) subject = create();
  });
  afterAll(() => subject?.close());

  const compare = (cases: (forms: readonly number[]) => SeededCases, wanted: number): void => {
    const forms = comparedForms(real.pvm).filter((form) => ONLY.test(FORMS[form].key));
    const { count, differences } = search(subject, real, cases(forms), SEED, wanted);
    console.log(`${subject.name}: ${count} random instructions, ${unstable.count} batches repeated`);
    expect(differences.join('\n\n')).toBe('');
  };

  test(`${wanted} random instructions from seed ${SEED}`, { timeout: HOURS_MS }, (context) => {
    if (reason !== undefined) context.skip(reason);
    compare((forms) => new RandomCases(forms), wanted);
  });

  test('sequences of random instructions', { timeout: HOURS_MS }, (context) => {
    if (reason !== undefined) context.skip(reason);
    compare((forms) => new SequenceCases(forms), Number(COUNT ?? SEQUENCES_OF_GATE));
  });
});
