import { execFileSync, spawn } from 'node:child_process';
import { mkdtemp, readFile, rm, stat, symlink, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { DiskImageError } from './block-file.ts';
import { openDiskImage } from './disk-image.ts';
import { linuxCalls } from './host/libc.ts';
import { hostFiles } from './host/node-file.ts';
import { MemoryFile } from './host/test-file.ts';
import { RawImage } from './raw.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'domus-raw-'));
});
afterAll(async () => {
  await rm(folder, { recursive: true });
});

async function newFile(name: string, sizeBytes: number): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, '');
  await truncate(path, sizeBytes);
  return path;
}

const WRITABLE = { format: 'raw', readOnly: false } as const;

describe('a raw image', () => {
  test('takes scattered views of shared memory, more than one system call can', async () => {
    const path = await newFile('shared', 8 << 20);
    const image = await openDiskImage(hostFiles, path, WRITABLE);
    const memory = new Uint8Array(new WebAssembly.Memory({ initial: 64, maximum: 64, shared: true }).buffer);
    for (let at = 0; at < memory.length; at++) memory[at] = (at * 31 + (at >> 9)) & 0xff;
    const written: Uint8Array[] = [];
    for (let page = 0; page < 2500; page++)
      written.push(memory.subarray(((page * 7919) % 8192) * 512).subarray(0, 512));
    await image.write(1536, written);
    await image.flush();
    const expected = Buffer.concat(written);
    expect(Buffer.compare((await readFile(path)).subarray(1536, 1536 + expected.length), expected)).toBe(0);
    const target = new Uint8Array(new SharedArrayBuffer(expected.length));
    const views: Uint8Array[] = [];
    for (let at = 0; at < target.length; at += 1024) views.push(target.subarray(at, at + 1024));
    await image.read(1536, views);
    expect(Buffer.compare(target, expected)).toBe(0);
    await image.close();
  });

  test('refuses what is not on the disk, and writes to a disk that is read only', async () => {
    const path = await newFile('bounds', 4096);
    const image = await openDiskImage(hostFiles, path, { format: 'raw', readOnly: true });
    const sector = new Uint8Array(512);
    await image.read(3584, [sector]);
    for (const offset of [4096, 3585, -512, 2 ** 53, 0.5, Number.NaN]) {
      await expect(image.read(offset, [sector])).rejects.toThrow(DiskImageError);
    }
    await expect(image.write(0, [sector])).rejects.toThrow(/open for reading only/);
    await expect(image.resize(8192)).rejects.toThrow(DiskImageError);
    await image.close();
    const writable = await openDiskImage(hostFiles, path, WRITABLE);
    await expect(writable.write(4096, [sector])).rejects.toThrow(/has 4096 bytes/);
    await writable.close();
    expect((await stat(path)).size).toBe(4096);
  });

  test('is read and written at once where that is no waiting, and only where the file is', async () => {
    const image = await openDiskImage(hostFiles, await newFile('now', 8192), WRITABLE);
    // A request that something else has held up makes the next ones wait.
    const atOnce = (request: () => boolean | undefined): boolean => {
      for (let attempt = 0; attempt < 10_000; attempt++) if (request()) return true;
      return false;
    };
    const shared = new Uint8Array(new SharedArrayBuffer(4096)).fill(7);
    expect(atOnce(() => image.writeNow?.(4096, [shared.subarray(0, 512), shared.subarray(512)], 4096))).toBe(true);
    expect(image.writeNow?.(8192 - 512, [shared], 4096)).toBe(false);
    const found = new Uint8Array(4096);
    expect(atOnce(() => image.readNow?.(4096 - 512, [found], 4096))).toBe(true);
    expect(found.subarray(0, 512)).toEqual(new Uint8Array(512));
    expect(found.subarray(512)).toEqual(new Uint8Array(3584).fill(7));
    expect(image.readNow?.(8192 - 512, [found], 4096)).toBe(false);
    const large = new Uint8Array(8192);
    expect(atOnce(() => image.readNow?.(0, [large], 8192))).toBe(true);
    await image.close();
  });

  test('discards: zeroes, and the storage is given back', async (context) => {
    const path = await newFile('discard', 4 << 20);
    const image = await openDiskImage(hostFiles, path, WRITABLE);
    await image.write(0, [new Uint8Array(4 << 20).fill(1)]);
    await image.flush();
    const before = (await stat(path)).blocks;
    await image.discard(1 << 20, 2 << 20);
    await image.writeZeroes(512, 512);
    await image.close();
    const after = await stat(path);
    const bytes = await readFile(path);
    expect(bytes.subarray(1 << 20, 3 << 20).every((byte) => byte === 0)).toBe(true);
    expect([bytes[511], bytes[512], bytes[1023], bytes[1024]]).toEqual([1, 0, 0, 1]);
    expect(after.size).toBe(4 << 20);
    if (linuxCalls() === undefined) context.skip('holes need koffi on Linux');
    expect(after.blocks).toBeLessThanOrEqual(before - 4000);
  });

  test('on a host that knows no holes: zeroes are written, discards do nothing', async () => {
    class WithoutHoles extends MemoryFile {
      override async punch(): Promise<boolean> {
        return false;
      }
    }
    const file = new WithoutHoles('disk', new Uint8Array(3 << 20).fill(1), false);
    const image = new RawImage(file);
    await image.discard(0, 1 << 20);
    expect(file.log).toEqual([]);
    await image.writeZeroes(512, (2 << 20) + 512);
    const first = file.content.indexOf(0);
    const last = file.content.lastIndexOf(0);
    expect([first, last, file.content.subarray(first, last + 1).every((byte) => byte === 0)]).toEqual([
      512,
      (2 << 20) + 1023,
      true,
    ]);
  });

  test('grows and shrinks', async () => {
    const path = await newFile('resize', 4096);
    const image = await openDiskImage(hostFiles, path, WRITABLE);
    await image.resize(1 << 20);
    expect(image.sizeBytes).toBe(1 << 20);
    const tail = new Uint8Array(512).fill(9);
    await image.read((1 << 20) - 512, [tail]);
    expect(tail.every((byte) => byte === 0)).toBe(true);
    await image.close();
    expect((await stat(path)).size).toBe(1 << 20);
  });
});

