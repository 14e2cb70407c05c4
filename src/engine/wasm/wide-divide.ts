/** DIV and IDIV of 128 bits by 64, where the high half is not just the extension of the low: rare enough for bigint. */

import type { VcpuBlock } from '../../machine/vcpu-block.ts';
import { STATE } from './layout.ts';

/** Quotient and remainder at STATE.helper. 1 when the quotient does not fit: #DE. All arguments are signed 64-bit patterns. */
export function divideWide(block: VcpuBlock, signed: number, high: bigint, low: bigint, divisor: bigint): number {
  const dividend = (high << 64n) | BigInt.asUintN(64, low);
  const by = signed !== 0 ? divisor : BigInt.asUintN(64, divisor);
  const from = signed !== 0 ? dividend : BigInt.asUintN(128, dividend);
  const quotient = from / by;
  const fits = signed !== 0 ? BigInt.asIntN(64, quotient) === quotient : BigInt.asUintN(64, quotient) === quotient;
  if (!fits) return 1;
  block.u64[STATE.helper >> 3] = BigInt.asUintN(64, quotient);
  block.u64[(STATE.helper >> 3) + 1] = BigInt.asUintN(64, from % by);
  return 0;
}
