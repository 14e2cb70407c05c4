/**
 * Which exception an access to a non-canonical address is: #SS(0) if it goes by SS, else #GP(0).
 *
 * SS is the segment of pushes and pops, and of operands whose base is RSP or RBP unless FS or GS overrides it. The page walk does not
 * know; so it is looked up when the exception leaves the engine, by decoding the instruction again. Source: Intel SDM vol. 1, 3.3.7.1.
 */

import { FORMS } from '../x86/forms.ts';
import type { Processor } from './processor.ts';
import { stem } from './semantics/table.ts';

const RSP = 4;
const RBP = 5;
/** Bytes behind its address that an operand has at most, but for bit strings. */
const OPERAND_MAX = 512;

const PUSHES_OR_POPS = Uint8Array.from(FORMS, (form) =>
  ['push', 'pop', 'pushf', 'popf', 'call', 'ret', 'retf', 'iret', 'enter', 'leave'].includes(stem(form)) ? 1 : 0,
);

/** These look at the alignment of their operand first: #GP(0) wherever it is. Measured on an AMD CPU. */
const AREA_ALIGNMENT = 64;
const TAKES_AREA = Uint8Array.from(FORMS, (form) =>
  ['xsave', 'xsaveopt', 'xsavec', 'xrstor'].includes(stem(form)) ? 1 : 0,
);

const isCanonical = (hi: number): boolean => hi >>> 15 === 0 || hi >>> 15 === 0x1ffff;

/** After #GP(0): whether the instruction at rip met a non-canonical address of the stack. `lo`: low word of the address, -1 = unknown. */
export function isStackFault(p: Processor, lo: number): boolean {
  const i = p.instruction;
  if (!p.decode() || FORMS[i.form].privilege !== 'none') return false;
  const hasOperand = i.mod !== 3;
  if (hasOperand) p.effective();
  if (TAKES_AREA[i.form] !== 0 && (p.lo & (AREA_ALIGNMENT - 1)) !== 0) return false;
  if (lo >= 0 && PUSHES_OR_POPS[i.form] !== 0 && (!hasOperand || (lo - p.lo) >>> 0 >= OPERAND_MAX)) return true;
  return hasOperand && (i.base === RSP || i.base === RBP) && i.segment < 4 && (lo >= 0 || !isCanonical(p.hi));
}
