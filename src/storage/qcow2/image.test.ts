/** qcow2 against qemu-img: its images read by us, ours checked and compared by it, and every crash in between. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { checkImage, type QemuTools, qemuTools } from '../../../test/qemu-tools.ts';
import { DiskImageError } from '../block-file.ts';
import { type DiskImage, openDiskImage } from '../disk-image.ts';
import { hostFiles } from '../host/node-file.ts';
import { MemoryFiles, seededRandom } from '../host/test-file.ts';
import { createQcow2 } from './create.ts';

let folder: string;
let qemu: QemuTools;
let noQemu = '';
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'domus-qcow2-'));
  const tools = await qemuTools();
  if (typeof tools === 'string') noQemu = tools;
  else qemu = tools;
});
afterAll(() => rm(folder, { recursive: true }));

const at = (name: string): string => join(folder, name);
const WRITABLE = { format: 'qcow2', readOnly: false } as const;
const READABLE = { format: 'qcow2', readOnly: true } as const;
const SIZE = 4 << 20;

function pattern(lengthBytes: number, seed: number): Uint8Array {
  const random = seededRandom(seed);
  const words = new Uint32Array(Math.ceil(lengthBytes / 4));
  for (let index = 0; index < words.length; index++) words[index] = random() * 2 ** 32;
  return new Uint8Array(words.buffer, 0, lengthBytes);
}

/** A disk with data, holes and compressible parts. */
function mixedDisk(sizeBytes: number, seed: number): Uint8Array {
  const random = seededRandom(seed);
  const disk = new Uint8Array(sizeBytes);
  for (let offset = 0; offset < sizeBytes; ) {
    const length = Math.min(sizeBytes - offset, 512 * (1 + Math.floor(random() * 300)));
    const kind = random();
    if (kind < 0.4) disk.set(pattern(length, random() * 2 ** 31), offset);
    else if (kind < 0.7) disk.fill(1 + Math.floor(random() * 255), offset, offset + length);
    offset += length;
  }
  return disk;
}

async function readAll(image: DiskImage, step = 1 << 20): Promise<Uint8Array> {
  const disk = new Uint8Array(image.sizeBytes);
  for (let offset = 0; offset < disk.length; offset += step) {
    await image.read(offset, [disk.subarray(offset, Math.min(offset + step, disk.length))]);
  }
  return disk;
}

async function readPath(path: string, options: Parameters<typeof openDiskImage>[2] = READABLE): Promise<Uint8Array> {
  const image = await openDiskImage(hostFiles, path, options);
  try {
    return await readAll(image, 100 << 10);
  } finally {
    await image.close();
  }
}

function expectSame(found: Uint8Array, expected: Uint8Array): void {
  expect(found.length).toBe(expected.length);
  if (Buffer.compare(found, expected) === 0) return;
  let index = 0;
  while (found[index] === expected[index]) index++;
  throw new Error(`byte ${index} (0x${index.toString(16)}) is ${found[index]}, expected ${expected[index]}`);
}

const VARIANTS = [
  'compat=1.1',
  'compat=0.10',
  'cluster_size=512',
  'cluster_size=4k,refcount_bits=1',
  'cluster_size=2M',
  'refcount_bits=64,cluster_size=1k',
  'refcount_bits=8',
  'lazy_refcounts=on',
  'preallocation=metadata',
  'preallocation=falloc',
  'preallocation=full',
] as const;

