/**
 * Unpacking of every payload kind, and the cache. The xz (x86 BCJ filter, CRC32, as Debian's kernels have them), lzma and
 * bzip2 vectors were made with Python's lzma and bz2 modules, so that they do not come from the decoders under test.
 */

import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { constants, gzipSync, zstdCompressSync } from 'node:zlib';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { PayloadKind } from './builder/bzimage.ts';
import { KernelImageError } from './builder/errors.ts';
import { loadKernel, unpackPayload } from './kernel-image.ts';

const PLAIN = Buffer.from(`\x7fELF${'Domus unpacks kernels. '.repeat(200)}`, 'latin1');
const VECTORS = {
  xz: '/Td6WFoAAAFpIt42AgEEACEBFgANhjUf4BH7ADhdAD+RRYRqmw7/d4cH9P3rCCaT2UbPnDDZdciNLHtj1lKXM/y+sG+Z6hIYFuOWVLfitXFf5VnAsXkAAKrPKpUAAVD8IwAAAKZhmPA+MA2LAgAAAAABWVo=',
  lzma: 'XQAAgAD//////////wA/kUWEapsO/3eHB/T96wgmk9lGz5ww2XXIjSx7Y9ZSlzP8vrBvmeoSGBbjllS34rVxX+VZxOvhWr/+W2QA',
  bzip2:
    'QlpoOTFBWSZTWUI2pzsACP2VgEABBwQqD9oAoACICpKBoA0ApVRhMjEwqSCXCEqhCZ4yQT61riE2EX8RbiL4IthFuIuRF0IuxFyItBFkItBFiIuhFqIuxF68F3JFOFCQQjanOw==',
} as const;

const u32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
};

/** Encodes with literals only, one block per piece. Source: lz4_Block_format.md. */
function lz4Literals(...pieces: Buffer[]): Buffer {
  const blocks = pieces.map((piece) => {
    const more = piece.length - 15;
    const length = more < 0 ? [] : [...new Array<number>(Math.floor(more / 255)).fill(255), more % 255];
    return Buffer.concat([Buffer.from([Math.min(piece.length, 15) << 4, ...length]), piece]);
  });
  return Buffer.concat([u32(0x184c2102), ...blocks.flatMap((block) => [u32(block.length), block])]);
}

const PACKED: Record<Exclude<PayloadKind, 'elf' | 'lzo'>, Buffer> = {
  gzip: gzipSync(PLAIN),
  zstd: zstdCompressSync(PLAIN, { params: { [constants.ZSTD_c_windowLog]: 27, [constants.ZSTD_c_checksumFlag]: 1 } }),
  lz4: lz4Literals(PLAIN.subarray(0, 3000), PLAIN.subarray(3000)),
  xz: Buffer.from(VECTORS.xz, 'base64'),
  lzma: Buffer.from(VECTORS.lzma, 'base64'),
  bzip2: Buffer.from(VECTORS.bzip2, 'base64'),
};

const KINDS = Object.keys(PACKED) as (keyof typeof PACKED)[];

function bzImage(kind: keyof typeof PACKED): Buffer {
  const payload = kind === 'gzip' ? PACKED[kind] : Buffer.concat([PACKED[kind], u32(PLAIN.length)]);
  const setup = Buffer.alloc(1024);
  setup[0x1f1] = 1;
  setup.writeUInt16LE(0xaa55, 0x1fe);
  setup.write('HdrS', 0x202);
  setup.writeUInt16LE(0x20f, 0x206);
  setup.writeUInt32LE(payload.length, 0x24c);
  return Buffer.concat([setup, payload]);
}

let folder = '';
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'domus-kernel-'));
});
afterAll(async () => {
  await rm(folder, { recursive: true });
});

