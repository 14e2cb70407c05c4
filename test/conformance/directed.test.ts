/**
 * Every form of FORMS that user code may use, on each engine and on the real CPU: no difference. The gate runs a part, the smaller the
 * longer an engine takes; DOMUS_CONFORMANCE_ALL=1 runs all.
 */

import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { FORMS } from '../../src/engine/x86/forms.ts';
import { compareBatch, unstable } from './compare.ts';
import { DirectedCases } from './directed-cases.ts';
import { Result, type Subject } from './machine.ts';
import { comparedForms } from './random-cases.ts';
import { areas, images, softwareInterrupts } from './recipes-special.ts';
import { CANDIDATES, createRealCpu, noRealCpu } from './subjects.ts';

const reason = noRealCpu();
/** Differences that are reported; more would be the same again. */
const SHOWN_MAX = 10;
/** Other cases than those that are recorded. */
const STRIDE_OF_GATE = 3;
const MINUTES_MS = 20 * 60_000;

let real: ReturnType<typeof createRealCpu>;
const results = [new Result(), new Result()] as const;

beforeAll(() => {
  if (reason === undefined) real = createRealCpu();
});

afterAll(() => real?.close());

/** Compares all batches; returns what differs, in words. */
function differences(subject: Subject, cases: DirectedCases): string[] {
  const found = new Map<string, string>();
  let count = 0;
  while (cases.next()) {
    count += cases.batch.slots.length;
    const difference = compareBatch(subject, real, cases, results);
    if (difference !== null) found.set(`${difference.form} ${difference.parts}`, difference.text);
    if (found.size === SHOWN_MAX) break;
  }
  console.log(`${subject.name}: ${count} directed cases, ${unstable.count} batches repeated`);
  return [...found.values()];
}

describe.each(CANDIDATES)('$name', ({ create, cost }) => {
  const stride = process.env['DOMUS_CONFORMANCE_ALL'] === undefined ? STRIDE_OF_GATE * cost : 1;
  let subject: Subject;
  beforeAll(() => {
    if (reason === undefined) subject = create();
  });
  afterAll(() => subject?.close());

  test('every form', { timeout: MINUTES_MS }, (context) => {
    if (reason !== undefined) context.skip(reason);
    const forms = comparedForms(real.pvm);
    const cases = new DirectedCases(forms, stride);
    expect(differences(subject, cases).join('\n\n')).toBe('');
    if (stride > 1) return;
    const without = forms.filter((form) => cases.counts[form] === 0).map((form) => FORMS[form].key);
    expect(without, 'forms without a case').toEqual([]);
  });

  test('images of the x87 and vector state in memory', (context) => {
    if (reason !== undefined) context.skip(reason);
    expect(differences(subject, new DirectedCases([], 1, images())).join('\n\n')).toBe('');
  });

  test('XSAVE areas', (context) => {
    if (reason !== undefined) context.skip(reason);
    expect(differences(subject, new DirectedCases([], 1, areas())).join('\n\n')).toBe('');
  });

  test('INT n of the gates that user code may use', (context) => {
    if (reason !== undefined) context.skip(reason);
    expect(differences(subject, new DirectedCases([], 1, softwareInterrupts())).join('\n\n')).toBe('');
  });
});
