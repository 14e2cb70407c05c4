import { expect, test } from 'vitest';
import { parseEngineCounts, parseExitCounts } from './statistics.ts';

const LOG = [
  'noise',
  '(XEN) d1v0: engine: instructions decoded 100, ms of translation 7',
  '(XEN) d1v0: instructions by TypeScript 12: mov RvMw,Sw 9, iret/iretd/iretq 2',
  '(XEN) d1v1: engine: instructions decoded 11, ms of translation 1',
  '(XEN) d1v1: instructions by TypeScript 0: ',
  'd1v0: exits 10: user system calls 4, page-table writes emulated 6',
  'd1v0: hypercalls 1: 2, 29: 4',
  'd1v1: exits 5: user system calls 5, page-table writes emulated 0',
  'd1v1: hypercalls 29: 1',
].join('\n');

test('`parseExitCounts()` adds up the vCPUs', () => {
  expect(parseExitCounts(LOG)).toEqual({
    total: 15,
    kinds: { 'user system calls': 9, 'page-table writes emulated': 6 },
    hypercalls: { 1: 2, 29: 5 },
  });
  expect(parseExitCounts('noise')).toBeNull();
});

test('`parseEngineCounts()` adds up the vCPUs, and knows forms with commas', () => {
  expect(parseEngineCounts(LOG)).toEqual({
    counts: { 'instructions decoded': 111, 'ms of translation': 8 },
    rareTotal: 12,
    rare: { 'mov RvMw,Sw': 9, 'iret/iretd/iretq': 2 },
  });
  expect(parseEngineCounts('noise')).toBeNull();
});
