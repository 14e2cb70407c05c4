/** Every byte of a tree of files, as mke2fs, mkfs.fat, mtools and genisoimage put it on disks. */
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { seededRandom } from '../../storage/host/test-file.ts';
import { AptError } from '../guest-image/apt.ts';
import { type DebianTool, debianTool } from '../guest-image/debian-tool.ts';
import { findPath } from './file-system.ts';
import { findPartitions } from './partitions.ts';
import { openFileSystem } from './pygrub.ts';
import { BootDiskError, Volume } from './volume.ts';

let folder: string;
let tree: string;
const files = new Map<string, Uint8Array>();
const links: Record<string, string> = {
  'boot/vmlinuz': 'vmlinuz-6.1.0-with-a-rather-long-name',
  'absolute-link': '/boot/grub/grub.cfg',
  'deep/link-to-folder': '../boot/./grub/..',
  'long-link': `${'./'.repeat(100)}boot/vmlinuz`,
};

function content(sizeBytes: number, seed: number): Uint8Array {
  const random = seededRandom(seed);
  return Uint8Array.from({ length: sizeBytes }, () => random() * 256);
}

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'domus-fs-'));
  tree = join(folder, 'tree');
  const random = seededRandom(1);
  const add = (path: string, bytes: Uint8Array): void => {
    mkdirSync(join(tree, path, '..'), { recursive: true });
    writeFileSync(join(tree, path), bytes);
    files.set(path, bytes);
  };
  for (const size of [0, 1, 59, 60, 100, 155, 1023, 1024, 4096, 12 * 1024, 12 * 1024 + 1, 300_000, 2_500_000]) {
    add(`sizes/file-of-${size}-bytes.bin`, content(size, size));
  }
  add('boot/vmlinuz-6.1.0-with-a-rather-long-name', content(777_777, 2));
  add('boot/grub/grub.cfg', content(5000, 3));
  add('UPPER.TXT', content(10, 4));
  add('a/b/c/d/e/f/g/h/i/deep.file', content(2000, 5));
  for (let index = 0; index < 200; index++)
    add(`many/entry number ${index} with a name.txt`, content(Math.floor(random() * 20), index));
  // A hole in the middle.
  add('sparse', new Uint8Array(0));
  truncateSync(join(tree, 'sparse'), 1_000_000);
  files.set('sparse', new Uint8Array(1_000_000));
});
afterAll(() => rmSync(folder, { recursive: true }));

function addLinks(): void {
  for (const [name, target] of Object.entries(links)) {
    mkdirSync(join(tree, name, '..'), { recursive: true });
    symlinkSync(target, join(tree, name));
  }
}

async function toolOrWhyNot(name: string, packageName: string): Promise<DebianTool | string> {
  try {
    return await debianTool(name, packageName);
  } catch (error) {
    if (error instanceof AptError) return error.message;
    throw error;
  }
}

function run(tool: DebianTool, words: readonly string[]): void {
  execFileSync(tool.path, words, { env: tool.env, stdio: 'pipe' });
}

function volumeOf(bytes: Uint8Array, start = 0, sizeBytes?: number): Volume {
  const disk = {
    sizeBytes: bytes.length,
    read: async (offset: number, buffers: readonly Uint8Array[]) => {
      for (const buffer of buffers) {
        buffer.set(bytes.subarray(offset, offset + buffer.length));
        offset += buffer.length;
      }
    },
  };
  return new Volume(disk, start, sizeBytes);
}

async function expectTree(volume: Volume, hasLinks: boolean, kind: RegExp): Promise<void> {
  const fs = await openFileSystem(volume);
  expect(fs?.kind).toMatch(kind);
  for (const [path, bytes] of files) {
    const node = await findPath(fs!, `/${path}`);
    if (node === undefined) throw new Error(`there is no ${path}`);
    expect([path, node.kind, node.sizeBytes]).toEqual([path, 'file', bytes.length]);
    expect(Buffer.compare(await fs!.read(node, 0, node.sizeBytes), bytes), path).toBe(0);
    if (bytes.length > 2000) {
      const part = await fs!.read(node, 777, 1111);
      expect(Buffer.compare(part, bytes.subarray(777, 1888)), path).toBe(0);
    }
  }
  const many = (await findPath(fs!, '/many'))!;
  expect((await fs!.names(many)).length).toBe(200);
  expect(await findPath(fs!, '/many/none')).toBeUndefined();
  expect(await findPath(fs!, '/boot/grub/grub.cfg/x')).toBeUndefined();
  expect((await findPath(fs!, '/../boot//./grub/../grub'))?.kind).toBe('directory');
  if (!hasLinks) return;
  const kernel = files.get('boot/vmlinuz-6.1.0-with-a-rather-long-name')!;
  for (const path of ['/boot/vmlinuz', '/deep/link-to-folder/vmlinuz', '/long-link']) {
    const node = await findPath(fs!, path);
    expect([path, node?.sizeBytes]).toEqual([path, kernel.length]);
  }
  expect((await findPath(fs!, '/absolute-link'))?.sizeBytes).toBe(5000);
}

