/**
 * Random instructions by the million, outside of the test runner, which makes them five times slower:
 *
 *   node test/conformance/long-run.ts --engine=wasm-translated --count=10000000 --seed=1
 *
 * `--sequences`: several instructions a case; `--alignment`: half of the cases have RFLAGS.AC set; `--forms`: a regular expression.
 *
 * Compares as random.test.ts does, says every minute how far it is, ends with 1 if anything differs.
 */

import { parseArgs } from 'node:util';
import { FORMS } from '../../src/engine/x86/forms.ts';
import { unstable } from './compare.ts';
import { comparedForms, RandomCases } from './random-cases.ts';
import { search } from './search.ts';
import { SequenceCases } from './sequence-cases.ts';
import { CANDIDATES, createRealCpu, noRealCpu } from './subjects.ts';

const MINUTE_MS = 60_000;

const { values } = parseArgs({
  options: {
    engine: { type: 'string', default: 'wasm-translated' },
    count: { type: 'string', default: '10000000' },
    seed: { type: 'string', default: '1' },
    forms: { type: 'string', default: '' },
    sequences: { type: 'boolean', default: false },
    alignment: { type: 'boolean', default: false },
  },
});

const reason = noRealCpu();
if (reason !== undefined) throw new Error(reason);
const candidate = CANDIDATES.find(({ name }) => name === values.engine);
if (candidate === undefined)
  throw new Error(
    `--engine: expected one of ${CANDIDATES.map(({ name }) => name).join(', ')}, found "${values.engine}"`,
  );
const only = new RegExp(values.forms);
const real = createRealCpu();
const subject = candidate.create();
const forms = comparedForms(real.pvm).filter((form) => only.test(FORMS[form].key));
const cases = values.sequences ? new SequenceCases(forms) : new RandomCases(forms);
cases.checksAlignment = values.alignment;
const start = performance.now();
let said = start;
const { count, nextSeed, differences } = search(
  subject,
  real,
  cases,
  Number(values.seed),
  Number(values.count),
  (soFar, seed, difference) => {
    if (difference !== null) console.log(`\n${difference}\n`);
    const now = performance.now();
    if (now - said < MINUTE_MS) return;
    said = now;
    console.log(`${soFar} instructions, next seed ${seed}, ${Math.round((soFar / (now - start)) * 1000)} a second`);
  },
);
console.log(
  `${subject.name}: ${count} random instructions of ${forms.length} forms, seeds ${values.seed} to ${nextSeed - 1}, ` +
    `${unstable.count} batches repeated, ${Math.round((performance.now() - start) / 1000)} s: ${differences.length} differences`,
);
subject.close();
real.close();
process.exitCode = differences.length === 0 ? 0 : 1;
