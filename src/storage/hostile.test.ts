/** Images by an enemy: whatever their bytes say, there is an answer or an error that names the file. */
import { describe, expect, test } from 'vitest';
import { type BlockFile, DiskImageError } from './block-file.ts';
import { type DiskImage, openDiskImage } from './disk-image.ts';
import { MemoryFile, MemoryFiles, seededRandom } from './host/test-file.ts';
import { createQcow2 } from './qcow2/create.ts';
import { HEADER } from './qcow2/header.ts';
import { createVhd } from './vhd/create.ts';
import { checksumOf, FOOTER, SPARSE } from './vhd/format.ts';

const SIZE = 64 << 20;

async function made(
  make: (file: BlockFile) => Promise<void>,
  use: (image: DiskImage) => Promise<void>,
): Promise<Uint8Array> {
  const file = new MemoryFile('disk', new Uint8Array(0), false);
  await make(file);
  const files = new MemoryFiles();
  files.contents.set('disk', file.content.slice());
  const image = await openDiskImage(files, 'disk', { format: 'auto', readOnly: false });
  await use(image);
  await image.close();
  return files.opened.get('disk')!.content.slice();
}

async function fill(image: DiskImage): Promise<void> {
  for (let offset = 0; offset < SIZE; offset += 5 << 20)
    await image.write(offset, [new Uint8Array(70_144).fill(offset >> 20)]);
  await image.writeZeroes(10 << 20, 1 << 20);
}

/** Uses an image as a guest would. What it throws is for the caller to judge. */
async function useImage(content: Uint8Array, readOnly: boolean): Promise<void> {
  const files = new MemoryFiles();
  files.contents.set('disk', content);
  const image = await openDiskImage(files, 'disk', { format: 'auto', readOnly });
  const buffer = new Uint8Array(1 << 20);
  const end = Math.min(image.sizeBytes, SIZE) - buffer.length;
  const errors: unknown[] = [];
  const attempt = async (task: () => Promise<void>): Promise<void> => {
    await task().catch((error: unknown) => errors.push(error));
  };
  for (let offset = 0; offset <= end; offset += 7 << 20) {
    await attempt(() => image.read(offset, [buffer]));
    if (readOnly) continue;
    await attempt(() => image.write(offset, [buffer.subarray(0, 4096)]));
    await attempt(() => image.discard(offset, 1 << 19));
    await attempt(() => image.flush());
  }
  await attempt(() => image.close());
  for (const error of errors) if (!(error instanceof DiskImageError)) throw error;
}

/** The numbers that hurt: none, all bits, single bits, and what is found elsewhere in the image. */
function spoil(image: Uint8Array, areas: readonly (readonly [from: number, to: number])[], random: () => number): void {
  const view = new DataView(image.buffer);
  for (let count = 1 + Math.floor(random() * 3); count > 0; count--) {
    const [from, to] = areas[Math.floor(random() * areas.length)]!;
    const offset = from + 4 * Math.floor((random() * (Math.min(to, image.length) - from)) / 4);
    const kind = random();
    if (kind < 0.2) view.setUint32(offset, 0);
    else if (kind < 0.3) view.setUint32(offset, 0xffffffff);
    else if (kind < 0.6) view.setUint32(offset, view.getUint32(offset) ^ (1 << Math.floor(random() * 32)));
    else if (kind < 0.8) view.setUint32(offset, view.getUint32(from + 4 * Math.floor((random() * (to - from)) / 4)));
    else view.setUint32(offset, random() * 2 ** 32);
  }
}

