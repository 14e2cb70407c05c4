/**
 * What MMX instructions do to the x87 state that their registers are part of. Source: Intel SDM vol. 1, 9.6.2; vol. 3, 12.2.
 */

import { ES, X87_STATE } from '../../x86/x87/state.ts';
import type { Cpu } from '../cpu.ts';
import { STATE } from '../layout.ts';
import { i32 } from '../nodes.ts';

const MF = 16;
/** FCW and FSW, and what begins with FTW, as words. */
const CONTROL_AND_STATUS = STATE.x87 + X87_STATE.FCW;
const TAGS = STATE.x87 + X87_STATE.FTW;
const TOP_MASK = 0x3800;

/** First of all: #NM, and the #MF that an x87 instruction left behind. */
export function requireMmx(cpu: Cpu): void {
  cpu.requireVectors();
  const pending = i32.and(cpu.state(CONTROL_AND_STATUS, 4), i32.const(ES << 16));
  cpu.f.if(pending, () => cpu.raise(MF));
}

function setStack(cpu: Cpu, tags: number): void {
  cpu.setState(CONTROL_AND_STATUS, 4, i32.and(cpu.state(CONTROL_AND_STATUS, 4), i32.const(~(TOP_MASK << 16))));
  cpu.setState(TAGS, 4, i32.or(i32.and(cpu.state(TAGS, 4), i32.const(~0xff)), i32.const(tags)));
}

/** When memory can fault no more: TOP = 0, and all registers are in use. */
export const enterMmx = (cpu: Cpu): void => setStack(cpu, 0xff);

/** EMMS: TOP = 0, and none is. */
export const leaveMmx = (cpu: Cpu): void => setStack(cpu, 0);
