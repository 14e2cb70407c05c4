/**
 * What engines cannot agree on, each with its reason; and which flags an instruction leaves undefined.
 *
 * Where the manuals leave something open, the wasm engine does as the CPU that it was compared with, an AMD EPYC of the Zen 4 kind
 * (RCPPS and RSQRTPS, undefined results, which of two faults comes). Another CPU will want more rows here.
 */

import { FORMS, type Form } from '../../src/engine/x86/forms.ts';
import type { Instruction } from '../../src/engine/x86/instruction.ts';

interface Exclusion {
  readonly reason: string;
  readonly applies: (form: Form, name: string) => boolean;
  /** Only where KVM has no hardware virtualisation (kvm-vcpu.ts). */
  readonly pvm?: true;
}

const names = (list: string): ((form: Form, name: string) => boolean) => {
  const set = new Set(list.split(' '));
  return (_form, name) => set.has(name);
};
const keys = (list: readonly string[]): ((form: Form) => boolean) => {
  const set = new Set(list);
  return (form) => set.has(form.key);
};

/** Instructions that are not compared at all. */
export const EXCLUSIONS: readonly Exclusion[] = [
  { reason: 'time', applies: names('rdtsc rdtscp') },
  { reason: 'the real CPU answers, or KVM; the wasm engine says #GP for Xen to answer', applies: names('cpuid') },
  { reason: 'UMIP is the host’s: #GP, or the host kernel’s answer', applies: names('sgdt sidt sldt str smsw') },
  { reason: 'CR4.PCE is the host’s', applies: names('rdpmc') },
  { reason: '#UD in 64-bit code on AMD CPUs; Intel’s have it', applies: names('sysenter sysexit') },
  { reason: 'AMD’s CPUs take no ModRM byte with them', applies: names('ud0 ud1') },
  { reason: 'PVM: descriptor tables at CPL 3 are the host’s', applies: names('lar lsl verr verw'), pvm: true },
  {
    reason: 'PVM: selectors that are read are the host’s',
    applies: keys(['mov RvMw,Sw', 'push FS', 'push GS']),
    pvm: true,
  },
  {
    reason: 'PVM: segments are loaded by KVM’s emulator, with other checks, error codes and order of accesses',
    applies: (form, name) =>
      ['lss', 'lfs', 'lgs', 'retf', 'iret'].includes(name) ||
      ['pop FS', 'pop GS', 'mov Sw,Ew', 'jmp Mp', 'call Mp'].includes(form.key),
    pvm: true,
  },
  {
    reason: 'PVM: its emulator has its own idea of a bad image; all cases start with good ones',
    applies: names('fxrstor'),
    pvm: true,
  },
  {
    reason: 'PVM: INT n is #UD, or a call to PVM: directed cases have those that Domus handles',
    applies: names('int'),
    pvm: true,
  },
  { reason: 'PVM takes the #DB for its own', applies: names('int1'), pvm: true },
  { reason: 'XCR0 is the host’s', applies: names('xgetbv') },
  {
    reason: 'stores FOP, FIP, FDP and MXCSR_MASK, which are each CPU’s own: directed cases mask them',
    applies: names('fxsave fnstenv fnsave xsave xsaveopt xsavec'),
  },
];

/** Why a form is not compared. `pvm`: the KVM here has no hardware virtualisation. */
export function exclusionOf(form: Form, pvm: boolean): string | undefined {
  const name = form.mnemonic.split('/')[0];
  return EXCLUSIONS.find((exclusion) => (pvm || exclusion.pvm === undefined) && exclusion.applies(form, name))?.reason;
}

const TRANSCENDENTAL = new Set('f2xm1 fyl2x fyl2xp1 fptan fpatan fsin fcos fsincos'.split(' '));

/** Of these the last bit of the results is each CPU's own, and with it C1, which says that it was rounded up. */
export const LAST_BIT_OPEN: readonly boolean[] = FORMS.map((form) => TRANSCENDENTAL.has(form.mnemonic));

/** Flags that are not compared after the instruction. `count`: the value of CL before it. */
export function undefinedFlags(i: Instruction, cl: number): number {
  const form = FORMS[i.form];
  if (!form.flagsConditional) return form.flagsUndefined;
  const last = form.operands[form.operands.length - 1];
  const count = (last === 'CL' ? cl : last === 'One' ? 1 : i.immLo) & (i.operandSize === 8 ? 63 : 31);
  if (count === 0) return 0;
  return form.flagsUndefined;
}

/** SHLD and SHRD of 16 bits by more: the result is undefined. Source: Intel SDM vol. 2, SHLD; and what depends on the vendor. */
export function isUndefined(i: Instruction, cl: number): boolean {
  const name = FORMS[i.form].mnemonic;
  // MOVSXD with 16-bit operands: AMD's CPUs read 32 bits, Intel's 16.
  if (name === 'movsxd' && i.operandSize === 2) return true;
  if (i.operandSize !== 2 || (name !== 'shld' && name !== 'shrd')) return false;
  return ((FORMS[i.form].operands[2] === 'CL' ? cl : i.immLo) & 31) > 16;
}

/** Accesses of several parts, in an order that is each CPU's own: of CR2 only the page is compared. */
export const CR2_BY_PAGE: readonly boolean[] = FORMS.map((form) =>
  /^(fxrstor|fxsave|xrstor|xsave|xsaveopt|xsavec|fldenv|fnstenv|frstor|fnsave|enter|cmpxchg8b|call|jmp|retf|iret|l[sfg]s) /.test(
    `${form.mnemonic.split('/')[0]} `,
  ),
);
