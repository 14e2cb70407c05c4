/** A guest of 16 MB that counts on its console: a line of 16 hexadecimal digits every 100 ms, from 0 on. Its command line must have `earlyprintk=xen`. */

import { H, Program } from './program.ts';

const BEAT_NS = 100_000_000;
const SCHEDOP_poll = 3;

export function heartbeat(): Program {
  const program = new Program();
  const poll = program.words([program.page(), 0, 0]);
  program.movImm('r12', 0);
  program.label('beat');
  program.mov('rax', 'r12');
  program.report();
  program.alu('add', 'r12', 1);
  // System time is 0 at the start of the domain.
  program.movImm('rbx', poll);
  program.load('rax', 'rbx', 16);
  program.alu('add', 'rax', BEAT_NS);
  program.store('rbx', 16, 'rax');
  program.hypercall(H.sched_op, SCHEDOP_poll, poll);
  program.jmp('beat');
  return program;
}

/** The last count in what it has written, and whether it counted on without a gap from `from`; null if there is none. */
export function lastBeat(console: string, from = -1): { readonly beat: number; readonly isWhole: boolean } | null {
  const beats = [...console.matchAll(/^([0-9a-f]{16})\r?$/gm)].map((match) => Number.parseInt(match[1], 16));
  if (beats.length === 0) return null;
  const start = from < 0 ? 0 : beats.lastIndexOf(from);
  const since = beats.slice(start);
  return { beat: beats[beats.length - 1], isWhole: start >= 0 && since.every((beat, i) => beat === since[0] + i) };
}