describe('a tree of files', () => {
  test('on FAT12, FAT16 and FAT32', async (context) => {
    const mkfs = await toolOrWhyNot('mkfs.fat', 'dosfstools');
    const mcopy = await toolOrWhyNot('mcopy', 'mtools');
    if (typeof mkfs === 'string') return context.skip(mkfs);
    if (typeof mcopy === 'string') return context.skip(mcopy);
    const roots = ['sizes', 'boot', 'UPPER.TXT', 'a', 'many', 'sparse'].map((name) => join(tree, name));
    for (const [bits, mebibytes, sectors] of [
      [12, 7, 4],
      [16, 20, 1],
      [32, 40, 1],
    ] as const) {
      const image = join(folder, `fat${bits}`);
      writeFileSync(image, '');
      truncateSync(image, mebibytes << 20);
      run(mkfs, ['-F', String(bits), '-s', String(sectors), image]);
      run(mcopy, ['-s', '-i', image, ...roots, '::']);
      await expectTree(volumeOf(readFileSync(image)), false, new RegExp(`^fat${bits}$`));
    }
  });

  const EXT: readonly (readonly string[])[] = [
    ['-t', 'ext4'],
    ['-t', 'ext4', '-O', '^64bit,^metadata_csum', '-b', '1024'],
    ['-t', 'ext4', '-O', 'inline_data', '-I', '256'],
    ['-t', 'ext4', '-O', 'inline_data,bigalloc', '-I', '1024'],
    ['-t', 'ext4', '-O', 'meta_bg,^resize_inode', '-b', '1024', '-g', '1024'],
    ['-t', 'ext4', '-O', 'casefold'],
    ['-t', 'ext3', '-b', '1024'],
    ['-t', 'ext2', '-I', '128', '-b', '2048'],
    ['-t', 'ext2', '-r', '0'],
  ];
  test.for(EXT.map((options) => [options.join(' '), options] as const))('on %s', async ([, options], context) => {
    const mke2fs = await toolOrWhyNot('mke2fs', 'e2fsprogs');
    if (typeof mke2fs === 'string') return context.skip(mke2fs);
    rmSync(join(tree, 'boot/vmlinuz'), { force: true });
    for (const name of Object.keys(links)) rmSync(join(tree, name), { force: true });
    addLinks();
    const image = join(folder, 'ext');
    rmSync(image, { force: true });
    run(mke2fs, ['-q', '-F', ...options, '-d', tree, image, '24M']);
    await expectTree(volumeOf(readFileSync(image)), true, /^ext/);
  });

  test.for([
    ['Rock Ridge', ['-R']],
    ['Joliet', ['-J', '-joliet-long', '-D']],
    ['both', ['-R', '-J', '-joliet-long']],
  ] as const)('on ISO 9660 with %s', async ([kind, options], context) => {
    const genisoimage = await toolOrWhyNot('genisoimage', 'genisoimage');
    if (typeof genisoimage === 'string') return context.skip(genisoimage);
    for (const name of Object.keys(links)) rmSync(join(tree, name), { force: true });
    if (kind !== 'Joliet') addLinks();
    const image = join(folder, 'iso');
    run(genisoimage, ['-quiet', ...options, '-o', image, tree]);
    await expectTree(volumeOf(readFileSync(image)), kind !== 'Joliet', /^iso9660$/);
  });
});

