import { expect, test } from 'vitest';
import { median, minAndMedian, ratio, table } from './figures.ts';

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
