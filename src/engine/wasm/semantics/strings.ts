/**
 * MOVS and STOS with 64-bit addresses and no segment, which memcpy and memset are made of. Between pieces the registers say how far it
 * is, so faults and interruptions may come there. The others are TypeScript (rare-strings.ts). Source: Intel SDM vol. 2, "REP".
 */

import { VCPU } from '../../../machine/vcpu-block.ts';
import type { Cpu } from '../cpu.ts';
import type { IntegerSize } from '../flags.ts';
import type { Label } from '../function-builder.ts';
import { GUEST } from '../layout.ts';
import { I64, i32, i64, type Node, select } from '../nodes.ts';
import type { Meaning } from './common.ts';

const RAX = 0;
const RCX = 1;
const RSI = 6;
const RDI = 7;
const DIRECTION = 0x400;
const ZERO = i64.small(0);

const log2 = (size: IntegerSize): number => (size === 1 ? 0 : size === 2 ? 1 : size === 4 ? 2 : 3);

/** Elements from an address to the end of its page. */
const room = (address: Node, size: IntegerSize): Node =>
  i64.shrU(i64.sub(i64.small(4096), i64.and(address, i64.small(4095))), i64.small(log2(size)));

const minimum = (a: Node, b: Node): Node => select(a, b, i64.ltU(a, b));

interface Pieces {
  /** Elements that are left, an I64 local. */
  readonly left: Node;
  /** Step of an element, negative if DF is set. */
  readonly step: Node;
  readonly backward: Node;
  /** Takes the elements from the count, and goes on or ends. */
  readonly done: (elements: Node) => void;
}

/** The frame of both: a loop over pieces. `piece` moves the registers but the count. */
function inPieces(cpu: Cpu, size: IntegerSize, piece: (pieces: Pieces) => void): void {
  const { f } = cpu;
  const left = f.temporary(I64);
  const backward = f.let(i64.ne(i64.and(cpu.state(VCPU.rflags, 8), i64.small(DIRECTION)), ZERO));
  const step = f.let(select(i64.small(-size), i64.small(size), backward));
  const repeated = f.let(cpu.repeated());
  f.block((end: Label) => {
    f.loop((again: Label) => {
      f.set(left, select(cpu.gpr(RCX, 8), i64.small(1), repeated));
      f.brIf(end, i64.eqz(left));
      piece({
        left,
        step,
        backward,
        done: (elements) => {
          f.brIf(end, i32.eqz(repeated));
          cpu.setGpr(RCX, 8, i64.sub(cpu.gpr(RCX, 8), elements));
          f.brIf(end, i64.eqz(cpu.gpr(RCX, 8)));
          f.if(cpu.state(VCPU.flags, 4), () => cpu.pause());
          f.br(again);
        },
      });
    });
  });
}

function advance(cpu: Cpu, register: number, bytes: Node): void {
  cpu.setGpr(register, 8, i64.add(cpu.gpr(register, 8), bytes));
}

const store: Meaning = (cpu) => {
  const { f } = cpu;
  const size = cpu.instructionSize;
  inPieces(cpu, size, ({ left, step, backward, done }) => {
    const address = f.let(cpu.gpr(RDI, 8));
    const quick = cpu.quickly(address, 'write');
    const elements = f.let(minimum(left, room(address, size)));
    const value = f.let(cpu.gpr(RAX, size));
    const bulk = i32.and(i32.ne(quick, i32.const(-1)), i32.and(i32.eqz(backward), i64.ne(elements, ZERO)));
    const isFill = size === 1 ? bulk : i32.and(bulk, i64.eqz(value));
    f.if(isFill, () => {
      const bytes = f.let(i64.shl(elements, i64.small(log2(size))));
      f.memoryFill(GUEST, quick, i32.wrap(value), i32.wrap(bytes));
      advance(cpu, RDI, bytes);
      done(elements);
    });
    cpu.store(cpu.translate(address, size, 'write'), size, value);
    advance(cpu, RDI, step);
    done(i64.small(1));
  });
};

const move: Meaning = (cpu) => {
  const { f } = cpu;
  const size = cpu.instructionSize;
  inPieces(cpu, size, ({ left, step, backward, done }) => {
    const from = f.let(cpu.gpr(RSI, 8));
    const to = f.let(cpu.gpr(RDI, 8));
    const source = cpu.quickly(from, 'read');
    const target = cpu.quickly(to, 'write');
    const elements = f.let(minimum(left, minimum(f.let(room(from, size)), f.let(room(to, size)))));
    const bytes = f.let(i64.shl(elements, i64.small(log2(size))));
    const here = i32.and(i32.ne(source, i32.const(-1)), i32.ne(target, i32.const(-1)));
    // What was just stored is read again when the target lies a little above the source: element by element.
    const apart = i32.geU(i32.sub(target, source), i32.wrap(bytes));
    const forward = i32.and(i32.eqz(backward), i64.ne(elements, ZERO));
    f.if(i32.and(here, i32.and(apart, forward)), () => {
      f.memoryCopy(GUEST, target, source, i32.wrap(bytes));
      advance(cpu, RSI, bytes);
      advance(cpu, RDI, bytes);
      done(elements);
    });
    const at = cpu.translate(from, size, 'read');
    const value = cpu.load(at, size);
    cpu.store(cpu.translate(to, size, 'write'), size, value);
    advance(cpu, RSI, step);
    advance(cpu, RDI, step);
    done(i64.small(1));
  });
};

export const STRINGS: Readonly<Record<string, Meaning>> = { movsb: move, movsw: move, stosb: store, stosw: store };
