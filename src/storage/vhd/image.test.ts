/** VHD against qemu-img, which makes and reads fixed and dynamic disks; differencing disks are of our own making only. */
import { mkdtemp, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type QemuTools, qemuTools } from '../../../test/qemu-tools.ts';
import { type DiskImage, openDiskImage } from '../disk-image.ts';
import { hostFiles } from '../host/node-file.ts';
import { MemoryFiles, seededRandom } from '../host/test-file.ts';
import { createVhd } from './create.ts';

let folder: string;
let qemu: QemuTools;
let noQemu = '';
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'domus-vhd-'));
  const tools = await qemuTools();
  if (typeof tools === 'string') noQemu = tools;
  else qemu = tools;
});
afterAll(() => rm(folder, { recursive: true }));

const at = (name: string): string => join(folder, name);
const WRITABLE = { format: 'vhd', readOnly: false } as const;
const READABLE = { format: 'vhd', readOnly: true } as const;
const SIZE = 9 << 20;
const PARENT_ID = '000102030405060708090a0b0c0d0e0f';

function content(lengthBytes: number, seed: number): Uint8Array {
  const random = seededRandom(seed);
  return Uint8Array.from({ length: lengthBytes }, () => random() * 256);
}

async function readAll(image: DiskImage): Promise<Uint8Array> {
  const disk = new Uint8Array(image.sizeBytes);
  await image.read(0, [disk.subarray(0, 12_345), disk.subarray(12_345)]);
  return disk;
}

async function change(image: DiskImage, model: Uint8Array, random: () => number): Promise<void> {
  const offset = 512 * Math.floor((random() * model.length) / 512);
  const length = Math.min(model.length - offset, 512 * (1 + Math.floor(random() ** 3 * 600)));
  const kind = random();
  if (kind < 0.7) {
    const bytes = content(length, random() * 2 ** 31);
    await image.write(offset, [bytes.subarray(0, 512), bytes.subarray(512)]);
    model.set(bytes, offset);
  } else if (kind < 0.9) {
    await image.writeZeroes(offset, length);
    await image.discard(offset, length);
    model.fill(0, offset, offset + length);
  } else await image.flush();
}

