import { expect, it } from 'vitest';
import { formatCpuSet, parseCpuSet } from './cpu-set.ts';

const show = (text: string, cpus = 4): string => {
  const set = parseCpuSet(text, cpus);
  return set === null ? 'refused' : formatCpuSet(set, cpus);
};

// Source: tools/xl/check-xl-vcpupin-parse, its cases for one node.
it.each([
  ['foo', 'refused'],
  ['all', 'all'],
  ['nodes:all', 'all'],
  ['all,nodes:all', 'all'],
  ['all,^nodes:0,all', 'all'],
  ['^0', 'none'],
  ['2', '2'],
  ['all,^0', '1-3'],
  ['all,^1', '0,2-3'],
  ['all,^2', '0-1,3'],
  ['all,^3', '0-2'],
  ['1-2', '1-2'],
  ['0-3', 'all'],
  ['nodes:0,^1', '0,2-3'],
])('%s is %s', (text, shown) => {
  expect(show(text)).toBe(shown);
});

it.each([
  ['99', 'none'],
  ['2-99', '2-3'],
  ['node:0', 'all'],
  ['node:1', 'none'],
  ['nodes:0-1,^3', '0-2'],
  ['all,^node:0', 'none'],
  ['nodes:^0', 'refused'],
  ['^all', 'refused'],
  ['^nodes:all', 'refused'],
  ['0, 2', '0,2'],
  ['', 'none'],
  ['3-1', 'refused'],
  ['1,', '1'],
  ['-1', 'refused'],
  ['^', 'refused'],
  ['1-2-3', 'refused'],
  ['99999999999', 'refused'],
])('%s is %s', (text, shown) => {
  expect(show(text)).toBe(shown);
});

it('knows what is all by the number of CPUs', () => {
  expect(show('0-1', 2)).toBe('all');
  expect(show('0', 1)).toBe('all');
  expect(parseCpuSet('5,1,3-4,1', 8)).toEqual([1, 3, 4, 5]);
});
