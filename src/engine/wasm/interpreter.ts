/**
 * The interpreter: one WebAssembly function with one `br_table` over the handlers of micro-ops, generated from the meanings of the
 * instructions (semantics/), and a table of functions for what is seldom run.
 *
 *     interpret(tlb, user) -> reason
 *
 * runs from the vCPU's rip until something happens and leaves the registers, rip and flags in memory 1. `tlb` is the offset of the
 * mode's TLB, `user` the bit that its jump-cache tags carry. Reasons are ExitKinds of engine.ts. Regions call it too, to run what
 * they call and have no region for, until rip is where they go on (region.ts, NEST_SLOT).
 *
 *     loop next
 *       block lookup          target -> pc, by the jump cache or by `resolve`
 *         block cold          handlers from FIRST_COLD on: a function each (cold-handlers.ts)
 *           block h[n] ... block h[0]
 *             br_table
 *           h[0] ... h[n]
 */

import { VCPU } from '../../machine/vcpu-block.ts';
import { EXIT_EXCEPTION, EXIT_INTERRUPTED } from '../engine.ts';
import { COLD_SLOT, createColdHandlers } from './cold-handlers.ts';
import { addExecuted, INTERPRETED } from './executed.ts';
import { loadFlags, newFlagLocals, storeFlags } from './flag-locals.ts';
import { computeFlags, FLAGS_RESULT, FLAGS_SUB, type FlagLocals } from './flags.ts';
import { FunctionBuilder, type Label } from './function-builder.ts';
import * as handlers from './handlers.ts';
import { type Frame, InterpreterCpu, type Runtime } from './interpreter-cpu.ts';
import {
  CPU,
  HOT_COUNTS,
  JUMP_ENTRIES,
  JUMP_ENTRY,
  JUMP_MICRO_OP,
  JUMP_SHIFT,
  JUMP_SLOT,
  JUMP_TAG,
  STATE,
} from './layout.ts';
import { MICRO_OP } from './micro-op.ts';
import { type Compilation, MEMORY_PAGES_MAX, ModuleBuilder } from './module-builder.ts';
import { call, callIndirect, I32, I64, i32, i64, local, type Node, select } from './nodes.ts';
import { JUMP, NEXT } from './rare-status.ts';
import { CONTINUE, INTERRUPTED, LEFT, NEST_PARAMETERS, REGION_PARAMETERS, RESUME, RETURNED, UNWIND } from './region.ts';
import { knownKind, RegionFlags } from './region-flags.ts';
import { dropStack, push, stackTop } from './semantics/moves.ts';

/** Times that an address is entered before it becomes a region: a power of two. */
export const HOT = 0x4000;
/** Times before it is looked for among those that were translated for domains before, and before it is noted for those to come: others. */
const LUKEWARM = 0x40;
export const WARM = 0x400;
/** 0 in these bits: a count (above 0) at which somebody is told. */
const COUNT_MASK = 0xffff & ~(HOT | WARM | LUKEWARM);
/** Calls of regions by regions, and of the interpreter by them. */
const DEPTH_MAX = 100;
/** How a nested interpreter ends, beside the ExitKinds: rip is where the region goes on; the same, but it may not go on. */
const REACHED = -1;
const UNWOUND = -2;

const RCX = 1;
const zeroAddress = i32.const(0);

export interface InterpreterImports {
  /** (lo, hi, size | access << 8) -> offset of memory 0 or -1 with a fault in the block. */
  miss(lo: number, hi: number, request: number): number;
  commit(at: number, size: number): void;
  divide(signed: number, high: bigint, low: bigint, divisor: bigint): number;
  /** (lo, hi, from) -> micro-op of an address, or 0 with a fault in the block. `from`: the micro-op that goes there. */
  resolve(lo: number, hi: number, from: number): number;
  /** The instruction at rip -> NEXT, JUMP (rare-status.ts) or an ExitKind. */
  rare(microOp: number): number;
  /** An address has been entered so many times: LUKEWARM, WARM, HOT, or sums of them. */
  hot(lo: number, hi: number, count: number): void;
  /** An operation of x86/sse-exact.ts -> 1 for an unmasked exception. */
  vector(operation: number): number;
  /** (lo, hi) -> micro-op of an address where no region may be taken, or 0 with a fault in the block. */
  resume(lo: number, hi: number): number;
  /** No other vCPU executes guest instructions until `start()` (world.ts). */
  stop(): void;
  start(): void;
}