describe('partitions', () => {
  test.for([
    [
      'MBR with logical partitions',
      'label: dos\nsize=1M, type=83\nsize=2M, type=83, bootable\nsize=6M, type=5\nsize=1M, type=83\nsize=1M, type=83\nsize=1M, type=83\n',
      [2, 1, 5, 6, 4, 0],
    ],
    ['GPT', 'label: gpt\nsize=1M\nsize=2M\nsize=3M\n', [1, 2, 3, 0]],
  ] as const)('of sfdisk: %s', async ([, script, numbers], context) => {
    const sfdisk = await toolOrWhyNot('sfdisk', 'fdisk');
    if (typeof sfdisk === 'string') return context.skip(sfdisk);
    const image = join(folder, 'partitioned');
    writeFileSync(image, '');
    truncateSync(image, 16 << 20);
    execFileSync(sfdisk.path, ['-q', image], { env: sfdisk.env, input: script, stdio: 'pipe' });
    const dump = JSON.parse(execFileSync(sfdisk.path, ['--json', image], { env: sfdisk.env, encoding: 'utf8' })) as {
      partitiontable: { partitions: { node: string; start: number; size: number; type: string }[] };
    };
    const expected = new Map(
      dump.partitiontable.partitions
        .filter(({ type }) => type !== '5')
        .map(({ node, start, size }) => [Number(/\d+$/.exec(node)![0]), [start * 512, size * 512]]),
    );
    const found = await findPartitions(volumeOf(readFileSync(image)));
    expect(found.map(({ number }) => number)).toEqual(numbers);
    for (const { number, offset, sizeBytes } of found) {
      if (number !== 0) expect([offset, sizeBytes]).toEqual(expected.get(number));
    }
  });

  test('without a table the disk is one', async () => {
    expect(await findPartitions(volumeOf(new Uint8Array(1 << 20)))).toEqual([
      { number: 0, offset: 0, sizeBytes: 1 << 20 },
    ]);
    expect(await findPartitions(volumeOf(new Uint8Array(10)))).toHaveLength(1);
  });

  test('a chain of extended partitions that bites its tail ends', async () => {
    const disk = new Uint8Array(1 << 20);
    const view = new DataView(disk.buffer);
    for (const sector of [0, 8]) view.setUint16(sector * 512 + 510, 0xaa55, true);
    view.setUint8(446 + 4, 5);
    view.setUint32(446 + 8, 8, true);
    view.setUint8(8 * 512 + 446 + 4, 0x83);
    view.setUint32(8 * 512 + 446 + 8, 1, true);
    view.setUint8(8 * 512 + 462 + 4, 5);
    view.setUint32(8 * 512 + 462 + 8, 0, true);
    expect((await findPartitions(volumeOf(disk))).map(({ number }) => number)).toEqual([5, 0]);
  });
});

describe('a spoilt file system', () => {
  test.for(['ext', 'fat12', 'fat32', 'iso'])(
    '%s is read, or refused with an error of its own',
    async (name, context) => {
      let sound: Uint8Array;
      try {
        sound = readFileSync(join(folder, name));
      } catch {
        return context.skip('the tool that makes one is not here');
      }
      const random = seededRandom(9);
      for (let round = 0; round < 120; round++) {
        const image = sound.slice();
        // Where the tables are: the start, and wherever directories and the like happen to be.
        const reach = round % 2 === 0 ? 8192 : name === 'iso' ? 400_000 : 2 << 20;
        const start = name === 'iso' ? 32768 : 0;
        for (let count = 0; count < (round % 2 === 0 ? 6 : 300); count++) {
          image[start + Math.floor(random() * reach)] = random() < 0.5 ? random() * 256 : 255;
        }
        try {
          const fs = await openFileSystem(volumeOf(image));
          if (fs === undefined) continue;
          for (const path of [
            '/boot/vmlinuz',
            '/a/b/c/d/e/f/g/h/i/deep.file',
            '/many/entry number 7 with a name.txt',
          ]) {
            const node = await findPath(fs, path);
            if (node?.kind === 'file') await fs.read(node, 0, Math.min(node.sizeBytes, 1 << 20));
            else if (node?.kind === 'directory') await fs.names(node);
          }
        } catch (error) {
          if (!(error instanceof BootDiskError)) throw error;
        }
      }
    },
  );

  test('with links in a circle', async (context) => {
    const mke2fs = await toolOrWhyNot('mke2fs', 'e2fsprogs');
    if (typeof mke2fs === 'string') return context.skip(mke2fs);
    const loop = join(folder, 'loop');
    mkdirSync(loop);
    symlinkSync('b', join(loop, 'a'));
    symlinkSync('a', join(loop, 'b'));
    run(mke2fs, ['-q', '-F', '-d', loop, join(folder, 'loop.img'), '1M']);
    const fs = await openFileSystem(volumeOf(readFileSync(join(folder, 'loop.img'))));
    await expect(findPath(fs!, '/a')).rejects.toThrow(/too many symbolic links/);
  });
});
