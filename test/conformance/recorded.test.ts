/** Each engine against recorded answers of a real CPU: a part of the directed cases, on any machine. */

import { readFileSync } from 'node:fs';
import { brotliDecompressSync } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { describeSlot, firstDifference } from './compare.ts';
import { DirectedCases } from './directed-cases.ts';
import { Result, runBatch } from './machine.ts';
import { comparedForms } from './random-cases.ts';
import { RECORDED, RecordReader, readBatch } from './recorded.ts';
import { CANDIDATES, noRealCpu } from './subjects.ts';

const SHOWN_MAX = 10;

describe.each(CANDIDATES)('$name', ({ create, cost }) => {
  test('as recorded', () => {
    const reader = new RecordReader(brotliDecompressSync(readFileSync(RECORDED)));
    const pvm = (reader.u32() & 1) !== 0;
    const stride = reader.u32();
    const batches = reader.u32();
    const cases = new DirectedCases(comparedForms(pvm), stride);
    const results = [new Result(), new Result()] as const;
    const subject = create();
    const found: string[] = [];
    let count = 0;
    for (let n = 0; n < batches && found.length < SHOWN_MAX; n++) {
      expect(cases.next(), 'fewer cases than were recorded: node test/conformance/record.ts').toBe(true);
      const known = readBatch(reader, cases, results[1]);
      expect(known, 'recorded for other cases: node test/conformance/record.ts').toBe(true);
      if (results[1].failure !== '' || n % cost !== 0) continue;
      const { batch } = cases;
      runBatch(subject, batch, batch.slots, batch.data, results[0]);
      count += batch.slots.length;
      const slot = firstDifference(cases, batch.slots, results[0], results[1]);
      if (slot !== -1) found.push(describeSlot(cases, slot, batch.data, [subject.name, 'recorded'], results));
    }
    subject.close();
    const skipped =
      noRealCpu() === undefined ? '' : `; every ${stride}th of the directed cases, no random ones: no real CPU here`;
    console.log(`${subject.name}: ${count} recorded cases${skipped}`);
    expect(found.join('\n\n')).toBe('');
  });
});
