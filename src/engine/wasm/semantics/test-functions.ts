/**
 * For tests: the functions of the instructions that the interpreter calls (handlers.COLD), each exported on its own, on a vCPU's
 * memory and one page of guest memory. Immediates are read from the micro-op, or known as in translated code.
 */

import { VCPU } from '../../../machine/vcpu-block.ts';
import { DECODE_OK, decode } from '../../x86/decoder.ts';
import { FORMS, type Form } from '../../x86/forms.ts';
import { Instruction } from '../../x86/instruction.ts';
import { OPERANDS, type OperandPlace } from '../../x86/operands.ts';
import { createExactVector } from '../../x86/sse-exact.ts';
import { computeFlags, FLAGS_EXPLICIT, type FlagLocals } from '../flags.ts';
import { FunctionBuilder } from '../function-builder.ts';
import type { Variant } from '../handlers.ts';
import { type Frame, InterpreterCpu, type Runtime } from '../interpreter-cpu.ts';
import { CPU, STATE, TLB_ADDEND, TLB_ENTRY, TLB_READ, TLB_SIZE, TLB_WRITE } from '../layout.ts';
import { MICRO_OP } from '../micro-op.ts';
import { ModuleBuilder } from '../module-builder.ts';
import { call, I32, I64, i32, i64, local, type Node } from '../nodes.ts';
import { resolveOperands } from '../operands.ts';
import { vectorMeaning } from './table.ts';

const PAGES = 64;
const GUEST_PAGES = 1;
/** Where the guest's page is in memory 0 and what its address is. */
const PAGE = 0x1000;
export const PAGE_VA = 0x200000;
const NO_EXCEPTION = 0;
const PAGE_FAULT = 14;
const RDI = 7;
const ZERO = i32.const(0);

/** As micro-op.ts has it. */
function registerOffset(form: Form, place: OperandPlace, number: number): number {
  const classes = form.operands.map((type) => OPERANDS[type]).filter((info) => info.place === place);
  return number * (classes.some((info) => info.class === 'gpr') ? 8 : 16);
}

/** (micro-op, TLB) -> 0, or 1 with an exception in the block. */
type Run = (microOp: number, tlb: number) => number;

class KnownImmediateCpu extends InterpreterCpu {
  readonly #known: number;

  constructor(frame: Frame, runtime: Runtime, known: number) {
    super(frame, runtime);
    this.#known = known;
  }

  override read(index: number): Node {
    return this.operands[index].kind === 'immediate' ? i64.small(this.#known) : super.read(index);
  }
}

export class InstructionRunner {
  readonly u8: Uint8Array;
  readonly u32: Uint32Array;
  /** The guest's page. */
  readonly page: Uint8Array;
  readonly #cpu = new WebAssembly.Memory({ initial: PAGES, maximum: PAGES, shared: true });
  readonly #guest = new WebAssembly.Memory({ initial: GUEST_PAGES, maximum: GUEST_PAGES, shared: true });
  readonly #instruction = new Instruction();
  readonly #functions = new Map<string, Run>();
  readonly #flags: () => number;
  readonly #imports: WebAssembly.ModuleImports;
  #run: Run = () => 0;
  /** Calls of the slow path. */
  slow = 0;
  /** Of the instruction that was prepared: bytes of its memory operand, or 0. */
  memoryBytes = 0;

