import { afterEach, expect, test } from 'vitest';
import { createDomain, DOMAIN, type Domain } from '../hypervisor/domain.ts';
import { createMachineMemory, PAGE_SIZE } from '../machine/memory.ts';
import { CopiedMemory } from './copied-memory.ts';
import { hostCalls } from './libc.ts';

const PAGES = 2048;
const unusable = hostCalls() === null ? 'memory cannot be shared here' : null;
const made: CopiedMemory[] = [];
afterEach(() => {
  for (const memory of made.splice(0)) memory.close();
});

function guest(pages = PAGES): { readonly domain: Domain; readonly memory: CopiedMemory; readonly u8: Uint8Array } {
  const domain = createDomain(createMachineMemory(pages, pages), 1, 1, new Uint8Array(16));
  const memory = CopiedMemory.create(domain);
  if (memory === null) throw new Error('checked before');
  made.push(memory);
  return { domain, memory, u8: domain.machine.u8 };
}

const at = (frame: number, offset = 0): number => frame * PAGE_SIZE + offset;

test('a copy has the memory of its moment, and each has its own from then on', (context) => {
  if (unusable !== null) return context.skip(unusable);
  const parent = guest();
  for (let frame = 0; frame < PAGES; frame += 3) parent.u8[at(frame, frame)] = 1 + (frame % 250);
  const { memory, release } = parent.memory.freeze(false);
  expect(memory.changes).toBe(null);
  parent.u8[at(3)] = 77;
  const child = guest();
  child.memory.adopt(memory);
  release();
  for (let frame = 0; frame < PAGES; frame += 3)
    expect(child.u8[at(frame, frame)], `frame ${frame}`).toBe(1 + (frame % 250));
  expect(child.u8[at(3)]).toBe(0);
  child.u8[at(6)] = 88;
  expect([parent.u8[at(3)], parent.u8[at(6)], child.u8[at(3)], child.u8[at(6)]]).toEqual([77, 0, 0, 88]);
  expect(parent.domain.i32[DOMAIN.memoryIsCopy >> 2]).toBe(1);
  expect(child.domain.i32[DOMAIN.memoryIsCopy >> 2]).toBe(1);
});

test('later copies get what was written since, of a copy too', (context) => {
  if (unusable !== null) return context.skip(unusable);
  const parent = guest();
  parent.u8[at(5)] = 5;
  parent.u8[at(9)] = 9;
  parent.memory.freeze(false).release();
  parent.u8[at(5)] = 55;
  parent.u8.fill(6, at(6), at(8));
  const second = parent.memory.freeze(false);
  expect(second.memory.changes).not.toBe(null);
  const child = guest();
  child.memory.adopt(second.memory);
  second.release();
  expect([5, 6, 7, 8, 9].map((frame) => child.u8[at(frame)])).toEqual([55, 6, 6, 0, 9]);
  child.u8[at(9)] = 99;
  const third = child.memory.freeze(false);
  const grandchild = guest();
  grandchild.memory.adopt(third.memory);
  third.release();
  expect([5, 6, 7, 8, 9].map((frame) => grandchild.u8[at(frame)])).toEqual([55, 6, 6, 0, 99]);
  expect(parent.u8[at(9)]).toBe(9);
});

test('long runs of what was written since are its own too, of a copy as well', (context) => {
  if (unusable !== null) return context.skip(unusable);
  const parent = guest();
  for (let frame = 0; frame < PAGES; frame++) parent.u8[at(frame)] = 1;
  parent.memory.freeze(false).release();
  for (let frame = 100; frame < 300; frame++) parent.u8[at(frame)] = 2 + (frame % 200);
  parent.u8[at(1500)] = 3;
  const second = parent.memory.freeze(false);
  expect(second.memory.changes).not.toBe(null);
  const child = guest();
  child.memory.adopt(second.memory);
  second.release();
  parent.u8.fill(250, at(100), at(300));
  child.u8[at(150)] = 251;
  const third = child.memory.freeze(false);
  child.u8[at(160)] = 252;
  const grandchild = guest();
  grandchild.memory.adopt(third.memory);
  third.release();
  const expected = (frame: number): number =>
    frame === 150 ? 251 : frame === 1500 ? 3 : frame >= 100 && frame < 300 ? 2 + (frame % 200) : 1;
  for (let frame = 0; frame < PAGES; frame++) expect(grandchild.u8[at(frame)], `frame ${frame}`).toBe(expected(frame));
  expect([parent.u8[at(150)], child.u8[at(160)], child.u8[at(161)]]).toEqual([250, 252, 163]);
});

