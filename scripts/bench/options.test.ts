import { expect, test } from 'vitest';
import { readOptions, UsageError } from './options.ts';

test('all engines, QEMU and all loads unless told otherwise', () => {
  expect(readOptions([])).toEqual({
    runs: 5,
    engines: null,
    qemu: true,
    loads: null,
    again: 0,
    cold: false,
    profile: true,
    moves: false,
    json: null,
  });
  expect(readOptions(['--help'])).toBeNull();
});

test('lists are in the order in which the bench runs them', () => {
  const options = readOptions(['--engines', 'wasm,kvm,wasm', '--loads', 'fork,sha256', '--no-qemu', '--no-profile']);
  expect(options).toMatchObject({ engines: ['kvm', 'wasm'], loads: ['sha256', 'fork'], qemu: false, profile: false });
  expect(readOptions(['--loads', 'none'])?.loads).toEqual([]);
});

test.each([
  [['--runs', '0'], '--runs: expected a number from 1 to 1000, found `0'],
  [['--engines', 'tcg'], '--engines: expected names of kvm, wasm, found `tcg'],
  [
    ['--loads', 'sha256,'],
    '--loads: expected names of sha256, ash, fork, gzip, awk, nbody, disk-read, disk-random, disk-write-random, disk-write, net-in, net-out, net-guests, gcc, found `',
  ],
  [['--again', '9'], '--again: expected a number from 0 to 8, found `9'],
  [['more'], 'more'],
])('%j is refused', (args, message) => {
  expect(() => readOptions(args)).toThrow(UsageError);
  expect(() => readOptions(args)).toThrow(message);
});
