import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { SharesFile } from './cpu-shares.ts';

const root = mkdtempSync(join(tmpdir(), 'domus-shares-'));
const opened: SharesFile[] = [];
afterAll(() => {
  for (const file of opened) file.close();
  rmSync(root, { recursive: true });
});

function open(folder: string, key: number): SharesFile {
  const file = new SharesFile(join(root, folder), key);
  opened.push(file);
  return file;
}

const said = ({ count, virtualNs, cpus }: SharesFile) =>
  Array.from({ length: count }, (_, i) => [virtualNs[i], cpus[i]]).sort((a, b) => a[0] - b[0]);

it('tells what the others have said, and what it has come to since', () => {
  const [a, b, c] = [1, 2, 129].map((key) => open('three', key));
  for (const file of [a, b, c]) file.read(1e9);
  expect(said(a)).toEqual([]);
  a.write(1e9, 100, 1, true, 3);
  b.write(1e9, 500, 0.5, true, 0xffffffff);
  // Its first choice is that of a.
  c.read(1e9);
  c.write(1e9, 700, 0, true, 1);
  a.read(1e9 + 40);
  expect(said(a)).toEqual([
    [520, 0xffffffff],
    [700, 1],
  ]);
  b.read(1e9 + 40);
  expect(said(b)).toEqual([
    [140, 3],
    [700, 1],
  ]);
});

it('who wants no CPU, or has said nothing for long, does not count', () => {
  const [a, b] = [1, 2].map((key) => open('silent', key));
  b.read(1e9);
  b.write(1e9, 100, 1, true, 1);
  a.read(1e9 + 250e6);
  expect(a.count).toBe(1);
  a.read(1e9 + 350e6);
  expect(a.count).toBe(0);
  b.write(2e9, 100, 1, false, 1);
  a.read(2e9);
  expect(a.count).toBe(0);
});

it('two that have taken the same record come apart', () => {
  const [a, b] = [1, 129].map((key) => open('same', key));
  for (const file of [a, b]) file.read(1e9);
  a.write(1e9, 1, 0, true, 1);
  b.write(1e9, 2, 0, true, 1);
  for (const file of [a, b]) file.read(1e9 + 1);
  a.write(1e9 + 1, 1, 0, true, 1);
  b.write(1e9 + 1, 2, 0, true, 1);
  for (const file of [a, b]) file.read(1e9 + 2);
  expect(said(a)).toEqual([[2, 1]]);
  expect(said(b)).toEqual([[1, 1]]);
});

it('more than the file has room for are left out, and harm nobody', () => {
  const files = Array.from({ length: 140 }, (_, i) => open('many', i + 1));
  for (const file of files) {
    file.read(1e9);
    file.write(1e9, 5, 0, true, 1);
  }
  files[0].read(1e9);
  expect(files[0].count).toBe(127);
});
