/** LDMXCSR and STMXCSR. Source: Intel SDM vol. 1, 10.2.3; vol. 2. */

import { STATE } from '../layout.ts';
import { i32, i64 } from '../nodes.ts';
import type { Meaning } from './common.ts';
import { vectors } from './sse-common.ts';

/** Without AMD's MM (bit 17, misaligned operands): CPUID shows no MisAlignSse. */
const MXCSR_MASK = 0xffff;

const load: Meaning = (cpu) => {
  const value = cpu.f.let(i32.wrap(cpu.read(0)));
  cpu.f.if(i32.and(value, i32.const(~MXCSR_MASK)), () => cpu.raise(13));
  cpu.setState(STATE.mxcsr, 4, value);
};

const store: Meaning = (cpu) => cpu.write(0, cpu.f.let(i64.extendI32U(cpu.state(STATE.mxcsr, 4))));

export const SSE_CONTROL: Readonly<Record<string, Meaning>> = vectors({ ldmxcsr: load, stmxcsr: store });
