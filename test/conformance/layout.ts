/**
 * The little machine that conformance cases run in: where its pages are, and the code around each tested instruction.
 *
 *   00000000'00000000  one page, so that addresses may wrap around           read, write
 *   00000000'10000000  CODE    before and after each case (CASE_CODE bytes)    read, execute
 *   00000000'10100000  SLOTS   the tested instructions, SLOT_BYTES each        read, execute; the page behind is not there
 *   00000000'10200000  the same, for the copy stub to write to                 read, write
 *   00000000'10300000  STAGING what goes there                                 read, write
 *   00000000'10400000  TRAPS   a page of INT3: where branches should go        read, execute
 *   00000000'10500000  IN      the state before each case (STATE)              read, write
 *   00000000'10600000  OUT     the state after it                              read, write
 *   00000000'10700000  CONTROL number of the case that runs                    read, write
 *   00000000'40000000  DATA    for the tested instructions; DATA_PAGES         each its own rights, not executable
 *   00007fff'ffffe000  the last page of user addresses in Linux' eyes          read, write
 *   ffff8880'xxxxxxxx  all of the first 512 GiB again
 *   ffffffff'fffff000  the last page                                           read, write
 *
 * A batch runs without leaving the guest until an instruction faults. Its code, for case k:
 *
 *       mov esp, IN k
 *       mov eax, [IN k]; mov [OUT k-1 + fx], eax
 *       mov eax, 7; mov edx, 0         flags stay
 *       xsave64 [OUT k-1]              FP and vector state of the case before, whether it faulted or not
 *       xrstor64 [IN k]
 *       mov dword [CONTROL], k
 *       mov rsp, IN k + flags; popfq
 *       mov rax, [IN k] ... mov r15, [IN k + 120]
 *       jmp SLOT k                     the instruction, then jmp back
 *       mov [OUT k], rax ... mov [OUT k + 120], r15
 *       mov rsp, OUT k + flags + 8; pushfq
 */

import type { MachineMemory } from '../../src/machine/memory.ts';
import { createMachineMemory, PAGE_SIZE } from '../../src/machine/memory.ts';
import { NO_EXECUTE, PageTables, USER, WRITABLE } from './page-tables.ts';

/** Where things are in a state record: IN and OUT. From `fx` on it is an XSAVE area: header, upper halves of the YMM registers. */
export const STATE = { gpr: 0, rflags: 128, fx: 192, header: 704, upper: 768, SIZE: 1024 } as const;
export const STATE_WORDS = STATE.SIZE / 4;

/** Cases in a batch: slots 0 to SLOTS - 1 without SPILL_SLOT; the last case is the end. */
export const SLOT_BYTES = 64;
const SLOT_PAGES = 2;
export const SLOTS = (SLOT_PAGES * PAGE_SIZE) / SLOT_BYTES;
/** Its instruction may cross into the next page, so SPILL_SLOT behind it stays free. */
export const CROSSING_SLOT = PAGE_SIZE / SLOT_BYTES - 1;
export const SPILL_SLOT = CROSSING_SLOT + 1;
/** Its instruction may cross into the page that is not there. */
export const EDGE_SLOT = SLOTS - 1;

export const CODE_VA = 0x10000000;
const CASE_CODE = 512;
export const SLOTS_VA = 0x10100000;
const SLOTS_ALIAS_VA = 0x10200000;
const STAGING_VA = 0x10300000;
export const TRAPS_VA = 0x10400000;
const IN_VA = 0x10500000;
const OUT_VA = 0x10600000;
const CONTROL_VA = 0x10700000;
/** Far from all else: a bit number of 32 bits reaches 256 MiB in either direction. */
export const DATA_VA = 0x40000000;
export const HIGH_ALIAS = 0xffff888000000000n;
export const LAST_LOW_PAGE = 0x7fffffffe000n;
export const LAST_PAGE = 0xfffffffffffff000n;

/** Rights of the pages at DATA_VA. */
export const DATA_PAGES = ['absent', 'rw', 'rw', 'ro', 'absent', 'rw', 'supervisor', 'rw', 'absent'] as const;
export type DataRights = (typeof DATA_PAGES)[number];

export const ROOT_FRAME = 1;
export const GDT_FRAME = 2;
const FIRST_TABLE = 3;
const LAST_TABLE = 63;
const FIRST_FRAME = 64;

const pagesOf = (bytes: number): number => Math.ceil(bytes / PAGE_SIZE);
const CODE_PAGES = pagesOf(SLOTS * CASE_CODE) + 1;
const STATE_PAGES = pagesOf(SLOTS * STATE.SIZE);