/**
 * Places of the table: 0 is what a call of no region calls, then come the nested interpreter, the cold handlers (cold-handlers.ts), and
 * regions.
 */
export const FIRST_SLOT: number = COLD_SLOT + handlers.COLD.length;

export interface InterpreterMemory {
  readonly guest: WebAssembly.Memory;
  readonly cpu: WebAssembly.Memory;
  /** Has room for FIRST_SLOT functions. */
  readonly table: WebAssembly.Table;
  /** First byte of the scratch area in memory 0. */
  readonly scratch: number;
  /** Counts instructions at STATE.executed: for statistics, it costs time. */
  readonly counting: boolean;
}

export interface Interpreter {
  /** Runs; an ExitKind. */
  interpret(tlb: number, user: number): number;
  /** The six arithmetic flags (and others: mask them), from what is in memory 1. */
  rflags(): number;
  /** Makes the handler of a micro-op, if it is a cold one, before it is called. */
  readonly prepareHandler: (handler: number) => void;
}

/** The interpreter's module. */
export function buildInterpreter(counting: boolean, compilation?: Compilation): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder();
  const miss = m.importFunction('e', 'miss', [I32, I32, I32], [I32]);
  const commit = m.importFunction('e', 'commit', [I32, I32]);
  const divide = m.importFunction('e', 'divide', [I32, I64, I64, I64], [I32]);
  const resolve = m.importFunction('e', 'resolve', [I32, I32, I32], [I32]);
  const rare = m.importFunction('e', 'rare', [I32], [I32]);
  const hot = m.importFunction('e', 'hot', [I32, I32, I32]);
  const resume = m.importFunction('e', 'resume', [I32, I32], [I32]);
  const vector = m.importFunction('e', 'vector', [I32], [I32]);
  const cold = m.importFunction('e', 'cold', [I32, I32], [I32]);
  const stop = m.importFunction('e', 'stop', []);
  const start = m.importFunction('e', 'start', []);
  m.importMemory('e', 'cpu', 1, MEMORY_PAGES_MAX);
  m.importMemory('e', 'guest', 1, MEMORY_PAGES_MAX);
  m.importTable('e', 'table', FIRST_SLOT);
  const scratch = m.importGlobal('e', 'scratch', I32);
  const flagsFunction = m.declare([I32, I64, I64], [I32]);
  m.define(flagsFunction, computeFlags());
  const runtime: Runtime = { miss, commit, divide, vector, stop, start, computeFlags: flagsFunction, scratch };

  const coldType = m.type([I32, I32], [I32]);
  const none = m.declare(REGION_PARAMETERS, [I32]);
  const nothing = new FunctionBuilder(REGION_PARAMETERS);
  nothing.store(8, CPU, zeroAddress, VCPU.rip, local(0, I64));
  nothing.return(i32.const(CONTINUE));
  m.define(none, nothing);
  const run = m.declare(RUN_PARAMETERS, [I32]);
  const nest = m.declare(NEST_PARAMETERS, [I32]);
  m.element(0, [none, nest, ...handlers.COLD.map(() => cold)]);
  m.define(nest, nestFunction(run, m.type(REGION_PARAMETERS, [I32])));
  m.define(
    run,
    interpretFunction(runtime, counting, {
      resolve,
      rare,
      hot,
      resume,
      coldType,
      regionType: m.type(REGION_PARAMETERS, [I32]),
    }),
  );
  const interpret = m.declare([I32, I32], [I32]);
  const i = new FunctionBuilder([I32, I32]);
  const nowhere = i64.small(0);
  i.return(call(run, I32, local(0, I32), local(1, I32), nowhere, i32.const(DEPTH_MAX), i32.const(0)));
  m.define(interpret, i);
  m.export('interpret', interpret);
  const rflags = m.declare([], [I32]);
  const r = new FunctionBuilder([]);
  const flagLocals = newFlagLocals(r, flagsFunction);
  loadFlags(r, flagLocals);
  r.return(flagLocals.compute(flagLocals.kind, flagLocals.a, flagLocals.b));
  m.define(rflags, r);
  m.export('rflags', rflags);
  return m.finish(compilation);
}

