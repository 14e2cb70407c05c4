import { spawn } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { checkImage, qemuTools } from '../../../test/qemu-tools.ts';
import { openDiskImage } from '../disk-image.ts';
import { flattenImage } from './flatten.ts';
import { hostFiles } from './node-file.ts';
import { type Base, createOverlay, prepareLayer } from './overlay.ts';

const qemu = await qemuTools();
const SIZE = (5 << 20) + 512;
let folder = '';
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'domus-flatten-'));
});
afterEach(() => rmSync(folder, { recursive: true }));

async function write(path: string, offset: number, bytes: Uint8Array): Promise<void> {
  const image = await openDiskImage(hostFiles, path, { format: 'qcow2', readOnly: false });
  await image.write(offset, [bytes]);
  await image.close();
}

async function contentOf(path: string): Promise<Buffer> {
  const image = await openDiskImage(hostFiles, path, { format: 'qcow2', readOnly: true });
  const bytes = Buffer.alloc(image.sizeBytes);
  await image.read(0, [bytes]);
  await image.close();
  return bytes;
}

/** A raw image, and `layers` over it, in each of which something else is written: some of it zeros over what was there. */
async function chain(layers: number, sizeBytes = SIZE): Promise<Base> {
  const raw = join(folder, 'disk.img');
  const bytes = Buffer.alloc(sizeBytes);
  bytes.fill('r', 100_000, 3 << 20);
  writeFileSync(raw, bytes);
  const image: Base = { path: join(folder, 'disk.qcow2'), format: 'qcow2', sizeBytes };
  await createOverlay(image.path, { path: raw, format: 'raw', sizeBytes });
  for (let layer = 1; layer < layers; layer++) {
    await (await prepareLayer(image, 'unused')).commit();
    await write(image.path, layer * 70_000, Buffer.alloc(50_000, layer % 2 === 0 ? 0 : 64 + layer));
    await write(image.path, sizeBytes - 512, Buffer.alloc(512, layer));
  }
  return image;
}

test('an image over many others stands alone, with the same disk in it; the others are as they were', async (context) => {
  const { path } = await chain(12);
  const before = await contentOf(path);
  const files = readdirSync(folder).sort();
  const base = readFileSync(`${path}.base-11`);
  const bases = await flattenImage(path);
  expect(bases).toEqual([...Array.from({ length: 11 }, (_, i) => `${path}.base-${11 - i}`), join(folder, 'disk.img')]);
  expect(readdirSync(folder).sort()).toEqual(files);
  expect(readFileSync(`${path}.base-11`).equals(base)).toBe(true);
  for (const unused of bases) rmSync(unused);
  expect((await contentOf(path)).equals(before)).toBe(true);
  // Zeros take no room.
  expect(statSync(path).size).toBeLessThan(4 << 20);
  await expect(flattenImage(path)).rejects.toThrow('lies over no other image');
  if (typeof qemu === 'string') return context.skip(qemu);
  await checkImage(qemu, path);
  writeFileSync(join(folder, 'before'), before);
  expect(await qemu.img('compare', '-f', 'raw', '-F', 'qcow2', join(folder, 'before'), path)).toMatch(/identical/);
  const info: unknown = JSON.parse(await qemu.img('info', '--output=json', path));
  expect(info).not.toHaveProperty('backing-filename');
});

test('a link keeps leading to the image, which keeps its mode', async () => {
  const { path } = await chain(2);
  const link = join(folder, 'link');
  symlinkSync(path, link);
  const { mode } = statSync(path);
  const before = await contentOf(path);
  await flattenImage(link);
  expect((await contentOf(link)).equals(before)).toBe(true);
  expect(statSync(path).mode).toBe(mode);
});

test('what is in use, no qcow2 image, or has something that would be lost, stays', async (context) => {
  const { path } = await chain(2);
  const open = await openDiskImage(hostFiles, path, { format: 'qcow2', readOnly: false });
  await expect(flattenImage(path)).rejects.toThrow(/in use/);
  await open.close();
  await expect(flattenImage(join(folder, 'disk.img'))).rejects.toThrow('not a qcow2 image');
  if (typeof qemu === 'string') return context.skip(qemu);
  await qemu.img('snapshot', '-c', 'kept', path);
  const files = readdirSync(folder).sort();
  await expect(flattenImage(path)).rejects.toThrow('has internal snapshots, which would be lost');
  expect(readdirSync(folder).sort()).toEqual(files);
});

test('killed at any moment, it leaves the disk whole, and can be begun again', async () => {
  const { path } = await chain(4, 64 << 20);
  const before = await contentOf(path);
  const module = JSON.stringify(new URL('./flatten.ts', import.meta.url).href);
  const program = `const { flattenImage } = await import(${module});
    process.stdout.write('begun\\n'); await flattenImage(${JSON.stringify(path)}); process.stdout.write('done\\n');`;
  let said = '';
  for (const ms of [0, 30, 90, 200]) {
    if (said.includes('done')) break;
    said = '';
    const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    const ended = new Promise((resolve) => child.on('close', resolve));
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      said += text;
    });
    while (!said.includes('begun') && child.exitCode === null) await sleep(1);
    await sleep(ms);
    child.kill('SIGKILL');
    await ended;
    expect((await contentOf(path)).equals(before), `after ${ms} ms`).toBe(true);
    if (typeof qemu !== 'string') await checkImage(qemu, path);
  }
  // It may have been killed between the rename and the last word.
  await flattenImage(path).catch((error: Error) => expect(error.message).toMatch(/lies over no other image/));
  expect((await contentOf(path)).equals(before)).toBe(true);
  expect(readdirSync(folder).filter((name) => name.includes('flat'))).toEqual([]);
});
