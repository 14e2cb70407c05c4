/**
 * The forced-emulation CPUID of a PV guest: UD2, the letters "xen", CPUID. A PV kernel uses it because a plain CPUID may be answered
 * by the CPU itself; it is how Linux finds out that it runs on Xen. Source: xen/include/public/arch-x86/xen.h, XEN_CPUID.
 */

import { RAX, RBX, RCX, RDX } from '../machine/vcpu-block.ts';
import { cpuidPolicy } from './cpuid-policy.ts';
import { fetchInstruction, finishInstruction, gpr, instruction, setRegister } from './instruction.ts';
import type { Vcpu } from './vcpu.ts';

/** ud2; "xen"; cpuid */
const FORCED_CPUID = [0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2] as const;

/** Called on #UD. True: it was the forced CPUID, and it is done. False: the guest gets its #UD. */
export function emulateForcedCpuid(v: Vcpu): boolean {
  if (!fetchInstruction(v) || instruction.fetched < FORCED_CPUID.length) return false;
  for (let i = 0; i < FORCED_CPUID.length; i++) if (instruction.bytes[i] !== FORCED_CPUID[i]) return false;
  instruction.length = FORCED_CPUID.length;
  executeCpuid(v, true);
  return true;
}

/** CPUID from and to the vCPU's registers; rip goes behind it. `forced`: by the prefix above. */
export function executeCpuid(v: Vcpu, forced: boolean): void {
  const u32 = v.block.u32;
  const result = cpuidPolicy(v, u32[gpr(RAX)], u32[gpr(RCX)], forced && !v.inUserMode);
  setRegister(v, RAX, 4, result.eax, 0);
  setRegister(v, RBX, 4, result.ebx, 0);
  setRegister(v, RCX, 4, result.ecx, 0);
  setRegister(v, RDX, 4, result.edx, 0);
  finishInstruction(v);
}
