/** Floating point with VEX: arithmetic, comparisons, conversions; strings. Source: Intel SDM vol. 2, the page of each mnemonic. */

import * as operations from '../../x86/sse-operations.ts';
import { operationNumber } from '../../x86/sse-operations.ts';
import { i32, type Node } from '../nodes.ts';
import {
  clearingUpper,
  readHalves,
  wholeOf,
  wholeOfImmediate,
  wholeOfOne,
  withVex,
  writeHalves,
} from './avx-common.ts';
import type { Meaning } from './common.ts';
import { highHalf, immediateByte, joinLow, mapTo, type WholeUnary, ZERO_VECTOR } from './sse-common.ts';
import { SSE_CONTROL } from './sse-control.ts';
import {
  APPROXIMATE,
  CONVERT,
  CONVERT_SCALAR,
  NARROW,
  ROUND,
  scalarFromInteger,
  TO_INTEGER,
  WIDEN_FLOAT,
} from './sse-convert.ts';
import { FLOAT, FLOAT_BY_IMMEDIATE, FLOAT_FLAGS } from './sse-float.ts';
import { SHAPE_PS, SHAPE_SD, SHAPE_SS } from './sse-lanes.ts';
import { SSE_STRINGS } from './sse-strings.ts';

/** Results in the low end of each half, of two halves together. */
const narrow =
  (compute: WholeUnary): Meaning =>
  (cpu) => {
    const [low, high] = compute(readHalves(cpu, 1), cpu);
    writeHalves(cpu, 0, [high === undefined ? low : joinLow(low, high)]);
  };

/** The source's low half, or its two halves one by one. */
const widen =
  (compute: WholeUnary): Meaning =>
  (cpu) => {
    const [source] = readHalves(cpu, 1);
    const destination = cpu.operands[0];
    const isWide = destination.kind === 'xmm' && destination.size === 32;
    writeHalves(cpu, 0, compute(isWide ? [source, cpu.f.let(highHalf(source))] : [source], cpu));
  };

const halfOperation = (operation: number): Node => i32.const(operationNumber(operation, SHAPE_PS.number));

/** VCVTPH2PS: the low, and for YMM registers the high, four words. Always by the slow path. */
const fromHalves: WholeUnary = (source, cpu) => cpu.exactVectors(halfOperation(operations.FROM_HALF), source, source);

/** VCVTPS2PH: four words of each half. */
const toHalves: Meaning = (cpu) => {
  const source = readHalves(cpu, 1);
  const immediate = i32.and(immediateByte(cpu, 2), i32.const(7));
  const operation = i32.or(halfOperation(operations.TO_HALF), i32.shl(immediate, i32.const(16)));
  if (cpu.operands[0].kind === 'memory') {
    // A page fault comes before the exceptions of the conversion.
    cpu.translate(cpu.address(0), cpu.operands[0].size, 'write');
  }
  const [low, high] = cpu.exactVectors(operation, source, source);
  writeHalves(cpu, 0, [high === undefined ? low : joinLow(low, high)]);
};

/** PCMPESTRM, PCMPISTRM: the result is in XMM0. */
const intoXmm0 =
  (meaning: Meaning): Meaning =>
  (cpu) => {
    meaning(cpu);
    cpu.setUpper(0, ZERO_VECTOR);
  };

export const AVX_FLOAT: Readonly<Record<string, Meaning>> = withVex({
  ...mapTo({ ...FLOAT, ...CONVERT_SCALAR, ...APPROXIMATE }, wholeOf),
  ...mapTo({ ...FLOAT_BY_IMMEDIATE, ...ROUND }, wholeOfImmediate),
  ...mapTo(CONVERT, wholeOfOne),
  ...mapTo(NARROW, narrow),
  ...mapTo(WIDEN_FLOAT, widen),
  cvtph2ps: widen(fromHalves),
  cvtps2ph: toHalves,
  ...FLOAT_FLAGS,
  ...TO_INTEGER,
  cvtsi2ss: clearingUpper(scalarFromInteger(SHAPE_SS, 2)),
  cvtsi2sd: clearingUpper(scalarFromInteger(SHAPE_SD, 2)),
  ...SSE_CONTROL,
  pcmpestri: SSE_STRINGS['pcmpestri'],
  pcmpistri: SSE_STRINGS['pcmpistri'],
  pcmpestrm: intoXmm0(SSE_STRINGS['pcmpestrm']),
  pcmpistrm: intoXmm0(SSE_STRINGS['pcmpistrm']),
});