describe("qemu-img's images", () => {
  test.for(VARIANTS)('of kind %s are read', async (options, context) => {
    if (noQemu) context.skip(noQemu);
    const disk = mixedDisk(SIZE, 1);
    const path = at(`read-${options}.qcow2`);
    await writeFile(at('read.raw'), disk);
    await qemu.img('convert', '-O', 'qcow2', '-o', options, at('read.raw'), path);
    expectSame(await readPath(path), disk);
  });

  test.for(['zlib', 'zstd'])('compressed by %s are read, and written to', async (type, context) => {
    if (noQemu) context.skip(noQemu);
    const disk = mixedDisk(SIZE, 2);
    const path = at(`compressed-${type}.qcow2`);
    await writeFile(at('compressed.raw'), disk);
    await qemu.img('convert', '-c', '-O', 'qcow2', '-o', `compression_type=${type}`, at('compressed.raw'), path);
    expectSame(await readPath(path), disk);
    const image = await openDiskImage(hostFiles, path, WRITABLE);
    for (let offset = 0; offset < SIZE; offset += 200 << 10) {
      const change = pattern(5120, offset);
      disk.set(change, offset);
      await image.write(offset, [change]);
    }
    expectSame(await readAll(image), disk);
    await image.close();
    await checkImage(qemu, path);
    await writeFile(at('compressed.raw'), disk);
    await qemu.img('compare', '-f', 'qcow2', '-F', 'raw', path, at('compressed.raw'));
  });

  test('with backing files of other sizes, in a chain, by relative names', async (context) => {
    if (noQemu) context.skip(noQemu);
    const base = mixedDisk(SIZE - 512 * 7, 3);
    await writeFile(at('base.raw'), base);
    const make = (name: string, backing: string, format: string, size: number): Promise<string> =>
      qemu.img('create', '-q', '-f', 'qcow2', '-b', backing, '-F', format, at(name), String(size));
    await make('middle.qcow2', 'base.raw', 'raw', SIZE / 2);
    await make('top.qcow2', 'middle.qcow2', 'qcow2', SIZE);
    const expected = new Uint8Array(SIZE);
    expected.set(base.subarray(0, SIZE / 2));
    expectSame(await readPath(at('top.qcow2')), expected);
    const image = await openDiskImage(hostFiles, at('top.qcow2'), WRITABLE);
    const change = pattern(100 << 10, 9);
    for (const offset of [512, SIZE / 2 - (50 << 10), SIZE - (100 << 10)]) {
      await image.write(offset, [change]);
      expected.set(change, offset);
    }
    await image.close();
    await checkImage(qemu, at('top.qcow2'));
    await writeFile(at('expected.raw'), expected);
    await qemu.img('compare', '-f', 'qcow2', '-F', 'raw', at('top.qcow2'), at('expected.raw'));
    expect(Buffer.compare(await readFile(at('base.raw')), base)).toBe(0);
  });

  test('with snapshots are read by id and by name; writing leaves the snapshots alone', async (context) => {
    if (noQemu) context.skip(noQemu);
    const path = at('snapshots.qcow2');
    const disks: Uint8Array[] = [];
    await qemu.img('create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4k', path, String(SIZE));
    const disk = new Uint8Array(SIZE);
    for (const [round, name] of ['one', 'two'].entries()) {
      const image = await openDiskImage(hostFiles, path, WRITABLE);
      for (let offset = round * 8192; offset < SIZE; offset += 300 << 10) {
        const change = pattern(20 << 10, offset + round).subarray(0, SIZE - offset);
        await image.write(offset, [change]);
        disk.set(change, offset);
      }
      await image.discard(1 << 20, 64 << 10);
      disk.fill(0, 1 << 20, (1 << 20) + (64 << 10));
      await image.close();
      await checkImage(qemu, path);
      disks.push(disk.slice());
      await qemu.img('snapshot', '-c', name, path);
    }
    const image = await openDiskImage(hostFiles, path, WRITABLE);
    await image.write(0, [pattern(2 << 20, 77)]);
    disk.set(pattern(2 << 20, 77), 0);
    await image.close();
    await checkImage(qemu, path);
    expectSame(await readPath(path), disk);
    expectSame(await readPath(path, { ...READABLE, snapshot: 'one' }), disks[0]!);
    expectSame(await readPath(path, { ...READABLE, snapshot: '2' }), disks[1]!);
    await expect(readPath(path, { ...READABLE, snapshot: 'three' })).rejects.toThrow(
      /no snapshot three; there are: 1 \(one\), 2 \(two\)/,
    );
    await expect(readPath(path, { ...WRITABLE, snapshot: 'one' })).rejects.toThrow(/can only be read/);
  });

  test.for(['off', 'on'])('with an external data file (raw: %s) are read and written', async (raw, context) => {
    if (noQemu) context.skip(noQemu);
    const path = at(`external-${raw}.qcow2`);
    await qemu.img(
      'create',
      '-q',
      '-f',
      'qcow2',
      '-o',
      `data_file=${at(`external-${raw}.data`)},data_file_raw=${raw}`,
      path,
      String(SIZE),
    );
    const disk = new Uint8Array(SIZE);
    const image = await openDiskImage(hostFiles, path, WRITABLE);
    for (const offset of [0, 70_144, 1 << 20, SIZE - 65_536]) {
      const change = pattern(65_536, offset);
      await image.write(offset, [change]);
      disk.set(change, offset);
    }
    await image.discard(1 << 20, 65_536);
    disk.fill(0, 1 << 20, (1 << 20) + 65_536);
    await image.close();
    await checkImage(qemu, path);
    expectSame(await readPath(path), disk);
    await writeFile(at('external.raw'), disk);
    await qemu.img('compare', '-f', 'qcow2', '-F', 'raw', path, at('external.raw'));
    if (raw === 'on') expectSame(await readFile(at('external-on.data')), disk);
  });

  test('left dirty by a killed writer get true reference counts', async (context) => {
    if (noQemu) context.skip(noQemu);
    const path = at('dirty.qcow2');
    await qemu.img('create', '-q', '-f', 'qcow2', '-o', 'lazy_refcounts=on,cluster_size=4k', path, '64M');
    // qemu-io's abort is a kill: lazy counts were never written.
    await qemu
      .io('-f', 'qcow2', '-c', 'write -P 7 0 3M', '-c', 'write -P 8 40M 12M', '-c', 'flush', '-c', 'abort', path)
      .catch(() => {});
    await expect(qemu.img('check', path)).rejects.toThrow(/ERROR/);
    const before = await readPath(path);
    expect(before[0]).toBe(7);
    const image = await openDiskImage(hostFiles, path, WRITABLE);
    await image.write(0, [pattern(1 << 20, 1)]);
    before.set(pattern(1 << 20, 1));
    await image.close();
    await checkImage(qemu, path);
    expectSame(await readPath(path), before);
  });

  test('that need what we lack are refused by name', async (context) => {
    if (noQemu) context.skip(noQemu);
    await qemu.img('create', '-q', '-f', 'qcow2', '-o', 'extended_l2=on', at('extended.qcow2'), '1M');
    await expect(readPath(at('extended.qcow2'))).rejects.toThrow(
      /extended\.qcow2: needs the qcow2 feature "extended L2 entries" \(bit 4\)/,
    );
    // Made by hand: qemu-img takes seconds to make a key.
    await qemu.img('create', '-q', '-f', 'qcow2', at('luks.qcow2'), '1M');
    const luks = await readFile(at('luks.qcow2'));
    luks[35] = 2;
    await writeFile(at('luks.qcow2'), luks);
    await expect(readPath(at('luks.qcow2'))).rejects.toThrow(/encrypted with method 2 \(LUKS\)/);
    await qemu.img('create', '-q', '-f', 'qcow2', at('loop-a.qcow2'), '1M');
    await qemu.img('create', '-q', '-f', 'qcow2', '-b', 'loop-a.qcow2', '-F', 'qcow2', at('loop-b.qcow2'));
    await qemu.img('rebase', '-u', '-f', 'qcow2', '-b', 'loop-b.qcow2', '-F', 'qcow2', at('loop-a.qcow2'));
    await expect(readPath(at('loop-a.qcow2'))).rejects.toThrow(/is its own backing file/);
    await qemu.img('rebase', '-u', '-f', 'qcow2', '-b', 'nbd://host/x', '-F', 'raw', at('loop-a.qcow2'));
    await expect(readPath(at('loop-a.qcow2'))).rejects.toThrow(/expected a file, not "nbd:"/);
  });
});

