import {
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { checkImage, qemuTools } from '../../../test/qemu-tools.ts';
import { openDiskImage } from '../disk-image.ts';
import { hostFiles } from './node-file.ts';
import { type Base, createOverlay, prepareLayer, resetToBase, topOf } from './overlay.ts';

const qemu = await qemuTools();
const SIZE = 1 << 20;
let folder = '';
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'domus-overlay-'));
});
afterEach(() => rmSync(folder, { recursive: true }));

async function change(path: string, format: 'raw' | 'qcow2', offset: number, letter: string): Promise<void> {
  const image = await openDiskImage(hostFiles, path, { format, readOnly: false });
  await image.write(offset, [Buffer.alloc(512, letter)]);
  await image.close();
}

/** The first letter of each of some sectors. */
async function letters(path: string, format: 'raw' | 'qcow2', ...offsets: number[]): Promise<string> {
  const image = await openDiskImage(hostFiles, path, { format, readOnly: true });
  let found = '';
  for (const offset of offsets) {
    const bytes = Buffer.alloc(512);
    await image.read(offset, [bytes]);
    found += bytes[0] === 0 ? '.' : String.fromCharCode(bytes[0]);
  }
  await image.close();
  return found;
}

async function qcow2(name: string): Promise<Base> {
  const raw = join(folder, `${name}.raw`);
  writeFileSync(raw, Buffer.alloc(SIZE, 'b'));
  const path = join(folder, name);
  await createOverlay(path, { path: raw, format: 'raw', sizeBytes: SIZE });
  return { path, format: 'qcow2', sizeBytes: SIZE };
}

function rawDisk(name: string): Base {
  const path = join(folder, name);
  writeFileSync(path, Buffer.alloc(SIZE, 'a'));
  return { path, format: 'raw', sizeBytes: SIZE };
}

test('a qcow2 image gives its name to the overlay, and what it was has another one', async (context) => {
  const image = await qcow2('disk');
  await change(image.path, 'qcow2', 0, 'x');
  const layer = await prepareLayer(image, join(folder, 'unused'));
  expect(await letters(image.path, 'qcow2', 0, 512)).toBe('xb');
  await layer.commit();
  expect(layer.top).toBe(image.path);
  expect(basename(layer.base.path)).toBe('disk.base-1');
  expect(statSync(layer.base.path).mode & 0o222).toBe(0);
  expect(await letters(image.path, 'qcow2', 0, 512)).toBe('xb');
  await change(image.path, 'qcow2', 512, 'y');
  expect(await letters(image.path, 'qcow2', 0, 512)).toBe('xy');
  expect(await letters(layer.base.path, 'qcow2', 0, 512)).toBe('xb');
  // And again, over that.
  const second = await prepareLayer(image, join(folder, 'unused'));
  await second.commit();
  expect(basename(second.base.path)).toBe('disk.base-2');
  expect(await letters(image.path, 'qcow2', 0, 512)).toBe('xy');
  await resetToBase(image.path, layer.base);
  expect(await letters(image.path, 'qcow2', 0, 512)).toBe('xb');
  expect(await letters(second.base.path, 'qcow2', 0, 512)).toBe('xy');
  if (typeof qemu === 'string') return context.skip(qemu);
  for (const path of [image.path, layer.base.path, second.base.path]) await checkImage(qemu, path);
  expect(JSON.parse(await qemu.img('info', '--output=json', image.path))).toMatchObject({
    'backing-filename': 'disk.base-1',
    'backing-filename-format': 'qcow2',
    'virtual-size': SIZE,
  });
});

test('an image behind a symbolic link keeps the link, and its overlay is found through it', async () => {
  const image = await qcow2('disk');
  const other = join(folder, 'links');
  rmSync(other, { force: true });
  symlinkSync(image.path, other);
  const layer = await prepareLayer({ ...image, path: other }, join(folder, 'unused'));
  await layer.commit();
  await change(other, 'qcow2', 0, 'z');
  expect(await letters(other, 'qcow2', 0, 512)).toBe('zb');
  expect(await letters(image.path, 'qcow2', 0, 512)).toBe('zb');
});

test('a raw image keeps its name and says by which image its disk goes on', async (context) => {
  const image = rawDisk('disk.img');
  expect(await topOf(image.path)).toBe(null);
  const layer = await prepareLayer(image, join(folder, 'top.qcow2'));
  await layer.commit();
  expect(layer.base.path).toBe(image.path);
  await change(layer.top, 'qcow2', 512, 'y');
  expect(await letters(layer.top, 'qcow2', 0, 512)).toBe('ay');
  expect(await letters(image.path, 'raw', 0, 512)).toBe('aa');
  expect(await topOf(image.path)).toBe(layer.top);
  await resetToBase(layer.top, layer.base);
  expect(await letters(layer.top, 'qcow2', 0, 512)).toBe('aa');
  if (typeof qemu === 'string') return context.skip(qemu);
  await checkImage(qemu, layer.top);
  rmSync(layer.top);
  expect(await topOf(image.path)).toBe(null);
});

test.each(['raw', 'qcow2'] as const)('what is not used, or undone, leaves a %s disk as it was', async (format) => {
  const image = format === 'raw' ? rawDisk('disk') : await qcow2('disk');
  const before = readFileSync(image.path);
  const files = readdirSync(folder).sort();
  const { mode } = statSync(image.path);
  await (await prepareLayer(image, join(folder, 'top'))).abandon();
  expect(readdirSync(folder).sort()).toEqual(files);
  const layer = await prepareLayer(image, join(folder, 'top'));
  await layer.commit();
  await layer.undo();
  expect(readdirSync(folder).sort()).toEqual(files);
  expect(readFileSync(image.path).equals(before)).toBe(true);
  expect(statSync(image.path).mode).toBe(mode);
});

test('a disk whose layer was begun by a process that was killed gets one all the same', async () => {
  const image = await qcow2('disk');
  await prepareLayer(image, join(folder, 'unused'));
  const layer = await prepareLayer(image, join(folder, 'unused'));
  await layer.commit();
  expect(await letters(image.path, 'qcow2', 0)).toBe('b');
  expect(existsSync(layer.base.path)).toBe(true);
});