describe('a spoilt image is read and written, or refused with an error of its own', () => {
  test('qcow2', async () => {
    const sound = await made((file) => createQcow2(file, SIZE), fill);
    const random = seededRandom(1);
    const areas = [
      [0, 112],
      [0x10000, 0x10040],
      [0x20000, 0x20040],
      [0x30000, 0x30010],
      [0x40000, 0x42000],
    ] as const;
    let refused = 0;
    for (let round = 0; round < 150; round++) {
      const image = sound.slice();
      spoil(image, areas, random);
      try {
        await useImage(image, random() < 0.3);
      } catch (error) {
        if (!(error instanceof DiskImageError)) throw error;
        expect(error.message).toMatch(/^disk: /);
        refused++;
      }
    }
    expect(refused).toBeGreaterThan(10);
  });

  test('vhd, with checksums that are right', async () => {
    const sound = await made(
      (file) => createVhd(file, SIZE, new Uint8Array(16)),
      (image) => image.write(7 << 20, [new Uint8Array(70_144).fill(7)]),
    );
    const random = seededRandom(2);
    for (let round = 0; round < 150; round++) {
      const image = sound.slice();
      spoil(
        image,
        [
          [0, 512],
          [512, 600],
          [1536, 1536 + 128],
        ],
        random,
      );
      image.copyWithin(image.length - 512, 0, 512);
      const footer = image.subarray(image.length - 512);
      const view = new DataView(image.buffer);
      view.setUint32(image.length - 512 + FOOTER.checksum, checksumOf(footer, FOOTER.checksum));
      view.setUint32(512 + SPARSE.checksum, checksumOf(image.subarray(512, 1536), SPARSE.checksum));
      try {
        await useImage(image, random() < 0.3);
      } catch (error) {
        if (!(error instanceof DiskImageError)) throw error;
        expect(error.message).toMatch(/^disk: /);
      }
    }
  });
});

describe('a guest cannot reach the tables of its own image', () => {
  /** An image whose first cluster of data is said to be at `offset`. */
  async function pointingAt(offset: number): Promise<MemoryFiles> {
    const content = await made(
      (file) => createQcow2(file, SIZE),
      (image) => image.write(0, [new Uint8Array(512).fill(1)]),
    );
    const view = new DataView(content.buffer);
    const l2 = view.getUint32(0x30004);
    view.setUint32(l2, 0x80000000);
    view.setUint32(l2 + 4, offset);
    const files = new MemoryFiles();
    files.contents.set('disk', content);
    return files;
  }

  test.for([
    ['the header', 0x200],
    ['the refcount table', 0x10000],
    ['a refcount block', 0x20000],
    ['the L1 table', 0x30000],
    ['its own L2 table', 0x40000],
    ['what is behind the end', 0x40000000],
  ] as const)('%s', async ([, offset]) => {
    const files = await pointingAt(offset);
    const image = await openDiskImage(files, 'disk', { format: 'qcow2', readOnly: false });
    await expect(image.write(0, [new Uint8Array(512).fill(0xee)])).rejects.toThrow(/disk: the image is damaged/);
    // And from then on nothing is written: the image says so to the next who opens it.
    await expect(image.write(1 << 20, [new Uint8Array(512)])).rejects.toThrow(/disk: the image is damaged/);
    await image.close();
    const file = files.opened.get('disk')!;
    expect(file.content.includes(0xee)).toBe(false);
    expect(file.content[HEADER.incompatible_features + 7]).toBe(2);
    files.contents.set('disk', file.content.slice());
    await expect(openDiskImage(files, 'disk', { format: 'qcow2', readOnly: false })).rejects.toThrow(
      /marked as corrupt/,
    );
    await (await openDiskImage(files, 'disk', { format: 'qcow2', readOnly: true })).close();
  });

  test('by clusters that are said to be free', async () => {
    const content = await made(
      (file) => createQcow2(file, SIZE),
      (image) => image.write(0, [new Uint8Array(512).fill(1)]),
    );
    // No cluster is in use, says the refcount block.
    content.fill(0, 0x20000, 0x20020);
    const files = new MemoryFiles();
    files.contents.set('disk', content);
    const image = await openDiskImage(files, 'disk', { format: 'qcow2', readOnly: false });
    await expect(image.write(1 << 20, [new Uint8Array(512).fill(0xee)])).rejects.toThrow(
      /cluster 0 .*holds a table, but its refcount is 0/,
    );
  });
});