/** TLB, user bit, rip to stop at if this is not the outermost, calls that may nest, whether to start at rip without its region. */
const RUN_PARAMETERS = [I32, I32, I64, I32, I32] as const;

/**
 * What regions call. A callee that ended with more than CONTINUE or RESUME has ended for all. One that went on elsewhere (a jump at its
 * end, or by way of a table of addresses) often leads to another region: the interpreter is for the rest.
 */
function nestFunction(run: number, regionType: number): FunctionBuilder {
  const f = new FunctionBuilder(NEST_PARAMETERS);
  const back = local(0, I64);
  const depth = local(1, I32);
  const reason = local(2, I32);
  f.loop((again) => {
    f.if(i32.eqz(reason), () => f.return(i32.const(RETURNED)));
    f.if(i32.eq(reason, i32.const(CONTINUE)), () => {
      const to = f.let(i64.load(CPU, zeroAddress, VCPU.rip));
      f.if(i64.eq(to, back), () => f.return(i32.const(RETURNED)));
      const low = i32.wrap(to);
      const hash = i32.and(i32.xor(low, i32.shrU(low, i32.const(JUMP_SHIFT))), i32.const(JUMP_ENTRIES - 1));
      const entry = f.let(i32.mul(hash, i32.const(JUMP_ENTRY)));
      const tag = i64.xor(to, i64.shl(i64.extendI32U(local(4, I32)), i64.small(32)));
      const isHere = i64.eq(i64.load(CPU, entry, STATE.jumpCache + JUMP_TAG), tag);
      const slot = f.let(select(i32.load(CPU, entry, STATE.jumpCache + JUMP_SLOT), i32.const(0), isHere));
      f.if(slot, () => {
        const budget = f.let(i32.sub(i32.load(CPU, zeroAddress, STATE.budget), i32.const(1)));
        f.store(4, CPU, zeroAddress, STATE.budget, budget);
        const wanted = i32.load(CPU, zeroAddress, VCPU.flags);
        f.seldom(i32.or(i32.leS(budget, i32.const(0)), wanted), () => f.return(i32.const(INTERRUPTED)));
        f.set(reason, callIndirect(regionType, I32, to, depth, back, slot));
        f.br(again);
      });
    });
  });
  const resuming = i32.eq(reason, i32.const(RESUME));
  f.if(i32.and(i32.ne(reason, i32.const(CONTINUE)), i32.eqz(resuming)), () => f.return(reason));
  const end = f.let(call(run, I32, local(3, I32), local(4, I32), back, depth, resuming));
  f.if(i32.eq(end, i32.const(REACHED)), () => f.return(i32.const(RETURNED)));
  f.if(i32.eq(end, i32.const(UNWOUND)), () => f.return(i32.const(UNWIND)));
  f.return(i32.add(end, i32.const(LEFT)));
  return f;
}

/** Function and type indexes of the interpreter's module. */
interface Indexes {
  readonly resolve: number;
  readonly rare: number;
  readonly hot: number;
  readonly resume: number;
  readonly coldType: number;
  readonly regionType: number;
}

