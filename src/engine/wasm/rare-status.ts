/** What instructions written in TypeScript are: what they get, and what they answer beside the ExitKinds of engine.ts, which make the engine leave. */

import type { Descriptors } from './descriptors.ts';
import type { Processor } from './processor.ts';

/** The next instruction. rip is ignored. */
export const NEXT = -1;
/** Where rip says. */
export const JUMP = -2;

/** What instructions need of the engine. */
export interface RareHost {
  /** The guest's TSC, into these two words. */
  readTsc(out: Uint32Array): void;
  /** No other vCPU of the domain executes guest instructions until `startWorld()`. Addresses must be translated anew. */
  stopWorld(): void;
  startWorld(): void;
  /** A SYSCALL has been executed but for what comes of it: NEXT, JUMP, or the ExitKind to leave with. */
  systemCall(): number;
}

export type RareInstruction = (p: Processor, d: Descriptors, host: RareHost) => number;
