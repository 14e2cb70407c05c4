import { spawnSync } from 'node:child_process';
import { expect, test } from 'vitest';
import { LOADS, loadScript, MarkReader, repeated, timesOf } from './workload.ts';

test('the script of all loads is one that a shell can read', () => {
  const script = loadScript(LOADS, { sourcePort: 1, sinkPort: 2 });
  expect(spawnSync('sh', ['-n'], { input: script, encoding: 'utf8' })).toMatchObject({ status: 0, stderr: '' });
  for (const { name } of LOADS) expect(script).toContain(`\nm ${name}0\n`);
});

test('a load that runs again is a load of its own behind the first', () => {
  const [first, ...again] = repeated(LOADS.slice(0, 1), 2);
  expect(first).toBe(LOADS[0]);
  expect(again.map(({ name, title }) => [name, title])).toEqual([
    [`${first.name}-2`, '- time 2'],
    [`${first.name}-3`, '- time 3'],
  ]);
  const script = loadScript([first, ...again]);
  const marks = [...script.matchAll(/^m (.*)$/gm)].map(([, name]) => name);
  expect(new Set(marks).size).toBe(marks.length);
});

test('`MarkReader` finds marks cut in pieces and between kernel messages', () => {
  const told: string[] = [];
  const reader = new MarkReader((mark) => told.push(mark.name));
  reader.add('noise @she', 1);
  reader.add('ll 4.50@\n[ 4.6] x@a0 4.61@@a 5.', 20);
  reader.add('00@', 30);
  expect(reader.marks).toEqual([
    { name: 'shell', guestMs: 4500, hostMs: 20 },
    { name: 'a0', guestMs: 4610, hostMs: 20 },
    { name: 'a', guestMs: 5000, hostMs: 30 },
  ]);
  expect(told).toEqual(['shell', 'a0', 'a']);
  expect(timesOf(reader.marks, [{ name: 'a', title: 'a', command: 'true', wanted: null }])).toEqual({
    bootMs: 20,
    loads: { a: { guestMs: 390, hostMs: 10 } },
  });
  expect(timesOf(reader.marks, LOADS)).toBeNull();
});
