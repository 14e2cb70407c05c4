import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { openLogFile, rotateLog } from './log-file.ts';

let folder = '';
let path = '';
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'domus-log-'));
  path = join(folder, 'log', 'one.log');
});
afterEach(() => rmSync(folder, { recursive: true }));

const text = (file: string): string => readFileSync(file, 'utf8');

test('a log is added to, in a folder that is made for it and is its owner`s only', () => {
  openLogFile(path, 1000, 1).add('a\n');
  const log = openLogFile(path, 1000, 1);
  log.add('b\n');
  log.add(Uint8Array.of(0x63, 0x0a));
  expect(text(path)).toBe('a\nb\nc\n');
  expect(statSync(path).mode & 0o077).toBe(0);
  expect(statSync(join(folder, 'log')).mode & 0o077).toBe(0);
});

test('a log that has grown becomes .1, and no more is kept than was asked for', () => {
  const log = openLogFile(path, 10, 2);
  for (let i = 0; i < 100; i++) log.add(`line ${String(i).padStart(2, '0')}\n`);
  expect(readdirSync(join(folder, 'log')).sort()).toEqual(['one.log', 'one.log.1', 'one.log.2']);
  expect(text(`${path}.2`) + text(`${path}.1`) + text(path)).toMatch(/^line 9\d\n(?:line 9\d\n)*line 99\n$/);
  for (const file of [path, `${path}.1`, `${path}.2`]) expect(statSync(file).size).toBeLessThanOrEqual(10 + 8);
});

test('of two processes with the same log, the one that comes later sees that it was replaced', () => {
  const [one, two] = [openLogFile(path, 10, 1), openLogFile(path, 10, 1)];
  one.add('0123456789ab\n');
  two.add('0123456789cd\n');
  one.add('first of the next\n');
  // It believes that the log is full.
  two.add('second of the next\n');
  expect(text(path) + text(`${path}.1`)).toContain('second of the next\n');
  expect(existsSync(`${path}.2`)).toBe(false);
});

test('a log that cannot be written holds nothing up', () => {
  const log = openLogFile(path, 10, 1);
  log.add('a');
  rmSync(join(folder, 'log'), { recursive: true });
  writeFileSync(join(folder, 'log'), 'no folder');
  log.add('b');
});

test('rotating passes over what is not there', () => {
  writeFileSync(`${folder}/x.1`, 'one');
  rotateLog(join(folder, 'x'), 3);
  expect(readdirSync(folder)).toEqual(['x.2']);
});