test('when much was written there is a new base', (context) => {
  if (unusable !== null) return context.skip(unusable);
  const parent = guest();
  parent.memory.freeze(false).release();
  for (let frame = 0; frame < PAGES / 2; frame++) parent.u8[at(frame)] = 1 + (frame % 200);
  const { memory, release } = parent.memory.freeze(false);
  expect(memory.changes).toBe(null);
  const child = guest();
  child.memory.adopt(memory);
  release();
  for (let frame = 0; frame < PAGES; frame++)
    expect(child.u8[at(frame)], `frame ${frame}`).toBe(frame < PAGES / 2 ? 1 + (frame % 200) : 0);
});

test('a new base has what its memory was never touched for', async (context) => {
  if (unusable !== null) return context.skip(unusable);
  const parent = guest();
  for (let frame = 0; frame < PAGES; frame++) parent.u8[at(frame)] = 1 + (frame % 200);
  const first = parent.memory.freeze(false);
  const child = guest();
  child.memory.adopt(first.memory);
  first.release();
  for (let frame = 0; frame < PAGES / 2; frame++) child.u8[at(frame, 1)] = 7;
  const expected = (frame: number): number[] => [1 + (frame % 200), frame < PAGES / 2 ? 7 : 0];
  const copies = [child.memory.freeze(false)];
  // And part by part, over a base that is one.
  for (let frame = 0; frame < PAGES / 2; frame++) child.u8[at(frame, 2)] = 9;
  await child.memory.prepare(async (act) => act());
  copies.push(child.memory.freeze(false));
  for (const [i, { memory, release }] of copies.entries()) {
    expect(memory.changes).toBe(null);
    const copy = guest();
    copy.memory.adopt(memory);
    release();
    for (let frame = 0; frame < PAGES; frame++)
      expect([...copy.u8.subarray(at(frame), at(frame, 3))], `copy ${i}, frame ${frame}`).toEqual([
        ...expected(frame),
        i === 1 && frame < PAGES / 2 ? 9 : 0,
      ]);
  }
});

test('a base is made part by part while the domain runs between the parts', async (context) => {
  if (unusable !== null) return context.skip(unusable);
  const pages = 10_000;
  const parent = guest(pages);
  for (let frame = 0; frame < pages; frame++) parent.u8[at(frame)] = 1 + (frame % 200);
  let parts = 0;
  await parent.memory.prepare(async (act) => {
    act();
    // Before and behind what has been done.
    parent.u8[at(100, 1)]++;
    parent.u8[at(pages - 1, 1)]++;
    parts++;
  });
  expect(parts).toBeGreaterThan(2);
  const { memory, release } = parent.memory.freeze(false);
  expect(memory.changes).not.toBe(null);
  const child = guest(pages);
  child.memory.adopt(memory);
  release();
  for (let frame = 0; frame < pages; frame++) expect(child.u8[at(frame)], `frame ${frame}`).toBe(1 + (frame % 200));
  expect([child.u8[at(100, 1)], child.u8[at(pages - 1, 1)]]).toEqual([parts, parts]);
});

