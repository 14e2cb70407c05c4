import { crc32, zstdCompressSync, zstdDecompressSync } from 'node:zlib';
import { describe, expect, it } from 'vitest';
import {
  type Codec,
  HEADER_BYTES,
  PART_BYTES_MAX,
  PART_DESCRIPTION,
  PART_END,
  PART_HEADER_BYTES,
  PART_PAGES,
  SaveFileError,
  SaveReader,
  SaveWriter,
  VERSION,
} from './save-file.ts';

const CODEC: Codec = {
  crc32: (bytes) => crc32(bytes),
  compress: async (bytes) => zstdCompressSync(bytes),
  decompress: async (bytes, bytesMax) => zstdDecompressSync(bytes, { maxOutputLength: Math.max(bytesMax, 1) }),
};

async function written(...parts: readonly (readonly [number, Uint8Array])[]): Promise<Uint8Array> {
  const chunks: Uint8Array[] = [];
  const writer = new SaveWriter(async (bytes) => void chunks.push(Uint8Array.from(bytes)), CODEC);
  await writer.start();
  for (const [kind, bytes] of parts) await writer.part(kind, bytes);
  return Uint8Array.from(Buffer.concat(chunks));
}

function readerOf(file: Uint8Array): SaveReader {
  let at = 0;
  return new SaveReader(async (count) => file.slice(at, (at += count)), CODEC);
}

/** Reads to the end part; the kinds. */
async function readAll(file: Uint8Array): Promise<number[]> {
  const reader = readerOf(file);
  await reader.start();
  const kinds: number[] = [];
  while (kinds.at(-1) !== PART_END) kinds.push((await reader.part()).kind);
  return kinds;
}

const noise = Uint8Array.from({ length: 5000 }, (_, i) => (i * 2654435761) >>> 24);
const dull = new Uint8Array(100_000).fill(7);

describe('a saved file', () => {
  it('gives back what was written, whether it could be compressed or not', async () => {
    const file = await written(
      [PART_DESCRIPTION, noise.subarray(0, 40)],
      [PART_PAGES, dull],
      [PART_END, new Uint8Array(0)],
    );
    expect(file.length).toBeLessThan(1000);
    const reader = readerOf(file);
    await reader.start();
    expect(await reader.expect(PART_DESCRIPTION)).toEqual(noise.slice(0, 40));
    expect(Buffer.from(await reader.expect(PART_PAGES)).equals(Buffer.from(dull))).toBe(true);
    expect(await reader.expect(PART_END)).toEqual(new Uint8Array(0));
  });

  it('begins with its name and version', async () => {
    const file = await written();
    expect(file.length).toBe(HEADER_BYTES);
    expect(new TextDecoder().decode(file.subarray(0, 8))).toBe('DomusSav');
    expect(new DataView(file.buffer, file.byteOffset).getUint32(8, true)).toBe(VERSION);
  });

  it('is refused when any one of its bytes is another', async () => {
    const file = await written(
      [PART_DESCRIPTION, noise.subarray(0, 100)],
      [PART_PAGES, dull],
      [PART_END, new Uint8Array(0)],
    );
    for (let at = 0; at < file.length; at++) {
      const damaged = Uint8Array.from(file);
      damaged[at] ^= 1 << (at % 8);
      await expect(readAll(damaged), `byte ${at}`).rejects.toThrow(SaveFileError);
    }
  });

  it('is refused when it ends early, wherever', async () => {
    const file = await written([PART_PAGES, dull], [PART_END, new Uint8Array(0)]);
    for (let length = HEADER_BYTES; length < file.length; length++)
      await expect(readAll(file.slice(0, length)), `${length} bytes`).rejects.toThrow(
        /^truncated: it ends after \d+ bytes$/,
      );
  });

  it('is refused in one line when it is newer', async () => {
    const file = Uint8Array.from(await written());
    const view = new DataView(file.buffer);
    view.setUint32(8, VERSION + 1, true);
    view.setUint32(12, crc32(file.subarray(0, 12)), true);
    await expect(readerOf(file).start()).rejects.toThrow(
      `its format has version ${VERSION + 1}, and this Domus reads version ${VERSION}`,
    );
  });

  it('is refused as xl refuses it when it is something else', async () => {
    const passwd = new TextEncoder().encode('root:x:0:0:root:/root:/bin/bash\n');
    for (const file of [passwd, new Uint8Array(0), passwd.slice(0, 3)])
      await expect(readerOf(file).start()).rejects.toThrow(
        'File has wrong magic number - corrupt or for a different tool?',
      );
  });

  it('has no part that takes more memory than it may, whatever it says', async () => {
    const file = Uint8Array.from(await written([PART_PAGES, dull]));
    const at = HEADER_BYTES;
    const view = new DataView(file.buffer);
    const sealed = (): Uint8Array => {
      view.setUint32(at + 20, crc32(file.subarray(at, at + 20)), true);
      return file;
    };
    view.setUint32(at + 12, PART_BYTES_MAX + 1, true);
    await expect(readAll(sealed())).rejects.toThrow('damaged: a part that cannot be at byte 16');
    // A frame that comes to more than the header says.
    view.setUint32(at + 12, dull.length - 1, true);
    await expect(readAll(sealed())).rejects.toThrow(/^damaged: a part that does not decompress/);
    view.setUint32(at + 12, dull.length + 1, true);
    await expect(readAll(sealed())).rejects.toThrow('damaged: a part of another length than it says');
    expect(PART_HEADER_BYTES).toBe(24);
  });

  it('says which part is missing', async () => {
    const reader = readerOf(await written([PART_END, new Uint8Array(0)]));
    await reader.start();
    await expect(reader.expect(PART_DESCRIPTION)).rejects.toThrow(
      'damaged: a part of kind 6 at byte 16, where kind 1 is expected',
    );
  });
});