/** Reads and writes as a backend does: at once where that works. */
async function readSoon(image: DiskImage, offset: number, bytes: Uint8Array): Promise<void> {
  if (!image.readNow?.(offset, [bytes], bytes.length)) await image.read(offset, [bytes]);
}
async function writeSoon(image: DiskImage, offset: number, buffers: readonly Uint8Array[]): Promise<void> {
  const lengthBytes = buffers.reduce((sum, { length }) => sum + length, 0);
  if (!image.writeNow?.(offset, buffers, lengthBytes)) await image.write(offset, buffers);
}

/** One random request on the image and on the model. */
async function randomRequest(
  image: DiskImage,
  model: Uint8Array,
  random: () => number,
  lengthMax: number,
): Promise<void> {
  const offset = 512 * Math.floor((random() * model.length) / 512);
  const length = Math.min(model.length - offset, 512 * (1 + Math.floor((random() ** 3 * lengthMax) / 512)));
  const kind = random();
  if (kind < 0.6) {
    const content = pattern(length, random() * 2 ** 31);
    const cut = 512 * Math.floor((random() * length) / 512);
    await writeSoon(image, offset, [content.subarray(0, cut), content.subarray(cut)]);
    model.set(content, offset);
  } else if (kind < 0.75) {
    await image.writeZeroes(offset, length);
    model.fill(0, offset, offset + length);
  } else if (kind < 0.85) {
    // Zeroes before, so that both answers that a discard may give are the same.
    await image.writeZeroes(offset, length);
    await image.discard(offset, length);
    model.fill(0, offset, offset + length);
  } else if (kind < 0.95) {
    const found = new Uint8Array(length);
    await readSoon(image, offset, found);
    expectSame(found, model.subarray(offset, offset + length));
  } else await image.flush();
}