/** First frame of each area. */
const CODE_FRAME = FIRST_FRAME;
const SLOTS_FRAME = CODE_FRAME + CODE_PAGES;
const STAGING_FRAME = SLOTS_FRAME + SLOT_PAGES;
const TRAPS_FRAME = STAGING_FRAME + SLOT_PAGES;
const IN_FRAME = TRAPS_FRAME + 1;
const OUT_FRAME = IN_FRAME + STATE_PAGES;
const CONTROL_FRAME = OUT_FRAME + STATE_PAGES;
const DATA_FRAME = CONTROL_FRAME + 1;
/** Frames that hold data: those of DATA_PAGES that are there, then the last low page, the last page and the first. */
const DATA_FRAMES = DATA_PAGES.filter((rights) => rights !== 'absent').length;
const LAST_LOW_FRAME = DATA_FRAME + DATA_FRAMES;
const LAST_FRAME = LAST_LOW_FRAME + 1;
const FIRST_PAGE_FRAME = LAST_FRAME + 1;
const FRAMES = FIRST_PAGE_FRAME + 1;

/** Everything in memory 0 that tested instructions may change: one range. */
export const DATA_OFFSET = DATA_FRAME * PAGE_SIZE;
export const DATA_BYTES = (FRAMES - DATA_FRAME) * PAGE_SIZE;
/** Where in that range the pages of DATA_PAGES are; -1 = absent. */
export const DATA_OFFSETS: readonly number[] = dataOffsets();

function dataOffsets(): number[] {
  let next = 0;
  return DATA_PAGES.map((rights) => {
    if (rights === 'absent') return -1;
    next += PAGE_SIZE;
    return next - PAGE_SIZE;
  });
}

export const IN_OFFSET = IN_FRAME * PAGE_SIZE;
export const OUT_OFFSET = OUT_FRAME * PAGE_SIZE;
export const STAGING_OFFSET = STAGING_FRAME * PAGE_SIZE;
export const CONTROL_OFFSET = CONTROL_FRAME * PAGE_SIZE;
/** Behind the last case: its FP state is saved, then INT3. */
const END_VA = CODE_VA + (CODE_PAGES - 1) * PAGE_SIZE;
/** The stub that copies the staged instructions into their slots and jumps to r8. */
export const START_VA = END_VA + 256;
/** A loop of ecx turns, then INT3. */
export const LOOP_VA = END_VA + 384;

export const caseVa = (slot: number): number => CODE_VA + slot * CASE_CODE;
export const slotVa = (slot: number): number => SLOTS_VA + slot * SLOT_BYTES;
/** Where the slot's instruction returns to. */
export const afterVa = (slot: number): number => caseVa(slot) + AFTER_OFFSET;

export function createMachine(): MachineMemory {
  const machine = createMachineMemory(FRAMES, FRAMES);
  let table = FIRST_TABLE;
  mapAll(
    new PageTables(machine, ROOT_FRAME, () => {
      if (table > LAST_TABLE) throw new Error('bug: too many page tables');
      return table++;
    }),
  );
  const root = (ROOT_FRAME * PAGE_SIZE) / 4;
  const alias = Number((HIGH_ALIAS >> 39n) & 511n) * 2;
  machine.u32.copyWithin(root + alias, root, root + 2);
  machine.u8.fill(0xcc, TRAPS_FRAME * PAGE_SIZE, (TRAPS_FRAME + 1) * PAGE_SIZE);
  const lastPage = (CODE_FRAME + CODE_PAGES - 1) * PAGE_SIZE;
  machine.u8.set(END_CODE, lastPage);
  machine.u8.set(START_CODE, lastPage + START_VA - END_VA);
  machine.u8.set([0xff, 0xc9, 0x75, 0xfc, 0xcc], lastPage + LOOP_VA - END_VA);
  for (let slot = 0; slot < SLOTS; slot++) machine.u8.set(caseCode(slot), CODE_FRAME * PAGE_SIZE + slot * CASE_CODE);
  return machine;
}

function mapAll(tables: PageTables): void {
  const range = (va: number, frame: number, pages: number, flags: number, high = 0): void => {
    for (let i = 0; i < pages; i++) tables.map(BigInt(va + i * PAGE_SIZE), frame + i, flags, high);
  };
  range(CODE_VA, CODE_FRAME, CODE_PAGES, USER);
  range(SLOTS_VA, SLOTS_FRAME, SLOT_PAGES, USER);
  range(SLOTS_ALIAS_VA, SLOTS_FRAME, SLOT_PAGES, USER | WRITABLE, NO_EXECUTE);
  range(STAGING_VA, STAGING_FRAME, SLOT_PAGES, USER | WRITABLE, NO_EXECUTE);
  range(TRAPS_VA, TRAPS_FRAME, 1, USER);
  range(IN_VA, IN_FRAME, STATE_PAGES, USER | WRITABLE, NO_EXECUTE);
  range(OUT_VA, OUT_FRAME, STATE_PAGES, USER | WRITABLE, NO_EXECUTE);
  range(CONTROL_VA, CONTROL_FRAME, 1, USER | WRITABLE, NO_EXECUTE);
  let frame = DATA_FRAME;
  DATA_PAGES.forEach((rights, i) => {
    if (rights === 'absent') return;
    const flags = rights === 'rw' ? USER | WRITABLE : rights === 'ro' ? USER : WRITABLE;
    range(DATA_VA + i * PAGE_SIZE, frame++, 1, flags, NO_EXECUTE);
  });
  tables.map(LAST_LOW_PAGE, LAST_LOW_FRAME, USER | WRITABLE, NO_EXECUTE);
  tables.map(LAST_PAGE, LAST_FRAME, USER | WRITABLE, NO_EXECUTE);
  tables.map(0n, FIRST_PAGE_FRAME, USER | WRITABLE, NO_EXECUTE);
}

