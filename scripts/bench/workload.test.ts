import { expect, test } from 'vitest';
import { MAX_GUEST_CMDLINE } from '../../src/abi/start-info.ts';
import { LOADS, loadScript, MarkReader, timesOf } from './workload.ts';

test('the script with all loads fits a guest command line', () => {
  const run = Buffer.from(loadScript(LOADS)).toString('base64');
  expect(`console=hvc0 domus.run=${run}`.length).toBeLessThan(MAX_GUEST_CMDLINE);
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
