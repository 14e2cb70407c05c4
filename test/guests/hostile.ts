/**
 * What the tests of hostile guests share. Such a guest is a small program that does what no kernel does. Whatever it tries, the domain
 * gets Xen's errno, its own exception or its end; `runHostile()` checks that the hypervisor lives on, lets go of every thread and
 * file, and runs the next domain. Programs that do what only Linux does not (test/abi) run the same way.
 */

import { beforeEach, describe } from 'vitest';
import type { EngineKind } from '../../src/host/engines.ts';
import { ENGINES, whyUnusable } from './engines.ts';
import { Program } from './program.ts';
import { type ProgramOptions, type ProgramRun, runHostile } from './run.ts';

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

/** A hostile program's run on one engine. */
export type Run = (program: Program, options?: ProgramOptions) => Promise<ProgramRun>;

/** `describe()` for each engine: its tests are skipped where the engine cannot run. */
export function describeGuests(name: string, body: (runHostile: Run, engine: EngineKind) => void): void {
  for (const engine of ENGINES)
    describe(`${name} on ${engine}`, () => {
      beforeEach((context) => {
        const unusable = whyUnusable(engine);
        if (unusable !== null) context.skip(unusable);
      });
      body((program, options) => runHostile(engine, program, options), engine);
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