describe('opening an image', () => {
  test('says what is wrong with the path', async () => {
    await expect(openDiskImage(hostFiles, join(folder, 'none'), WRITABLE)).rejects.toThrow(/none: .*no such file/);
    await expect(openDiskImage(hostFiles, folder, WRITABLE)).rejects.toThrow(/is a directory/);
    await expect(openDiskImage(hostFiles, '/dev/null', WRITABLE)).rejects.toThrow(/expected a file or a block device/);
  });

  test('refuses a second writer, whatever its path, until the first is gone', async () => {
    const path = await newFile('lock', 4096);
    const link = join(folder, 'link');
    await symlink(path, link);
    const first = await openDiskImage(hostFiles, path, WRITABLE);
    const second = linuxCalls() === undefined ? path : link;
    await expect(openDiskImage(hostFiles, second, WRITABLE)).rejects.toThrow(/in use by another process/);
    await expect(openDiskImage(hostFiles, second, { format: 'raw', readOnly: true })).rejects.toThrow(/writes to it/);
    const shared = await openDiskImage(hostFiles, second, { ...WRITABLE, sharing: 'shared' }).catch(() => undefined);
    // Sharing is for both to want.
    expect(shared).toBeUndefined();
    await first.close();
    await (await openDiskImage(hostFiles, second, WRITABLE)).close();
  });

  test('lets many read, and many write who agree to it', async () => {
    const path = await newFile('sharing', 4096);
    for (const options of [
      { format: 'raw', readOnly: true },
      { ...WRITABLE, sharing: 'shared' },
    ] as const) {
      const images = [];
      for (let count = 0; count < 3; count++) images.push(await openDiskImage(hostFiles, path, options));
      for (const image of images) await image.close();
    }
    const reader = await openDiskImage(hostFiles, path, { format: 'raw', readOnly: true });
    await expect(openDiskImage(hostFiles, path, WRITABLE)).rejects.toThrow(/wants no other to write/);
    await reader.close();
  });

  test('notices another process, and that it was killed', async () => {
    const path = await newFile('process', 4096);
    const source = `
      const { openDiskImage } = await import(${JSON.stringify(import.meta.resolve('./disk-image.ts'))});
      const { hostFiles } = await import(${JSON.stringify(import.meta.resolve('./host/node-file.ts'))});
      await openDiskImage(hostFiles, ${JSON.stringify(path)}, { format: 'raw', readOnly: false });
      console.log('open');
      setInterval(() => {}, 1000);`;
    const child = spawn(process.execPath, ['--input-type=module', '-e', source], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    await new Promise((resolve) => child.stdout.once('data', resolve));
    await expect(openDiskImage(hostFiles, path, WRITABLE)).rejects.toThrow(/in use by another process/);
    const gone = new Promise((resolve) => child.once('exit', resolve));
    child.kill('SIGKILL');
    await gone;
    await (await openDiskImage(hostFiles, path, WRITABLE)).close();
  });

  test('works on block devices', async (context) => {
    const backing = await newFile('device', 3 << 20);
    let device: string;
    try {
      device = execFileSync('losetup', ['--find', '--show', backing], { encoding: 'utf8', stdio: 'pipe' }).trim();
    } catch {
      return context.skip('losetup cannot make a loop device here');
    }
    try {
      const image = await openDiskImage(hostFiles, device, WRITABLE);
      expect(image.sizeBytes).toBe(3 << 20);
      await image.write((3 << 20) - 512, [new Uint8Array(512).fill(5)]);
      await expect(image.resize(4 << 20)).rejects.toThrow(/block device/);
      await image.close();
      expect((await readFile(backing)).at(-1)).toBe(5);
    } finally {
      execFileSync('losetup', ['--detach', device]);
    }
  });
});