function interpretFunction(runtime: Runtime, countsExecuted: boolean, indexes: Indexes): FunctionBuilder {
  const { resolve, rare, hot, resume, coldType, regionType } = indexes;
  const f = new FunctionBuilder(RUN_PARAMETERS);
  const tlb = local(0, I32);
  const user = local(1, I32);
  const stop = local(2, I64);
  const depth = local(3, I32);
  const resuming = local(4, I32);
  const isNested = i32.ne(depth, i32.const(DEPTH_MAX));
  const generation = f.newLocal(I32);
  const pc = f.newLocal(I32);
  const page = f.newLocal(I64);
  const target = f.newLocal(I64);
  const budget = f.newLocal(I32);
  const reason = f.newLocal(I32);
  /** 1 unless the way to the next lookup does not count as entering: returns. */
  const counting = f.newLocal(I32);
  const flagLocals = newFlagLocals(f, runtime.computeFlags);
  const labels: Label[] = [];

  const offsetInPage = i64.extendI32U(i32.shrU(i32.load16U(CPU, pc, MICRO_OP.scale), i32.const(4)));
  const displacement = i32.load(CPU, pc, MICRO_OP.displacement);
  const immediate = i64.load32S(CPU, pc, MICRO_OP.immediate);

  f.set(budget, i32.load(CPU, zeroAddress, STATE.budget));
  loadFlags(f, flagLocals);
  f.set(counting, i32.const(1));
  f.set(pc, i32.const(STATE.microOps));
  f.set(generation, i32.load(CPU, zeroAddress, STATE.generation));

  f.block((done) => {
    /** Goes on at `target` without its region. */
    const resumeThere = (): void => {
      f.set(pc, call(resume, I32, i32.wrap(target), i32.wrap(i64.shrU(target, i64.small(32)))));
      f.if(i32.eqz(pc), () => {
        f.set(reason, i32.const(EXIT_EXCEPTION));
        f.br(done);
      });
      f.set(page, i64.and(target, i64.small(-4096)));
      f.store(8, CPU, zeroAddress, STATE.codePage, page);
    };
    f.if(resuming, () => {
      f.set(target, i64.load(CPU, zeroAddress, VCPU.rip));
      resumeThere();
    });
    // With `reason` set: rip is where the micro-op is.
    f.block((leaveHere) => {
      const leaveWith = (kind: number): void => {
        f.set(reason, i32.const(kind));
        f.br(leaveHere);
      };
      const frame: Frame = {
        f,
        flagLocals,
        pc,
        tlb,
        leave: () => leaveWith(EXIT_EXCEPTION),
        pause: () => leaveWith(EXIT_INTERRUPTED),
      };
      const cpu = new InterpreterCpu(frame, runtime);
      f.loop((next) => {
        const advance = (bytes: number): void => {
          f.set(pc, i32.add(pc, i32.const(bytes)));
          f.br(next);
        };
        /** After a branch: time is up, or somebody wants something. pc is the target. */
        const poll = (): void => {
          f.set(budget, i32.sub(budget, i32.const(1)));
          const wanted = i32.ne(i32.load(CPU, zeroAddress, VCPU.flags), i32.const(0));
          f.seldom(i32.or(i32.leS(budget, i32.const(0)), wanted), () => leaveWith(EXIT_INTERRUPTED));
          f.br(next);
        };

        const resolveTarget = (from: Node): void => {
          const high = i32.wrap(i64.shrU(target, i64.small(32)));
          f.set(pc, call(resolve, I32, i32.wrap(target), high, from));
          f.seldom(i32.eqz(pc), () => {
            f.store(8, CPU, zeroAddress, VCPU.rip, target);
            f.set(reason, i32.const(EXIT_EXCEPTION));
            f.br(done);
          });
        };

        f.block((lookup) => {
          const jumpRelative = (): void => {
            const linked = f.let(displacement);
            f.if(linked, () => {
              const relative = i32.load(CPU, pc, MICRO_OP.immediate);
              const backward = i32.leS(relative, i32.wrap(offsetInPage));
              f.if(backward, () => {
                const count = f.let(i32.add(i32.load16U(CPU, pc, MICRO_OP.count), i32.const(1)));
                f.store(2, CPU, pc, MICRO_OP.count, count);
                f.seldom(i32.eqz(i32.and(count, i32.const(COUNT_MASK))), () => {
                  f.set(target, i64.add(page, immediate));
                  f.callVoid(hot, i32.wrap(target), i32.wrap(i64.shrU(target, i64.small(32))), count);
                });
              });
              f.set(pc, linked);
              poll();
            });
            f.set(target, i64.add(page, immediate));
            f.br(lookup);
          };
          const emitHandler = (handler: number, body: () => void): void => {
            bodies[handler] =
              countsExecuted && !handlers.NO_INSTRUCTION.has(handler)
                ? () => {
                    addExecuted(f, INTERPRETED, 1);
                    body();
                  }
                : body;
          };
          const bodies: (() => void)[] = [];
          emitHandler(handlers.ENTER, () => {
            f.set(target, i64.load(CPU, zeroAddress, VCPU.rip));
            f.br(lookup);
          });
          // The jump cache may still lead here: `resolve` writes its entry anew.
          emitHandler(handlers.STALE, () => {
            f.set(target, i64.or(page, offsetInPage));
            resolveTarget(pc);
            poll();
          });
          emitHandler(handlers.REGION, () => {
            f.set(target, i64.or(page, offsetInPage));
            f.br(lookup);
          });
          emitHandler(handlers.RARE, () => {
            storeFlags(f, flagLocals);
            f.store(8, CPU, zeroAddress, VCPU.rip, i64.or(page, offsetInPage));
            f.set(reason, call(rare, I32, pc));
            loadFlags(f, flagLocals);
            f.if(i32.eq(reason, i32.const(NEXT)), () => advance(MICRO_OP.SIZE));
            f.brIf(done, i32.ne(reason, i32.const(JUMP)));
            f.set(target, i64.load(CPU, zeroAddress, VCPU.rip));
            f.br(lookup);
          });
          const segmented = (wide: boolean): void => {
            const address = cpu.address(0);
            const base = i64.load(CPU, i32.load8U(CPU, pc, MICRO_OP.register1), 0);
            const offset = wide ? address : i64.and(address, i64.const(-1, 0));
            f.store(8, CPU, zeroAddress, STATE.address, i64.add(offset, base));
            advance(MICRO_OP.SIZE);
          };
          emitHandler(handlers.ADDRESS, () => segmented(true));
          emitHandler(handlers.ADDRESS32, () => segmented(false));
          const wrapped = (offsetMask: Node): void => {
            const base = i64.load(CPU, i32.load8U(CPU, pc, MICRO_OP.register1), 0);
            const address = i64.add(i64.and(cpu.address(0), offsetMask), base);
            f.store(8, CPU, zeroAddress, STATE.address, i64.and(address, i64.const(-1, 0)));
            advance(MICRO_OP.SIZE);
          };
          emitHandler(handlers.ADDRESS_WRAPPED, () => wrapped(i64.const(-1, 0)));
          emitHandler(handlers.ADDRESS16, () => wrapped(i64.const(0xffff, 0)));
          emitHandler(handlers.LINK, () => {
            f.set(pc, displacement);
            f.br(next);
          });
          emitHandler(handlers.LEAVE_PAGE, () => {
            f.set(target, i64.add(page, immediate));
            f.br(lookup);
          });
          emitHandler(handlers.NOTHING, () => advance(MICRO_OP.SIZE));
          handlers.HOT.forEach((variant, i) => {
            emitHandler(handlers.FIRST_VARIANT + i, () => {
              cpu.begin(variant.operands, variant.operandSize, variant.locked, variant.wide);
              variant.meaning(cpu);
              advance(variant.wide ? MICRO_OP.WIDE_SIZE : MICRO_OP.SIZE);
            });
          });

          f.block((taken) => {
            const control = { pc, page, target, counting, lookup, taken, advance };
            branchHandlers(f, cpu, flagLocals, control, emitHandler);
            f.block((cold) => {
              const nest = (handler: number): void => {
                f.block((label) => {
                  labels[handler] = label;
                  if (handler > 0) nest(handler - 1);
                  else f.brTable(i32.load16U(CPU, pc, MICRO_OP.handler), [...labels, cold]);
                });
                bodies[handler]();
                f.releaseTemporaries();
              };
              nest(handlers.FIRST_COLD - 1);
            });
            if (countsExecuted) addExecuted(f, INTERPRETED, 1);
            storeFlags(f, flagLocals);
            const index = i32.sub(i32.load16U(CPU, pc, MICRO_OP.handler), i32.const(handlers.FIRST_COLD - COLD_SLOT));
            f.set(reason, callIndirect(coldType, I32, pc, tlb, index));
            f.brIf(leaveHere, reason);
            loadFlags(f, flagLocals);
            advance(MICRO_OP.SIZE);
          });
          jumpRelative();
        });

        // lookup: `target` is where to go; `pc` where it comes from.
        f.loop((again) => {
          f.if(i32.and(i64.eq(target, stop), isNested), () => {
            f.store(8, CPU, zeroAddress, VCPU.rip, target);
            const isUnchanged = i32.eq(generation, i32.load(CPU, zeroAddress, STATE.generation));
            f.set(reason, select(i32.const(REACHED), i32.const(UNWOUND), isUnchanged));
            f.br(done);
          });
          const low = i32.wrap(target);
          const high = i32.wrap(i64.shrU(target, i64.small(32)));
          const hash = i32.and(i32.xor(low, i32.shrU(low, i32.const(JUMP_SHIFT))), i32.const(JUMP_ENTRIES - 1));
          const entry = f.let(i32.mul(hash, i32.const(JUMP_ENTRY)));
          const tag = f.let(i64.xor(target, i64.shl(i64.extendI32U(user), i64.small(32))));
          const isHere = i64.eq(i64.load(CPU, entry, STATE.jumpCache + JUMP_TAG), tag);
          const slot = i32.load(CPU, entry, STATE.jumpCache + JUMP_SLOT);
          f.if(
            isHere,
            () => {
              f.if(slot, () => {
                storeFlags(f, flagLocals);
                f.store(4, CPU, zeroAddress, STATE.budget, i32.sub(budget, i32.const(1)));
                f.set(reason, callIndirect(regionType, I32, target, depth, stop, slot));
                loadFlags(f, flagLocals);
                f.set(budget, i32.load(CPU, zeroAddress, STATE.budget));
                f.if(
                  i32.eq(reason, i32.const(RETURNED)),
                  () => {
                    f.set(target, stop);
                    f.store(8, CPU, zeroAddress, VCPU.rip, target);
                    f.set(reason, i32.const(CONTINUE));
                  },
                  () => f.set(target, i64.load(CPU, zeroAddress, VCPU.rip)),
                );
                f.if(i32.eq(reason, i32.const(UNWIND)), () => {
                  f.set(reason, i32.const(UNWOUND));
                  f.brIf(done, isNested);
                  f.set(reason, i32.const(CONTINUE));
                });
                f.if(i32.eq(reason, i32.const(CONTINUE)), () => {
                  const wanted = i32.ne(i32.load(CPU, zeroAddress, VCPU.flags), i32.const(0));
                  f.brIf(again, i32.eqz(i32.or(i32.leS(budget, i32.const(0)), wanted)));
                  f.set(reason, i32.const(EXIT_INTERRUPTED));
                });
                f.if(i32.geS(reason, i32.const(LEFT)), () => {
                  f.set(reason, i32.sub(reason, i32.const(LEFT)));
                  f.br(done);
                });
                f.brIf(done, i32.ne(reason, i32.const(RESUME)));
                resumeThere();
                f.br(next);
              });
              f.set(pc, i32.load(CPU, entry, STATE.jumpCache + JUMP_MICRO_OP));
              const at = i32.and(i32.xor(low, i32.shrU(low, i32.const(12))), i32.const(HOT_COUNTS - 1));
              const counter = f.let(i32.shl(at, i32.const(2)));
              const count = f.let(i32.add(i32.load(CPU, counter, STATE.hotCounts), counting));
              f.store(4, CPU, counter, STATE.hotCounts, count);
              // Who is not counted may find a count at which somebody has been told.
              f.seldom(i32.and(counting, i32.eqz(i32.and(count, i32.const(COUNT_MASK)))), () => {
                const isHot = i32.geU(count, i32.const(HOT));
                f.store(4, CPU, counter, STATE.hotCounts, select(i32.const(0), count, isHot));
                f.callVoid(hot, low, high, count);
              });
            },
            () => {
              resolveTarget(pc);
              f.brIf(again, i32.and(isHere, i32.ne(slot, i32.const(0))));
            },
            true,
          );
        });
        f.set(counting, i32.const(1));
        f.set(page, i64.and(target, i64.small(-4096)));
        f.store(8, CPU, zeroAddress, STATE.codePage, page);
        poll();
      });
    });
    f.store(8, CPU, zeroAddress, VCPU.rip, i64.or(page, offsetInPage));
  });
  f.store(4, CPU, zeroAddress, STATE.budget, budget);
  storeFlags(f, flagLocals);
  f.return(reason);
  return f;
}

