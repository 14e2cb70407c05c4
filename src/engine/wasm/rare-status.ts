/** What an instruction written in TypeScript answers, beside the ExitKinds of engine.ts, which make the engine leave. */

/** The next instruction. rip is ignored. */
export const NEXT = -1;
/** Where rip says. */
export const JUMP = -2;