const MODELS = [
  { options: 'compat=1.1', size: 8 << 20, backing: false },
  { options: 'compat=0.10,cluster_size=4k', size: 8 << 20, backing: false },
  { options: 'compat=0.10,cluster_size=4k', size: 8 << 20, backing: true },
  { options: 'cluster_size=512', size: 8 << 20, backing: true },
  { options: 'cluster_size=512,refcount_bits=64', size: (12 << 20) + 512, backing: false },
  { options: 'cluster_size=1k,refcount_bits=2', size: 8 << 20, backing: true },
] as const;

describe('random requests', () => {
  test.for(MODELS)(
    'on $options, backing $backing: the disk is the model and qemu-img check is content',
    async (model, context) => {
      if (noQemu) context.skip(noQemu);
      const { options, size, backing } = model;
      const path = at('random.qcow2');
      const expected = backing ? mixedDisk(size, 5) : new Uint8Array(size);
      if (backing) await writeFile(at('random-base.raw'), expected);
      const base = backing ? ['-b', 'random-base.raw', '-F', 'raw'] : [];
      await qemu.img('create', '-q', '-f', 'qcow2', '-o', options, ...base, path, String(size));
      const random = seededRandom(size + options.length + (backing ? 1 : 0));
      for (let round = 0; round < 3; round++) {
        const image = await openDiskImage(hostFiles, path, WRITABLE);
        for (let count = 0; count < 150; count++) await randomRequest(image, expected, random, 1 << 20);
        expectSame(await readAll(image), expected);
        await image.close();
        await checkImage(qemu, path);
      }
      await writeFile(at('random.raw'), expected);
      await qemu.img('compare', '-f', 'qcow2', '-F', 'raw', path, at('random.raw'));
    },
  );

  test('many at once, each on a part of its own within shared clusters', async (context) => {
    if (noQemu) context.skip(noQemu);
    const files = new MemoryFiles(() => new Promise((resolve) => (random() < 0.5 ? resolve() : setImmediate(resolve))));
    const random = seededRandom(11);
    const size = 4 << 20;
    await qemu.img('create', '-q', '-f', 'qcow2', '-o', 'cluster_size=32k', at('parallel.qcow2'), String(size));
    files.contents.set('disk', await readFile(at('parallel.qcow2')));
    const expected = new Uint8Array(size);
    const image = await openDiskImage(files, 'disk', WRITABLE);
    for (let round = 0; round < 12; round++) {
      const tasks: Promise<void>[] = [];
      for (let unit = 0; unit < size; unit += 16 << 10) {
        if (random() < 0.5) continue;
        const part = expected.subarray(unit, unit + (16 << 10));
        if (random() < 0.2) {
          tasks.push(image.writeZeroes(unit, part.length));
          part.fill(0);
        } else {
          const content = pattern(part.length, unit + round);
          tasks.push(writeSoon(image, unit, [content]));
          part.set(content);
        }
        if (random() < 0.05) tasks.push(image.flush());
      }
      await Promise.all(tasks);
      if (round % 3 === 2) {
        // Whole clusters go, while others are read.
        const dropped = image.discard((round * 32) << 10, 512 << 10);
        const half = new Uint8Array(size / 2);
        await Promise.all([dropped, image.read(size / 2, [half])]);
        expected.fill(0, (round * 32) << 10, ((round * 32) << 10) + (512 << 10));
        expectSame(half, expected.subarray(size / 2));
      }
      expectSame(await readAll(image), expected);
    }
    await image.close();
    await writeFile(at('parallel.qcow2'), files.opened.get('disk')!.content);
    await checkImage(qemu, at('parallel.qcow2'));
    await writeFile(at('parallel.raw'), expected);
    await qemu.img('compare', '-f', 'qcow2', '-F', 'raw', at('parallel.qcow2'), at('parallel.raw'));
  });
});