describe('unpackPayload()', () => {
  test.each(KINDS)('unpacks %s', async (kind) => {
    expect(Buffer.compare(await unpackPayload({ kind, bytes: PACKED[kind] }, 'k'), PLAIN)).toBe(0);
  });

  test.each(KINDS)('refuses %s cut short', async (kind) => {
    const bytes = PACKED[kind].subarray(0, PACKED[kind].length - 9);
    await expect(unpackPayload({ kind, bytes }, 'k')).rejects.toThrow(KernelImageError);
    await expect(unpackPayload({ kind, bytes }, 'k')).rejects.toThrow(
      /^k: the \w+ payload is damaged or cut short: [^\n]+$/,
    );
  });

  test('copies lz4 matches, overlapping ones too', async () => {
    // "ab", then a match of 6 at distance 2, then the literal "c".
    const block = Buffer.from([0x22, 0x61, 0x62, 2, 0, 0x10, 0x63]);
    const bytes = Buffer.concat([u32(0x184c2102), u32(block.length), block]);
    expect(Buffer.from(await unpackPayload({ kind: 'lz4', bytes }, 'k')).toString()).toBe('ababababc');
  });

  test('refuses an lz4 match that starts before the block', async () => {
    const block = Buffer.from([0x12, 0x61, 2, 0, 0x10, 0x63]);
    const bytes = Buffer.concat([u32(0x184c2102), u32(block.length), block]);
    await expect(unpackPayload({ kind: 'lz4', bytes }, 'k')).rejects.toThrow(/starts before the block/);
  });

  test('refuses a result of another size than the trailer says', async () => {
    const payload = { kind: 'gzip', bytes: PACKED.gzip, unpackedBytes: 7 } as const;
    await expect(unpackPayload(payload, 'k')).rejects.toThrow(`expected 7 bytes unpacked, found ${PLAIN.length}`);
  });

  test('refuses a claim of more than 1 GiB before unpacking', async () => {
    const payload = { kind: 'xz', bytes: PACKED.xz, unpackedBytes: 2 ** 30 + 1 } as const;
    await expect(unpackPayload(payload, 'k')).rejects.toThrow(/the limit is 1073741824/);
  });

  test('refuses LZO by name', async () => {
    await expect(unpackPayload({ kind: 'lzo', bytes: new Uint8Array(8) }, 'k')).rejects.toThrow(
      /^k: LZO kernels cannot/,
    );
  });
});

describe('loadKernel()', () => {
  test.each(KINDS)('unpacks a bzImage of kind %s and caches it', async (kind) => {
    const cacheDir = join(folder, `cache-${kind}`);
    const path = join(folder, `vmlinuz-${kind}`);
    await writeFile(path, bzImage(kind));
    const steps: string[] = [];
    const onProgress = (step: string): unknown => steps.push(step);
    const first = await loadKernel(path, { cacheDir, onProgress });
    const second = await loadKernel(path, { cacheDir, onProgress });
    expect(Buffer.compare(first.elf, PLAIN)).toBe(0);
    expect(Buffer.compare(second.elf, PLAIN)).toBe(0);
    expect(second.sha256).toBe(first.sha256);
    expect(steps).toEqual(['unpack']);
  });

  test('makes a damaged or shortened cache entry again', async () => {
    const cacheDir = join(folder, 'cache-damaged');
    const path = join(folder, 'vmlinuz');
    await writeFile(path, bzImage('gzip'));
    await loadKernel(path, { cacheDir });
    const [entry = ''] = await readdir(cacheDir);
    const good = await readFile(join(cacheDir, entry));
    const flipped = Buffer.from(good);
    flipped[100]! ^= 1;
    for (const bad of [flipped, good.subarray(0, good.length - 1), Buffer.alloc(0)]) {
      await writeFile(join(cacheDir, entry), bad);
      expect(Buffer.compare((await loadKernel(path, { cacheDir })).elf, PLAIN)).toBe(0);
      expect(Buffer.compare(await readFile(join(cacheDir, entry)), good)).toBe(0);
    }
    expect(await readdir(cacheDir)).toEqual([entry]);
  });

  test('boots on without a cache that cannot be written', async () => {
    const path = join(folder, 'vmlinuz-nocache');
    await writeFile(path, bzImage('gzip'));
    const steps: string[] = [];
    const kernel = await loadKernel(path, {
      cacheDir: join(path, 'below-a-file'),
      onProgress: (step) => steps.push(step),
    });
    expect(kernel.elf.length).toBe(PLAIN.length);
    expect(steps).toEqual(['unpack', 'cache']);
  });

  test('names a missing file, a folder, and a payload that is no ELF file', async () => {
    const cacheDir = join(folder, 'cache-bad');
    await expect(loadKernel(join(folder, 'none'), { cacheDir })).rejects.toThrow(
      /none: cannot read the kernel: no such file$/,
    );
    await expect(loadKernel(folder, { cacheDir })).rejects.toThrow(/cannot read the kernel: it is a folder$/);
    const path = join(folder, 'text.gz');
    await writeFile(path, gzipSync('hello'));
    await expect(loadKernel(path, { cacheDir })).rejects.toThrow(/does not unpack to an ELF file$/);
  });
});
