/** What a description of a saved domain may lack, and what it may not. */

import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { FEATURE_WORDS, FEATURE_WORDS_MIN } from '../../hypervisor/cpu-features.ts';
import { type Description, decodeDescription, encodeDescription } from './saved-description.ts';

const described = (words: readonly number[]): Description => ({
  ...{ domid: 5, knownDomid: 5, name: 'guest', config: 'name="guest"\n', engine: 'kvm', cpu: { xcr0: 7, words } },
  ...{ tsc: { khz: 1_000_000, ticks: 1 }, store: { pfn: 3, port: 1 }, console: { pfn: 4, port: 2 } },
  ...{ cmdline: '', nodes: [], watches: [] },
});
const read = (words: readonly number[]): Description => decodeDescription(encodeDescription(described(words)));

test('of a domain that was saved before there were so many words of features, the others are 0', () => {
  const before = Array.from({ length: FEATURE_WORDS_MIN }, (_, i) => i + 1);
  const all = Array.from({ length: FEATURE_WORDS }, (_, i) => i + 1);
  expect(read(before).cpu.words).toEqual(all.map((word) => (word <= FEATURE_WORDS_MIN ? word : 0)));
  expect(read(all).cpu.words).toEqual(all);
});

test('of one that was saved by a newer Domus, that is said', () => {
  expect(() => read(new Array<number>(FEATURE_WORDS + 1).fill(0))).toThrow(
    `it has ${FEATURE_WORDS + 1} words of CPU features, and this Domus knows ${FEATURE_WORDS}: it was saved by a newer one`,
  );
  expect(() => read(new Array<number>(FEATURE_WORDS_MIN - 1).fill(0))).toThrow('damaged: cpu.words');
});

test('docs/save-format.md has all words of features', () => {
  const text = readFileSync(new URL('../../../docs/save-format.md', import.meta.url), 'utf8');
  const [, words = ''] = /and CPUID ([^;]*);/.exec(text) ?? [];
  expect(words.split(', ').length).toBe(FEATURE_WORDS);
});