test('at once: what lies in one piece is read and overwritten; all that would change the image is left to a request', async () => {
  const files = new MemoryFiles();
  files.contents.set('disk', new Uint8Array(0));
  const file = await files.open('disk', { readOnly: false, sharing: 'exclusive' });
  await createQcow2(file, 4 << 20);
  files.contents.set('disk', files.opened.get('disk')!.content.slice());
  const image = await openDiskImage(files, 'disk', WRITABLE);
  const bytes = pattern(4096, 1);
  const found = new Uint8Array(4096);
  expect(image.readNow?.(0, [found], 4096)).toBe(false);
  expect(image.writeNow?.(0, [bytes], 4096)).toBe(false);
  await image.write(0, [new Uint8Array(65_536)]);
  expect(image.writeNow?.(4096, [bytes], 4096)).toBe(true);
  expect(image.readNow?.(4096, [found], 4096)).toBe(true);
  expectSame(found, bytes);
  // Into the next cluster, which has no place; and off the disk.
  expect(image.writeNow?.(65_536 - 2048, [bytes], 4096)).toBe(false);
  expect(image.writeNow?.((4 << 20) - 2048, [bytes], 4096)).toBe(false);
  expect(image.readNow?.((4 << 20) - 2048, [found], 4096)).toBe(false);
  await image.close();
  const readOnly = await openDiskImage(files, 'disk', READABLE);
  expect(readOnly.writeNow?.(4096, [bytes], 4096)).toBe(false);
  await readOnly.close();
});

test('a cluster that is still being read is given to no other', async () => {
  let held: (() => void) | undefined;
  let holdsNext = false;
  const files = new MemoryFiles(async () => {
    if (!holdsNext) return;
    holdsNext = false;
    await new Promise<void>((resolve) => {
      held = resolve;
    });
  });
  files.contents.set('disk', new Uint8Array(0));
  const empty = await files.open('disk', { readOnly: false, sharing: 'exclusive' });
  await createQcow2(empty, SIZE);
  files.contents.set('disk', empty.content.slice());
  const image = await openDiskImage(files, 'disk', WRITABLE);
  await image.write(0, [new Uint8Array(65_536).fill(1)]);
  await image.flush();
  holdsNext = true;
  const found = new Uint8Array(512);
  const reading = image.read(0, [found]);
  await new Promise((resolve) => setImmediate(resolve));
  expect(held).toBeDefined();
  await image.discard(0, 65_536);
  await image.flush();
  await image.flush();
  await image.write(1 << 20, [new Uint8Array(65_536).fill(2)]);
  held!();
  await reading;
  expect(found.every((byte) => byte === 1)).toBe(true);
  // Afterwards it is.
  const before = files.opened.get('disk')!.sizeBytes;
  await image.flush();
  await image.write(2 << 20, [new Uint8Array(65_536).fill(3)]);
  expect(files.opened.get('disk')!.sizeBytes).toBe(before);
  await image.close();
});

