/**
 * What the tests of hostile guests share. Such a guest is a small program that does what no kernel does. Whatever it tries, the domain
 * gets Xen's errno, its own exception or its end; `runHostile()` checks that the hypervisor lives on, lets go of every thread and
 * file, and runs the next domain.
 */

import { beforeAll, beforeEach } from 'vitest';
import { type KvmProbe, probeKvm } from '../../src/engine/kvm/self-test.ts';
import { Program } from './program.ts';
import { forgetHeld } from './run.ts';

export const EPERM = -1n;
export const ESRCH = -3n;
export const EFAULT = -14n;
export const EINVAL = -22n;

export const NON_CANONICAL = 0x0000_8000_0000_0000n;
/** In the slots of Xen. */
export const HOLE = 0xffff_8100_0000_0000n;
export const UNMAPPED = 0x1000n;

/** What `finish()` reports. */
export const DONE = 0xd09en;

let probe: KvmProbe | undefined;

/** To be called at the top of each file of hostile guests: skips its tests where there is no KVM. */
export function useHostileGuests(): void {
  beforeAll(forgetHeld);
  beforeEach((context) => {
    probe ??= probeKvm();
    if (!probe.usable) context.skip(probe.reason);
  });
}

/** A program with exception handlers. */
export function withTraps(): Program {
  const p = new Program();
  p.installTraps();
  return p;
}

/** Reports that it came this far, and powers off. */
export function finish(p: Program): void {
  p.movImm('rax', DONE);
  p.report();
  p.shutdown();
}