interface Control {
  readonly pc: Node;
  readonly page: Node;
  readonly target: Node;
  readonly counting: Node;
  readonly lookup: Label;
  readonly advance: (bytes: number) => void;
  /** Goes to the target of a branch with a displacement. */
  readonly taken: Label;
}

function branchHandlers(
  f: FunctionBuilder,
  cpu: InterpreterCpu,
  flagLocals: FlagLocals,
  control: Control,
  emit: (handler: number, body: () => void) => void,
): void {
  const { pc, page, target, lookup, taken, advance } = control;
  const returnAddress = i64.add(page, i64.extendI32U(i32.load16U(CPU, pc, MICRO_OP.nextOffset)));
  emit(handlers.JUMP, () => f.br(taken));
  /** A branch to an address that is not canonical is #GP where it stands, with nothing changed. */
  const requireCanonical = (to: Node): void => {
    const extended = i64.shrS(i64.shl(to, i64.small(16)), i64.small(16));
    f.seldom(i64.ne(extended, to), () => cpu.raise(13));
  };
  // The address operand uses the bytes of `nextOffset`: the offset after the instruction is the immediate.
  const afterIndirect = i64.add(page, i64.load32S(CPU, pc, MICRO_OP.immediate));
  for (const { size, call, jumps, calls, back } of [
    {
      size: 8,
      call: handlers.CALL,
      jumps: [handlers.JUMP_INDIRECT, handlers.JUMP_MEMORY],
      calls: [handlers.CALL_INDIRECT, handlers.CALL_MEMORY],
      back: handlers.RETURN,
    },
    {
      size: 4,
      call: handlers.CALL_32,
      jumps: [handlers.JUMP_INDIRECT_32, handlers.JUMP_MEMORY_32],
      calls: [handlers.CALL_INDIRECT_32, handlers.CALL_MEMORY_32],
      back: handlers.RETURN_32,
    },
  ] as const) {
    const operands = [
      { kind: 'gpr', size, field: 1 },
      { kind: 'memory', size },
    ] as const;
    emit(call, () => {
      push(cpu, size, returnAddress);
      f.br(taken);
    });
    for (const [i, handler] of jumps.entries())
      emit(handler, () => {
        cpu.begin([operands[i]], size, false, false);
        f.set(target, cpu.read(0));
        requireCanonical(target);
        f.br(lookup);
      });
    for (const [i, handler] of calls.entries())
      emit(handler, () => {
        cpu.begin([operands[i]], size, false, false);
        const to = f.let(cpu.read(0));
        // The stack's page fault comes before.
        const top = f.let(i64.sub(cpu.gpr(4, 8), i64.small(size)));
        const at = cpu.translate(top, size, 'write');
        requireCanonical(to);
        cpu.store(at, size, afterIndirect);
        cpu.setGpr(4, 8, top);
        f.set(target, to);
        f.br(lookup);
      });
    emit(back, () => {
      const to = stackTop(cpu, size);
      requireCanonical(to);
      dropStack(cpu, size);
      cpu.setGpr(4, 8, i64.add(cpu.gpr(4, 8), cpu.immediate()));
      f.set(control.counting, i32.const(0));
      f.set(target, to);
      f.br(lookup);
    });
  }
  // At the top of 64 bits, as the interpreter keeps them, operands and results of all sizes compare alike.
  const after = (kind: number): RegionFlags => {
    const flags = new RegionFlags(f, flagLocals);
    flags.known = knownKind(kind, 8);
    return flags;
  };
  for (const [handler, flags] of [
    [handlers.JCC, cpu.flags],
    [handlers.JCC_SUB, after(FLAGS_SUB)],
    [handlers.JCC_RESULT, after(FLAGS_RESULT)],
  ] as const)
    for (let code = 0; code < 16; code++)
      emit(handler + code, () => {
        f.brIf(taken, flags.condition(code));
        advance(MICRO_OP.SIZE);
      });
  // LOOP and JRCXZ: register 1 is 1 when the count is ECX.
  const narrow = i32.load8U(CPU, pc, MICRO_OP.register1);
  const counter = (): Node => {
    const full = cpu.gpr(RCX, 8);
    return f.let(i64.and(full, i64.or(i64.const(-1, 0), i64.sub(i64.extendI32U(narrow), i64.small(1)))));
  };
  const loopOn = (handler: number, condition: Node | null): void =>
    emit(handler, () => {
      const left = counter();
      const less = f.let(i64.sub(left, i64.small(1)));
      f.if(
        narrow,
        () => cpu.setGpr(RCX, 4, less),
        () => cpu.setGpr(RCX, 8, less),
      );
      const again = i64.ne(left, i64.small(1));
      f.brIf(taken, condition === null ? again : i32.and(again, i32.ne(condition, i32.const(0))));
      advance(MICRO_OP.SIZE);
    });
  loopOn(handlers.LOOP, null);
  loopOn(handlers.LOOPE, cpu.flags.condition(4));
  loopOn(handlers.LOOPNE, cpu.flags.condition(5));
  emit(handlers.JRCXZ, () => {
    f.brIf(taken, i64.eqz(counter()));
    advance(MICRO_OP.SIZE);
  });
}

const modules = new Map<boolean, WebAssembly.Module>();

/** The interpreter on a vCPU's memories. `known`: its module, if somebody has it. */
export function createInterpreter(
  memory: InterpreterMemory,
  imports: InterpreterImports,
  known?: WebAssembly.Module,
): Interpreter {
  const module = known ?? modules.get(memory.counting) ?? new WebAssembly.Module(buildInterpreter(memory.counting));
  modules.set(memory.counting, module);
  const environment = {
    guest: memory.guest,
    cpu: memory.cpu,
    table: memory.table,
    scratch: new WebAssembly.Global({ value: 'i32' }, memory.scratch | 0),
    miss: imports.miss,
    commit: imports.commit,
    divide: imports.divide,
    vector: imports.vector,
    stop: imports.stop,
    start: imports.start,
  };
  const cold = createColdHandlers(environment);
  const instance = new WebAssembly.Instance(module, {
    e: {
      ...environment,
      resolve: imports.resolve,
      rare: imports.rare,
      hot: imports.hot,
      resume: imports.resume,
      cold: cold.first,
    },
  });
  const { interpret, rflags } = instance.exports as unknown as Interpreter;
  return { interpret, rflags, prepareHandler: cold.prepare };
}