describe('a crash at any moment', () => {
  const CRASHES = [
    { options: 'cluster_size=4k', size: 1 << 20, backing: false },
    { options: 'cluster_size=512,refcount_bits=64', size: 6 << 20, backing: false },
    { options: 'cluster_size=2k', size: 1 << 20, backing: true },
  ] as const;

  test.for(CRASHES)(
    'of $options, backing $backing leaves a sound image, with all that was flushed',
    async ({ options, size, backing }, context) => {
      if (noQemu) context.skip(noQemu);
      const path = at('crash.qcow2');
      const base = backing ? mixedDisk(size, 6) : new Uint8Array(size);
      await writeFile(at('crash-base.raw'), base);
      await qemu.img(
        'create',
        '-q',
        '-f',
        'qcow2',
        '-o',
        options,
        ...(backing ? ['-b', at('crash-base.raw'), '-F', 'raw'] : []),
        path,
        String(size),
      );
      const files = new MemoryFiles();
      files.contents.set('disk', await readFile(path));
      files.contents.set(at('crash-base.raw'), base);
      const image = await openDiskImage(files, 'disk', WRITABLE);
      const file = files.opened.get('disk')!;
      const random = seededRandom(size + options.length);
      // Every sector carries the number of its write, so that each may be old or new, but nothing else.
      const sectors = size / 512;
      const flushed = new Int32Array(sectors).fill(-1);
      const history: { readonly changes: number; readonly state: Int32Array }[] = [];
      const current = new Int32Array(sectors).fill(-1);
      const written: Set<number>[] = Array.from({ length: sectors }, () => new Set([-1]));
      const contentOf = (sector: number, tag: number): Uint8Array =>
        tag === -1
          ? base.subarray(sector * 512, sector * 512 + 512)
          : tag === 0
            ? new Uint8Array(512)
            : pattern(512, sector * 7919 + tag);
      for (let tag = 1; tag <= 120; tag++) {
        const first = Math.floor(random() * sectors);
        const count = Math.min(sectors - first, 1 + Math.floor(random() ** 3 * 256));
        const kind = random();
        const isZero = kind >= 0.65;
        if (kind < 0.65) {
          const content = new Uint8Array(count * 512);
          for (let index = 0; index < count; index++) content.set(contentOf(first + index, tag), index * 512);
          await writeSoon(image, first * 512, [content]);
        } else if (kind < 0.85) await image.writeZeroes(first * 512, count * 512);
        if (kind < 0.85) {
          for (let sector = first; sector < first + count; sector++) {
            current[sector] = isZero ? 0 : tag;
            written[sector]!.add(current[sector]!);
          }
        } else {
          await image.flush();
          flushed.set(current);
          history.push({ changes: file.log.length, state: flushed.slice() });
        }
      }
      await image.close();

      for (let crash = 0; crash < 25; crash++) {
        const changes = Math.floor(random() * file.log.length);
        const isPowerCut = crash % 2 === 1;
        const content = isPowerCut ? file.afterPowerCut(changes, () => random() < 0.5) : file.afterKill(changes);
        await writeFile(path, content);
        await checkImage(qemu, path, true);
        // All that was flushed before is there: as it was, or as some later write has it.
        const state = history.findLast((entry) => entry.changes <= changes)?.state ?? new Int32Array(sectors).fill(-1);
        const disk = await readPath(path);
        for (let sector = 0; sector < sectors; sector++) {
          const found = disk.subarray(sector * 512, sector * 512 + 512);
          const isAllowed = [...written[sector]!].some(
            (tag) =>
              (tag === state[sector] || tag === 0 || tag > state[sector]!) &&
              Buffer.compare(found, contentOf(sector, tag)) === 0,
          );
          if (!isAllowed)
            throw new Error(
              `${isPowerCut ? 'power cut' : 'kill'} at change ${changes}: sector ${sector} is neither what was flushed nor newer`,
            );
        }
      }
    },
  );
});

describe('growing', () => {
  test.for(['compat=1.1', 'cluster_size=512', 'cluster_size=4k,compat=0.10'])(
    'an image of %s',
    async (options, context) => {
      if (noQemu) context.skip(noQemu);
      const path = at('grow.qcow2');
      const base = mixedDisk(3 << 20, 8);
      await writeFile(at('grow-base.raw'), base);
      const isV3 = !options.includes('0.10');
      await qemu.img(
        'create',
        '-q',
        '-f',
        'qcow2',
        '-o',
        options,
        ...(isV3 ? ['-b', 'grow-base.raw', '-F', 'raw'] : []),
        path,
        '1M',
      );
      const image = await openDiskImage(hostFiles, path, WRITABLE);
      const expected = new Uint8Array(10 << 20);
      if (isV3) expected.set(base.subarray(0, 1 << 20));
      await image.write(0, [pattern(4096, 1)]);
      expected.set(pattern(4096, 1));
      await image.resize(2 << 20);
      await image.resize(10 << 20);
      await image.write((10 << 20) - 4096, [pattern(4096, 2)]);
      expected.set(pattern(4096, 2), (10 << 20) - 4096);
      expectSame(await readAll(image), expected);
      await expect(image.resize(1 << 20)).rejects.toThrow(/only grow/);
      await expect(image.resize(2 ** 60)).rejects.toThrow(DiskImageError);
      await image.close();
      await checkImage(qemu, path);
      expectSame(await readPath(path), expected);
    },
  );
});