describe('vhd images', () => {
  test.for(['dynamic', 'fixed'])("of qemu-img's making, %s, are read and written", async (subformat, context) => {
    if (noQemu) context.skip(noQemu);
    const model = new Uint8Array(SIZE);
    model.set(content(1 << 20, 1), 3 << 20);
    await writeFile(at('model.raw'), model);
    const path = at(`${subformat}.vhd`);
    await qemu.img('convert', '-O', 'vpc', '-o', `subformat=${subformat},force_size=on`, at('model.raw'), path);
    const random = seededRandom(2);
    const image = await openDiskImage(hostFiles, path, { format: 'auto', readOnly: false });
    expect([image.format, image.sizeBytes]).toEqual(['vhd', SIZE]);
    expect(Buffer.compare(await readAll(image), model)).toBe(0);
    for (let count = 0; count < 60; count++) await change(image, model, random);
    expect(Buffer.compare(await readAll(image), model)).toBe(0);
    await image.close();
    await writeFile(at('model.raw'), model);
    await qemu.img('compare', '-f', 'vpc', '-F', 'raw', path, at('model.raw'));
  });

  test('whose size is that of the geometry have the size that qemu-img gives them', async (context) => {
    if (noQemu) context.skip(noQemu);
    await qemu.img('create', '-q', '-f', 'vpc', at('geometry.vhd'), '100000000');
    const info = JSON.parse(await qemu.img('info', '--output=json', '-f', 'vpc', at('geometry.vhd'))) as Record<
      string,
      number
    >;
    const image = await openDiskImage(hostFiles, at('geometry.vhd'), READABLE);
    expect(image.sizeBytes).toBe(info['virtual-size']);
    await image.close();
  });

  test('of our own making are what qemu-img takes them for', async (context) => {
    if (noQemu) context.skip(noQemu);
    const path = at('own.vhd');
    await writeFile(path, '');
    const file = await hostFiles.open(path, { readOnly: false, sharing: 'exclusive' });
    await createVhd(file, SIZE, content(16, 3));
    await file.close();
    const model = new Uint8Array(SIZE);
    const image = await openDiskImage(hostFiles, path, WRITABLE);
    const random = seededRandom(4);
    for (let count = 0; count < 60; count++) await change(image, model, random);
    await image.close();
    await writeFile(at('model.raw'), model);
    await qemu.img('compare', '-f', 'vpc', '-F', 'raw', path, at('model.raw'));
  });

  test.for([
    { subformat: 'fixed', sizes: [(10 << 20) + 512, 20 << 20] },
    // Within the entries that the table has, and beyond them.
    { subformat: 'dynamic', sizes: [10 << 20, 700 << 20, (2000 << 20) + 512] },
  ])('of kind $subformat grow, and qemu-img sees the same', async ({ subformat, sizes }, context) => {
    if (noQemu) context.skip(noQemu);
    const path = at(`grow-${subformat}.vhd`);
    await qemu.img('create', '-q', '-f', 'vpc', '-o', `subformat=${subformat},force_size=off`, path, String(SIZE));
    const image = await openDiskImage(hostFiles, path, WRITABLE);
    const before = image.sizeBytes;
    await image.write(before - 4096, [content(4096, 8)]);
    await expect(image.resize(before - 512)).rejects.toThrow(/vhd images only grow/);
    await expect(image.resize(before + 511)).rejects.toThrow(/expected a multiple of 512/);
    await expect(image.resize(2 ** 41)).rejects.toThrow(/expected a multiple of 512 up to/);
    for (const [round, size] of sizes.entries()) {
      const writing = image.write(1 << 20, [content(8192, round)]);
      await image.resize(size);
      await writing;
      expect(image.sizeBytes).toBe(size);
      await image.write(size - 4096, [content(4096, 9 + round)]);
      await image.flush();
    }
    await image.close();
    const found = await openDiskImage(hostFiles, path, READABLE);
    const size = sizes.at(-1)!;
    expect(found.sizeBytes).toBe(size);
    const expected = at('grow.raw');
    await writeFile(expected, '');
    await truncate(expected, size);
    const raw = await openDiskImage(hostFiles, expected, { format: 'raw', readOnly: false });
    await raw.write(before - 4096, [content(4096, 8)]);
    await raw.write(1 << 20, [content(8192, sizes.length - 1)]);
    for (const [round, end] of sizes.entries()) await raw.write(end - 4096, [content(4096, 9 + round)]);
    await raw.close();
    await found.close();
    expect(await qemu.img('compare', '-f', 'vpc', '-F', 'raw', path, expected)).toContain('identical');
  });

  test('that were cut off while they got another size have the old one or the new one, and all that was flushed', async () => {
    const files = new MemoryFiles();
    files.contents.set('disk', new Uint8Array(0));
    const made = await files.open('disk', { readOnly: false, sharing: 'exclusive' });
    await createVhd(made, SIZE, content(16, 6));
    files.contents.set('disk', made.content.slice());
    const image = await openDiskImage(files, 'disk', WRITABLE);
    const file = files.opened.get('disk')!;
    const bytes = content(8192, 1);
    await image.write(3 << 20, [bytes]);
    await image.flush();
    const first = file.log.length;
    await image.resize(600 << 20);
    const resized = file.log.length;
    await image.write(599 << 20, [bytes]);
    await image.flush();
    const random = seededRandom(3);
    for (let changes = first; changes <= file.log.length; changes++)
      for (const crashed of [file.afterKill(changes), file.afterPowerCut(changes, () => random() < 0.5)]) {
        files.contents.set('crashed', crashed);
        const found = await openDiskImage(files, 'crashed', READABLE);
        expect(found.sizeBytes === 600 << 20 || (changes < resized && found.sizeBytes === SIZE)).toBe(true);
        const part = new Uint8Array(8192);
        await found.read(3 << 20, [part]);
        expect(Buffer.compare(part, bytes)).toBe(0);
        if (changes < file.log.length) continue;
        await found.read(599 << 20, [part]);
        expect(Buffer.compare(part, bytes)).toBe(0);
      }
  });

  test('differencing: a larger child shows no more of its parent than before', async () => {
    const files = new MemoryFiles();
    const make = async (name: string, size: number, parent?: { name: string; uniqueId: string }): Promise<void> => {
      files.contents.set(name, new Uint8Array(0));
      const file = await files.open(name, { readOnly: false, sharing: 'exclusive' });
      await createVhd(
        file,
        size,
        Uint8Array.from({ length: 16 }, (_, index) => index),
        parent,
      );
      files.contents.set(name, file.content.slice());
    };
    await make('./parent.vhd', 12 << 20);
    const parent = await openDiskImage(files, './parent.vhd', WRITABLE);
    await parent.write(0, [new Uint8Array(12 << 20).fill(7)]);
    await parent.close();
    files.contents.set('./parent.vhd', files.opened.get('./parent.vhd')!.content.slice());
    await make('child.vhd', 4 << 20, { name: 'parent.vhd', uniqueId: PARENT_ID });
    const child = await openDiskImage(files, 'child.vhd', WRITABLE);
    await child.resize(16 << 20);
    expect(Buffer.compare(await readAll(child), new Uint8Array(16 << 20).fill(7, 0, 4 << 20))).toBe(0);
    await child.close();
  });

  test('differencing: sectors that were not written are the parent’s', async () => {
    const files = new MemoryFiles();
    const id = Uint8Array.from({ length: 16 }, (_, index) => index);
    const make = async (name: string, parent?: { name: string; uniqueId: string }): Promise<void> => {
      files.contents.set(name, new Uint8Array(0));
      const file = await files.open(name, { readOnly: false, sharing: 'exclusive' });
      await createVhd(file, SIZE, id, parent);
      files.contents.set(name, file.content.slice());
    };
    await make('./parent.vhd');
    const random = seededRandom(5);
    const model = new Uint8Array(SIZE);
    const parent = await openDiskImage(files, './parent.vhd', WRITABLE);
    for (let count = 0; count < 40; count++) await change(parent, model, random);
    await parent.close();
    files.contents.set('./parent.vhd', files.opened.get('./parent.vhd')!.content.slice());
    await make('child.vhd', { name: 'parent.vhd', uniqueId: PARENT_ID });
    for (let round = 0; round < 2; round++) {
      const child = await openDiskImage(files, 'child.vhd', WRITABLE);
      expect(Buffer.compare(await readAll(child), model)).toBe(0);
      for (let count = 0; count < 40; count++) await change(child, model, random);
      expect(Buffer.compare(await readAll(child), model)).toBe(0);
      await child.close();
      files.contents.set('child.vhd', files.opened.get('child.vhd')!.content.slice());
    }
    await make('stranger.vhd', { name: 'parent.vhd', uniqueId: 'f'.repeat(32) });
    await expect(openDiskImage(files, 'stranger.vhd', READABLE)).rejects.toThrow(
      /its parent should be the disk f+, but .* is 000102/,
    );
    await make('orphan.vhd', { name: 'none.vhd', uniqueId: PARENT_ID });
    await expect(openDiskImage(files, 'orphan.vhd', READABLE)).rejects.toThrow(/no such file|parent is not there/);
  });

  test('that were cut off while they grew are what they were at the last flush', async (context) => {
    if (noQemu) context.skip(noQemu);
    await writeFile(at('crash.vhd'), '');
    const made = await hostFiles.open(at('crash.vhd'), { readOnly: false, sharing: 'exclusive' });
    await createVhd(made, SIZE, content(16, 6));
    await made.close();
    const files = new MemoryFiles();
    files.contents.set('disk', await readFile(at('crash.vhd')));
    const image = await openDiskImage(files, 'disk', WRITABLE);
    const file = files.opened.get('disk')!;
    const states: { changes: number; model: Uint8Array }[] = [{ changes: 0, model: new Uint8Array(SIZE) }];
    // Each block is written once, so that the flushed part is known whatever became of the rest.
    const model = new Uint8Array(SIZE);
    for (let block = 0; block < 4; block++) {
      const bytes = content(8192, block);
      await image.write((block * 2) << 20, [bytes]);
      model.set(bytes, (block * 2) << 20);
      await image.flush();
      states.push({ changes: file.log.length, model: model.slice() });
    }
    const random = seededRandom(7);
    for (let changes = 0; changes <= file.log.length; changes++) {
      for (const crashed of [file.afterKill(changes), file.afterPowerCut(changes, () => random() < 0.5)]) {
        files.contents.set('crashed', crashed);
        const found = await readAll(await openDiskImage(files, 'crashed', READABLE));
        const { model: flushed } = states.findLast((state) => state.changes <= changes)!;
        for (let sector = 0; sector < SIZE / 512; sector++) {
          const [a, b] = [found, flushed].map((disk) => disk.subarray(sector * 512, sector * 512 + 512));
          const newer = model.subarray(sector * 512, sector * 512 + 512);
          if (Buffer.compare(a!, b!) !== 0 && Buffer.compare(a!, newer) !== 0)
            throw new Error(`change ${changes}: sector ${sector}`);
        }
      }
    }
  });
});