  constructor() {
    const { buffer } = this.#cpu;
    this.u8 = new Uint8Array(buffer);
    this.u32 = new Uint32Array(buffer);
    this.page = new Uint8Array(this.#guest.buffer, PAGE, 4096);
    const exact = createExactVector(buffer, STATE.vector, STATE.mxcsr);
    this.#imports = {
      guest: this.#guest,
      cpu: this.#cpu,
      scratch: new WebAssembly.Global({ value: 'i32' }, GUEST_PAGES * 65536),
      miss: () => {
        this.u32[VCPU.exitVector / 4] = PAGE_FAULT;
        return -1;
      },
      commit: () => {},
      divide: () => 0,
      vector: (operation: number) => {
        this.slow++;
        return exact(operation);
      },
    };
    this.u32.fill(0xffffffff, STATE.tlb / 4, (STATE.tlb + 2 * TLB_SIZE) / 4);
    const entry = STATE.tlb + ((PAGE_VA >>> 12) % (TLB_SIZE / TLB_ENTRY)) * TLB_ENTRY;
    for (const tag of [TLB_READ, TLB_WRITE]) {
      this.u32[(entry + tag) / 4] = PAGE_VA;
      this.u32[(entry + tag) / 4 + 1] = 0;
    }
    this.u32[(entry + TLB_ADDEND) / 4] = PAGE - PAGE_VA;
    this.#flags = this.#instantiate((m, runtime) => {
      const f = new FunctionBuilder([]);
      const { kind, a, b, compute } = this.#flagLocals(f, runtime);
      f.return(compute(kind, a, b));
      const index = m.declare([], [I32]);
      m.define(index, f);
      return index;
    }) as () => number;
  }

  #instantiate(define: (m: ModuleBuilder, runtime: Runtime) => number): unknown {
    const m = new ModuleBuilder();
    const miss = m.importFunction('e', 'miss', [I32, I32, I32], [I32]);
    const commit = m.importFunction('e', 'commit', [I32, I32]);
    const divide = m.importFunction('e', 'divide', [I32, I64, I64, I64], [I32]);
    const vector = m.importFunction('e', 'vector', [I32], [I32]);
    m.importMemory('e', 'cpu', PAGES, PAGES);
    m.importMemory('e', 'guest', GUEST_PAGES, GUEST_PAGES);
    const scratch = m.importGlobal('e', 'scratch', I32);
    const flags = m.declare([I32, I64, I64], [I32]);
    m.define(flags, computeFlags());
    m.export('run', define(m, { miss, commit, divide, vector, stop: -1, start: -1, computeFlags: flags, scratch }));
    return new WebAssembly.Instance(new WebAssembly.Module(m.finish()), { e: this.#imports }).exports['run'];
  }

  /** Locals with the flags that are in memory. */
  #flagLocals(f: FunctionBuilder, runtime: Runtime): FlagLocals {
    const kind = f.newLocal(I32);
    const a = f.newLocal(I64);
    const b = f.newLocal(I64);
    f.set(kind, i32.load(CPU, ZERO, STATE.flagsKind));
    f.set(a, i64.load(CPU, ZERO, STATE.flagsA));
    f.set(b, i64.load(CPU, ZERO, STATE.flagsB));
    return { kind, a, b, compute: (k, x, y) => call(runtime.computeFlags, I32, k, x, y) };
  }

  #function(variant: Variant, known: number): Run {
    return this.#instantiate((m, runtime) => {
      const f = new FunctionBuilder([I32, I32]);
      const flagLocals = this.#flagLocals(f, runtime);
      const frame = {
        f,
        flagLocals,
        pc: local(0, I32),
        tlb: local(1, I32),
        leave: () => f.return(i32.const(1)),
        pause: () => f.unreachable(),
      };
      const cpu = known < 0 ? new InterpreterCpu(frame, runtime) : new KnownImmediateCpu(frame, runtime, known);
      cpu.begin(variant.operands, variant.operandSize, false, false);
      variant.meaning(cpu);
      f.store(4, CPU, ZERO, STATE.flagsKind, flagLocals.kind);
      f.store(8, CPU, ZERO, STATE.flagsA, flagLocals.a);
      f.store(8, CPU, ZERO, STATE.flagsB, flagLocals.b);
      f.return(i32.const(0));
      const index = m.declare([I32, I32], [I32]);
      m.define(index, f);
      return index;
    }) as Run;
  }

  /**
   * Takes an instruction whose memory operand is [rDI]. `known`: its immediate is not read at run time. False if it has no meaning
   * as a vector instruction.
   */
  prepare(code: readonly number[], known: boolean): boolean {
    const instruction = this.#instruction;
    if (decode(Uint8Array.from(code), 0, code.length, 64, instruction) !== DECODE_OK)
      throw new Error(`no instruction: ${code}`);
    const form = FORMS[instruction.form];
    const meaning = vectorMeaning(form);
    if (meaning === undefined) return false;
    const memory = instruction.mod !== 3;
    const operandSize = instruction.operandSize;
    const immediate = known && form.operands.includes('Ib') ? instruction.immLo : -1;
    const key = `${form.index} ${operandSize} ${memory} ${immediate}`;
    const operands = resolveOperands(form.operands, operandSize, memory);
    const memoryOperand = operands.find((operand) => operand.kind === 'memory');
    this.memoryBytes = memoryOperand === undefined ? 0 : memoryOperand.size;
    let run = this.#functions.get(key);
    if (run === undefined) {
      run = this.#function({ form, meaning, operands, operandSize, locked: false, wide: false }, immediate);
      this.#functions.set(key, run);
    }
    this.#run = run;
    const microOp = STATE.microOps;
    this.u8[microOp + MICRO_OP.register1] = registerOffset(form, 'reg', instruction.reg);
    this.u8[microOp + MICRO_OP.register2] = registerOffset(form, 'rm', instruction.rm);
    this.u8[microOp + MICRO_OP.base] = VCPU.gpr + 8 * RDI;
    this.u8[microOp + MICRO_OP.index] = STATE.zero;
    this.u32[(microOp + MICRO_OP.immediate) / 4] = instruction.immLo;
    return true;
  }

  /** Runs what was prepared. 0, or the vector of the exception that it raises. */
  step(): number {
    const { u32 } = this;
    u32[STATE.flagsKind / 4] = FLAGS_EXPLICIT;
    u32[STATE.flagsA / 4] = 0x44;
    u32[STATE.flagsA / 4 + 1] = 0;
    return this.#run(STATE.microOps, STATE.tlb) === 0 ? NO_EXCEPTION : u32[VCPU.exitVector / 4];
  }

  /** The arithmetic flags. */
  flags(): number {
    return this.#flags() & 0x8d5;
  }
}