const dword = (value: number): number[] => [
  value & 0xff,
  (value >> 8) & 0xff,
  (value >> 16) & 0xff,
  (value >> 24) & 0xff,
];
/** `op reg, [va]` with a REX prefix. */
const absolute = (opcode: readonly number[], reg: number, va: number): number[] => [
  0x48 | (reg >> 3 ? 4 : 0),
  ...opcode,
  0x04 | ((reg & 7) << 3),
  0x25,
  ...dword(va),
];
/** Source of encodings: Intel SDM vol. 2. */
const xsave64 = (va: number): number[] => absolute([0x0f, 0xae], 4, va);
const xrstor64 = (va: number): number[] => absolute([0x0f, 0xae], 5, va);
/** x87, SSE and AVX. */
export const XCR0 = 7;
const ALL_STATE = [0xb8, XCR0, 0, 0, 0, 0xba, 0, 0, 0, 0];
const loadGpr = (reg: number, va: number): number[] => absolute([0x8b], reg, va);
const storeGpr = (reg: number, va: number): number[] => absolute([0x89], reg, va);
const jump = (from: number, to: number): number[] => [0xe9, ...dword(to - from - 5)];
const movEsp = (va: number): number[] => [0xbc, ...dword(va)];

/** PVM's emulator may take the first access to a page, and knows no XSAVE: mov eax, [from]; mov [to + fx], eax */
const touch = (from: number, to: number): number[] => [
  ...[0x8b, 0x04, 0x25, ...dword(from)],
  ...[0x89, 0x04, 0x25, ...dword(to + STATE.fx)],
];

function before(slot: number): number[] {
  const state = IN_VA + slot * STATE.SIZE;
  // Slot 0 has none before it: what it saves is written over.
  const last = OUT_VA + (slot === 0 ? 0 : previous(slot)) * STATE.SIZE;
  const code = [
    ...movEsp(state),
    ...touch(state, last),
    ...ALL_STATE,
    ...xsave64(last + STATE.fx),
    ...xrstor64(state + STATE.fx),
    ...[0xc7, 0x04, 0x25, ...dword(CONTROL_VA), ...dword(slot)],
    ...movEsp(state + STATE.rflags),
    0x9d,
  ];
  for (let reg = 0; reg < 16; reg++) code.push(...loadGpr(reg, state + STATE.gpr + 8 * reg));
  return [...code, ...jump(caseVa(slot) + code.length, slotVa(slot))];
}

const previous = (slot: number): number => (slot - 1 === SPILL_SLOT ? slot - 2 : slot - 1);
export const following = (slot: number): number => (slot + 1 === SPILL_SLOT ? slot + 2 : slot + 1);
const AFTER_OFFSET = before(1).length;

function caseCode(slot: number): number[] {
  const state = OUT_VA + slot * STATE.SIZE;
  const code = before(slot);
  for (let reg = 0; reg < 16; reg++) code.push(...storeGpr(reg, state + STATE.gpr + 8 * reg));
  code.push(...movEsp(state + STATE.rflags + 8), 0x9c);
  code.push(...jump(caseVa(slot) + code.length, caseVa(following(slot))));
  if (code.length > CASE_CODE) throw new Error('bug: the code of a case is too long');
  return code;
}

const END_CODE = [
  ...movEsp(IN_VA),
  ...touch(IN_VA, OUT_VA + EDGE_SLOT * STATE.SIZE),
  ...ALL_STATE,
  ...xsave64(OUT_VA + EDGE_SLOT * STATE.SIZE + STATE.fx),
  0xcc,
];
/** Address behind the INT3 after the last case. */
export const END_OF_CASES: number = END_VA + END_CODE.length;

/** cld; rep movsq from the staging pages to the slots; jmp r8 */
const START_CODE = [
  ...[0xfc, 0xbe, ...dword(STAGING_VA), 0xbf, ...dword(SLOTS_ALIAS_VA)],
  ...[0xb9, ...dword((SLOT_PAGES * PAGE_SIZE) / 8), 0xf3, 0x48, 0xa5, 0x41, 0xff, 0xe0],
];

/** What goes at the end of a slot's instruction. */
export const jumpAfter = (from: number, slot: number): number[] => jump(from, afterVa(slot));