test('a base whose making was cut short costs nothing but itself', async (context) => {
  if (unusable !== null) return context.skip(unusable);
  const pages = 10_000;
  const parent = guest(pages);
  for (let frame = 0; frame < pages; frame++) parent.u8[at(frame)] = 1 + (frame % 200);
  let parts = 0;
  const cutShort = parent.memory.prepare(async (act) => {
    if (++parts === 2) throw new Error('enough');
    act();
  });
  await expect(cutShort).rejects.toThrow('enough');
  const { memory, release } = parent.memory.freeze(false);
  const child = guest(pages);
  child.memory.adopt(memory);
  release();
  for (let frame = 0; frame < pages; frame++) {
    expect(parent.u8[at(frame)]).toBe(1 + (frame % 200));
    expect(child.u8[at(frame)], `frame ${frame}`).toBe(1 + (frame % 200));
  }
});

test('a page that was given back is zeros in a copy', (context) => {
  if (unusable !== null) return context.skip(unusable);
  const parent = guest();
  parent.u8.fill(1, at(10), at(12));
  parent.memory.freeze(false).release();
  // As vcpu-host.ts does it.
  const calls = hostCalls();
  parent.domain.i32[DOMAIN.mappedAnew >> 2] = 1;
  calls?.mapAt(calls.addressOf(parent.u8) + at(10), PAGE_SIZE, -1, 0, 'write');
  expect(parent.u8[at(10)]).toBe(0);
  const { memory, release } = parent.memory.freeze(false);
  const child = guest();
  child.memory.adopt(memory);
  release();
  expect([child.u8[at(10)], child.u8[at(11)]]).toEqual([0, 1]);
});

test('memory that others share stays where it is', (context) => {
  if (unusable !== null) return context.skip(unusable);
  const parent = guest();
  parent.u8[at(1)] = 1;
  const { memory, release } = parent.memory.freeze(true);
  expect(parent.domain.i32[DOMAIN.memoryIsCopy >> 2]).toBe(0);
  const child = guest();
  child.memory.adopt(memory);
  release();
  expect(child.u8[at(1)]).toBe(1);
});

test('a memory of another size is refused', (context) => {
  if (unusable !== null) return context.skip(unusable);
  const { memory, release } = guest().memory.freeze(false);
  expect(() => guest(PAGES / 2).memory.adopt(memory)).toThrow(/^a memory of \d+ bytes, where \d+ are expected$/);
  release();
});

test('room for what was written since is made before, for less and for more than is written in the end', async (context) => {
  if (unusable !== null) return context.skip(unusable);
  for (const more of [0, 400]) {
    const parent = guest();
    for (let frame = 0; frame < PAGES; frame++) parent.u8[at(frame)] = 1;
    parent.memory.freeze(false).release();
    await parent.memory.makeRoom();
    for (let frame = 100; frame < 140; frame++) parent.u8[at(frame)] = frame;
    await parent.memory.makeRoom();
    for (let frame = 1000; frame < 1000 + more; frame++) parent.u8[at(frame)] = frame % 200;
    const { memory, release } = parent.memory.freeze(false);
    parent.u8.fill(250);
    const child = guest();
    child.memory.adopt(memory);
    release();
    for (let frame = 0; frame < PAGES; frame++) {
      const isMore = frame >= 1000 && frame < 1000 + more;
      const expected = frame >= 100 && frame < 140 ? frame : isMore ? frame % 200 : 1;
      expect(child.u8[at(frame)], `frame ${frame}`).toBe(expected);
    }
    expect(child.u8[at(1999)]).toBe(1);
  }
});

test('room that is still being made is used, or left, without harm', async (context) => {
  if (unusable !== null) return context.skip(unusable);
  for (const isUsed of [true, false]) {
    const parent = guest();
    parent.u8[at(1)] = 1;
    parent.memory.freeze(false).release();
    parent.u8.fill(9, at(5), at(505));
    const made = parent.memory.makeRoom();
    if (!isUsed) parent.memory.leaveRoom();
    const { memory, release } = parent.memory.freeze(false);
    const child = guest();
    child.memory.adopt(memory);
    release();
    await made;
    expect([1, 4, 5, 504, 505].map((frame) => child.u8[at(frame)])).toEqual([1, 0, 9, 9, 0]);
  }
});

