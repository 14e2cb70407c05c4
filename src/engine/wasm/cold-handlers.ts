/**
 * The interpreter's cold handlers: a function each, `(pc, tlb) -> reason`, made when it is needed for the first time. There are some
 * thousands, mostly of vector instructions; a boot of Debian needs a few hundred, and to make all of them takes 0.1 s.
 */

import { EXIT_EXCEPTION, EXIT_INTERRUPTED } from '../engine.ts';
import { loadFlags, newFlagLocals, storeFlags } from './flag-locals.ts';
import { computeFlags } from './flags.ts';
import { FunctionBuilder } from './function-builder.ts';
import { COLD, FIRST_COLD, type Variant } from './handlers.ts';
import { type Frame, InterpreterCpu } from './interpreter-cpu.ts';
import { MICRO_OP } from './micro-op.ts';
import { type Compilation, MEMORY_PAGES_MAX, ModuleBuilder } from './module-builder.ts';
import { I32, I64, i32, local } from './nodes.ts';

/** The table's place for the first of them. */
export const COLD_SLOT = 2;

/** What the modules import, beside `table`. */
export interface ColdEnvironment {
  readonly guest: WebAssembly.Memory;
  readonly cpu: WebAssembly.Memory;
  readonly table: WebAssembly.Table;
  readonly scratch: WebAssembly.Global;
  miss(lo: number, hi: number, request: number): number;
  commit(at: number, size: number): void;
  divide(signed: number, high: bigint, low: bigint, divisor: bigint): number;
  vector(operation: number): number;
  stop(): void;
  start(): void;
}

type ColdHandler = (microOp: number, tlb: number) => number;

/** What the rehearsal (rehearsal.ts) has made is made for the guest. */
const modules = new Map<number, WebAssembly.Module>();

export interface ColdHandlers {
  /** To stand in all places of the table that cold handlers have: makes the one that is called for. */
  readonly first: ColdHandler;
  /** Makes one before it is called; `handler`: of a micro-op. */
  prepare(handler: number): void;
}

export function createColdHandlers(environment: ColdEnvironment): ColdHandlers {
  const u16 = new Uint16Array(environment.cpu.buffer);
  const made = new Set<number>();
  const make = (number: number, compilation: Compilation): ColdHandler => {
    made.add(number);
    const module = modules.get(number) ?? new WebAssembly.Module(build(COLD[number], compilation));
    modules.set(number, module);
    const instance = new WebAssembly.Instance(module, { e: { ...environment } });
    const handler = instance.exports['handler'] as ColdHandler;
    environment.table.set(COLD_SLOT + number, handler);
    return handler;
  };
  return {
    first: (microOp, tlb) => make(u16[(microOp + MICRO_OP.handler) >>> 1] - FIRST_COLD, 'when called')(microOp, tlb),
    prepare: (handler) => {
      if (handler >= FIRST_COLD && handler < FIRST_COLD + COLD.length && !made.has(handler - FIRST_COLD))
        make(handler - FIRST_COLD, 'at once');
    },
  };
}

function build(variant: Variant, compilation: Compilation): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder();
  const miss = m.importFunction('e', 'miss', [I32, I32, I32], [I32]);
  const commit = m.importFunction('e', 'commit', [I32, I32]);
  const divide = m.importFunction('e', 'divide', [I32, I64, I64, I64], [I32]);
  const vector = m.importFunction('e', 'vector', [I32], [I32]);
  const stop = m.importFunction('e', 'stop', []);
  const start = m.importFunction('e', 'start', []);
  m.importMemory('e', 'cpu', 1, MEMORY_PAGES_MAX);
  m.importMemory('e', 'guest', 1, MEMORY_PAGES_MAX);
  const scratch = m.importGlobal('e', 'scratch', I32);
  const compute = m.declare([I32, I64, I64], [I32]);
  m.define(compute, computeFlags());
  const f = new FunctionBuilder([I32, I32]);
  const flagLocals = newFlagLocals(f, compute);
  const { flagsRead, flagsWritten, flagsUndefined, flagsConditional } = variant.form;
  const writes = flagsWritten !== 0 || flagsUndefined !== 0;
  const frame: Frame = {
    f,
    flagLocals,
    pc: local(0, I32),
    tlb: local(1, I32),
    leave: () => f.return(i32.const(EXIT_EXCEPTION)),
    pause: () => f.return(i32.const(EXIT_INTERRUPTED)),
  };
  const cpu = new InterpreterCpu(frame, { miss, commit, divide, vector, stop, start, computeFlags: compute, scratch });
  if (writes || flagsRead !== 0 || flagsConditional) loadFlags(f, flagLocals);
  cpu.begin(variant.operands, variant.operandSize, variant.locked, variant.wide);
  variant.meaning(cpu);
  if (writes) storeFlags(f, flagLocals);
  // 0, or the ExitKind to leave with: EXIT_SYSCALL is never one.
  f.return(i32.const(0));
  const handler = m.declare([I32, I32], [I32]);
  m.define(handler, f);
  m.export('handler', handler);
  return m.finish(compilation);
}
