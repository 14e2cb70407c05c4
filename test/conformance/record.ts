/** Makes recorded.bin: `node test/conformance/record.ts`. Takes as many of the directed cases as fit. */

import { writeFileSync } from 'node:fs';
import { brotliCompressSync, constants } from 'node:zlib';
import { firstDifference } from './compare.ts';
import { DirectedCases } from './directed-cases.ts';
import { isStray, Result, runBatch, type Subject } from './machine.ts';
import { comparedForms } from './random-cases.ts';
import { RECORDED, RecordWriter, writeBatch } from './recorded.ts';
import { createRealCpu } from './subjects.ts';

const BYTES_MAX = 400 * 1024;
const STRIDE_FIRST = 4;
/** Answers must be the same so many times. */
const RUNS = 3;

function record(real: Subject, pvm: boolean, stride: number): { bytes: Uint8Array; cases: number } {
  const cases = new DirectedCases(comparedForms(pvm), stride);
  const out = new RecordWriter();
  const results = [new Result(), new Result()] as const;
  let count = 0;
  let batches = 0;
  while (cases.next()) {
    const { batch } = cases;
    count += batch.slots.length;
    batches++;
    // The first touch of a page may be emulated by PVM: twice the same is an answer.
    let same = 0;
    for (let n = 0; same < RUNS; n++) {
      runBatch(real, batch, batch.slots, batch.data, results[n & 1]);
      if (isStray(results[n & 1])) break;
      if (results[n & 1].failure !== '') throw new Error(results[n & 1].failure);
      same = n > 0 && firstDifference(cases, batch.slots, results[0], results[1]) === -1 ? same + 1 : 1;
    }
    writeBatch(out, cases, results[0]);
  }
  const head = new RecordWriter();
  head.u32(pvm ? 1 : 0);
  head.u32(stride);
  head.u32(batches);
  const params = { [constants.BROTLI_PARAM_QUALITY]: 11, [constants.BROTLI_PARAM_LGWIN]: 22 };
  const bytes = brotliCompressSync(Buffer.concat([head.bytes, out.bytes]), { params });
  return { bytes, cases: count };
}

const real = createRealCpu();
for (let stride = STRIDE_FIRST; ; stride++) {
  const { bytes, cases } = record(real, real.pvm, stride);
  console.log(`every ${stride}th: ${cases} cases, ${bytes.length} bytes`);
  if (bytes.length > BYTES_MAX) continue;
  writeFileSync(RECORDED, bytes);
  break;
}
real.close();