test('more runs than there may be mappings are a copy`s own all the same', (context) => {
  if (unusable !== null) return context.skip(unusable);
  const pages = 20_000;
  const parent = guest(pages);
  parent.memory.freeze(false).release();
  const isWritten = (frame: number): boolean => (frame < 9000 ? frame % 2 === 0 : frame >= 10_000 && frame < 10_100);
  for (let frame = 0; frame < pages; frame++) if (isWritten(frame)) parent.u8[at(frame)] = 1 + (frame % 250);
  const { memory, release } = parent.memory.freeze(false);
  expect(memory.changes).not.toBe(null);
  const child = guest(pages);
  child.memory.adopt(memory);
  release();
  parent.u8.fill(255);
  for (let frame = 0; frame < pages; frame++)
    if (child.u8[at(frame)] !== (isWritten(frame) ? 1 + (frame % 250) : 0)) expect.fail(`frame ${frame}`);
});

test('what a copy has mapped before is what it is in the end, whatever is written until then', async (context) => {
  if (unusable !== null) return context.skip(unusable);
  // Within the room, beyond it, so much that there is a new base, and none that is worth a mapping.
  const cases = [
    { first: 40, more: 20 },
    { first: 40, more: 0 },
    { first: 40, more: 400 },
    { first: 40, more: 900 },
    { first: 4, more: 3 },
  ];
  for (const { first, more } of cases) {
    const parent = guest();
    for (let frame = 0; frame < PAGES; frame++) parent.u8[at(frame)] = 1;
    parent.memory.freeze(false).release();
    expect(parent.memory.early()?.changes).toBe(null);
    for (let frame = 100; frame < 100 + first; frame++) parent.u8[at(frame)] = 2;
    await parent.memory.makeRoom();
    const early = parent.memory.early();
    expect(early?.changes).not.toBe(null);
    const child = guest();
    if (early !== null) child.memory.expect(early);
    // Before and behind the others, and some of them again.
    for (let frame = 110 - more; frame < 110; frame++) parent.u8[at(frame & (PAGES - 1))] = 3;
    parent.u8[at(1500)] = 4;
    const { memory, release } = parent.memory.freeze(false, parent.memory.look());
    const expected = Array.from({ length: PAGES }, (_, frame) => parent.u8[at(frame)]);
    parent.u8.fill(250);
    child.memory.adopt(memory);
    release();
    for (let frame = 0; frame < PAGES; frame++)
      if (child.u8[at(frame)] !== expected[frame]) expect.fail(`${first} and ${more}: frame ${frame}`);
    // And it can be copied itself.
    child.u8[at(7)] = 77;
    const again = child.memory.freeze(false);
    const grandchild = guest();
    grandchild.memory.adopt(again.memory);
    again.release();
    expect([grandchild.u8[at(7)], grandchild.u8[at(1500)], grandchild.u8[at(105)]]).toEqual([77, 4, expected[105]]);
  }
});

test('a copy that has mapped what is no use takes all of it anew', async (context) => {
  if (unusable !== null) return context.skip(unusable);
  const [parent, other] = [guest(), guest()];
  for (const { memory, u8 } of [parent, other]) {
    u8[at(3)] = 3;
    memory.freeze(false).release();
    u8.fill(9, at(50), at(90));
    await memory.makeRoom();
  }
  const child = guest();
  const early = other.memory.early();
  if (early !== null) child.memory.expect(early);
  parent.u8.fill(5, at(60), at(70));
  const { memory, release } = parent.memory.freeze(false);
  child.memory.adopt(memory);
  release();
  expect([3, 49, 50, 60, 69, 70, 90].map((frame) => child.u8[at(frame)])).toEqual([3, 0, 9, 5, 5, 9, 0]);
  // A file that is something else.
  expect(() => child.memory.expect({ base: '/proc/self/exe', changes: null })).toThrow(/^a memory of \d+ bytes/);
});
