import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import type { Sink } from '../toolstack/saved/save-file.ts';
import { openSource, writeWhole } from './save-stream.ts';

const folder = mkdtempSync(join(tmpdir(), 'domus-stream-'));
afterAll(() => rmSync(folder, { recursive: true }));
const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);

it('a file is there when it is whole, and what was there stays until then', async () => {
  const path = join(folder, 'a');
  writeFileSync(path, 'before');
  await writeWhole(path, async (sink) => {
    await sink(bytes('new '));
    await sink(bytes('words'));
    expect(readFileSync(path, 'utf8')).toBe('before');
  });
  expect(readFileSync(path, 'utf8')).toBe('new words');
  // It holds the memory of a guest.
  expect(statSync(path).mode & 0o777).toBe(0o600);
  expect(readdirSync(folder)).toEqual(['a']);
});

it('what could not be written leaves nothing', async () => {
  const path = join(folder, 'b');
  const failing = writeWhole(path, async (sink) => {
    await sink(bytes('half'));
    throw new Error('the disk is full');
  });
  await expect(failing).rejects.toThrow('the disk is full');
  expect(existsSync(path)).toBe(false);
  expect(readdirSync(folder)).toEqual(['a']);
  await expect(writeWhole(join(folder, 'no', 'c'), async () => {})).rejects.toThrow('ENOENT');
});

it('what is given up for a file is given up when all of it is written, before it is there, and taken up again if it cannot be', async () => {
  const path = join(folder, 'd');
  const events: string[] = [];
  const before = (leave: () => Promise<void> = async () => {}) => ({
    leave: async () => {
      events.push(
        `left, ${existsSync(path) ? 'there' : 'not there'}`,
        readdirSync(folder)
          .filter((name) => /^d/.test(name))
          .join(),
      );
      await leave();
    },
    comeBack: () => void events.push('back'),
  });
  const body = (sink: Sink): Promise<void> => sink(bytes('whole'));
  await writeWhole(path, body, before());
  const partial = `d.${process.pid}.part`;
  expect(events.splice(0)).toEqual(['left, not there', partial]);
  rmSync(path);
  const failing = writeWhole(
    path,
    body,
    before(() => Promise.reject(new Error('it cannot be left'))),
  );
  await expect(failing).rejects.toThrow('it cannot be left');
  expect(events.splice(0)).toEqual(['left, not there', partial, 'back']);
  // Somebody has put a folder there meanwhile.
  const inTheWay = writeWhole(
    path,
    body,
    before(async () => void mkdirSync(join(path, 'full'), { recursive: true })),
  );
  await expect(inTheWay).rejects.toThrow(/EISDIR|ENOTEMPTY|EEXIST/);
  expect(events.splice(0)).toEqual(['left, not there', partial, 'back']);
  rmSync(path, { recursive: true });
  await expect(writeWhole(path, () => Promise.reject(new Error('full')), before())).rejects.toThrow('full');
  expect(events).toEqual([]);
  expect(readdirSync(folder)).toEqual(['a']);
});

it('a symbolic link leads where it did', async () => {
  const [link, target] = [join(folder, 'link'), join(folder, 'a')];
  symlinkSync('a', link);
  await writeWhole(link, (sink) => sink(bytes('by the link')));
  expect(lstatSync(link).isSymbolicLink()).toBe(true);
  expect(readFileSync(target, 'utf8')).toBe('by the link');
  rmSync(link);
});

it('a device is written to as it is', async () => {
  await writeWhole('/dev/null', (sink) => sink(bytes('gone')));
  expect(statSync('/dev/null').isFile()).toBe(false);
});

it('a source gives what is asked for, and less at the end', async () => {
  const path = join(folder, 'c');
  writeFileSync(path, Buffer.alloc(3 << 20, 'x'));
  const { source, close } = openSource(path);
  expect((await source(10)).length).toBe(10);
  expect((await source(2 << 20)).length).toBe(2 << 20);
  expect((await source(4 << 20)).length).toBe((1 << 20) - 10);
  expect((await source(1)).length).toBe(0);
  close();
  await expect(openSource(join(folder, 'none')).source(1)).rejects.toThrow('ENOENT');
});
