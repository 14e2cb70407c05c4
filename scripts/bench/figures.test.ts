import { describe, expect, test } from 'vitest';
import { MAX_GUEST_CMDLINE } from '../../src/abi/start-info.ts';
import { median, minAndMedian, parseExitCounts, ratio, table } from './figures.ts';
import { LOADS, loadScript, MarkReader, timesOf } from './workload.ts';

describe('figures', () => {
  test('`median()` is the middle, or the mean of the two in the middle', () => {
    expect(median([3, 1, 2])).toBe(2);
    expect(median([4, 1, 2, 3])).toBe(2.5);
  });

  test('`ratio()` compares medians, and gives no figure where there is none', () => {
    expect(ratio([100, 200, 300], [600])).toBe('3.00');
    expect(ratio([], [600])).toBe('-');
    expect(ratio([0], [600])).toBe('-');
    expect(minAndMedian([2000, 1000, 4000])).toBe('1.000 / 2.000');
  });

  test('`table()` is Markdown', () => {
    expect(
      table([
        ['a', 'bcd'],
        ['long', '1'],
      ]),
    ).toBe('| a    | bcd |\n| ---- | --: |\n| long |   1 |');
  });

  test('`parseExitCounts()` adds up the vCPUs', () => {
    const log = [
      'noise',
      'd1v0: exits 10: user system calls 4, hypercalls 6',
      'd1v0: hypercalls 1: 2, 29: 4',
      'd1v1: exits 5: user system calls 5, hypercalls 0',
      'd1v1: hypercalls 29: 1',
    ].join('\n');
    expect(parseExitCounts(log)).toEqual({
      total: 15,
      kinds: { 'user system calls': 9, hypercalls: 6 },
      hypercalls: { 1: 2, 29: 5 },
    });
    expect(parseExitCounts('noise')).toBeNull();
  });
});

describe('workload', () => {
  test('the script fits a guest command line', () => {
    const run = Buffer.from(loadScript()).toString('base64');
    expect(`console=hvc0 domus.run=${run}`.length).toBeLessThan(MAX_GUEST_CMDLINE);
  });

  test('`MarkReader` finds marks cut in pieces and between kernel messages', () => {
    const reader = new MarkReader();
    reader.add('noise @she', 1);
    reader.add('ll 4.50@\n[ 4.6] x@a0 4.61@@a 5.', 20);
    reader.add('00@', 30);
    expect(reader.marks).toEqual([
      { name: 'shell', guestMs: 4500, hostMs: 20 },
      { name: 'a0', guestMs: 4610, hostMs: 20 },
      { name: 'a', guestMs: 5000, hostMs: 30 },
    ]);
    expect(timesOf(reader.marks, [{ name: 'a', title: 'a', command: 'true' }])).toEqual({
      bootMs: 20,
      loads: { a: { guestMs: 390, hostMs: 10 } },
    });
    expect(timesOf(reader.marks, LOADS)).toBeNull();
  });
});
