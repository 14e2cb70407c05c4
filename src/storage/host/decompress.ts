/** Unpacks what images keep compressed. What follows the packed data in its last sector is not looked at. */
import { promisify } from 'node:util';
import { inflateRaw, zstdDecompress } from 'node:zlib';
import type { CompressionType } from '../block-file.ts';

const inflate = promisify(inflateRaw);
const unzstd = promisify(zstdDecompress);

/** @throws Error if the data is not sound, or is more than `sizeBytes` */
export async function decompress(type: CompressionType, packed: Uint8Array, sizeBytes: number): Promise<Uint8Array> {
  if (type === 'zstd') return await unzstd(packed.subarray(0, zstdFrameBytes(packed)), { maxOutputLength: sizeBytes });
  return await inflate(packed, { maxOutputLength: sizeBytes });
}

const ZSTD_MAGIC = 0xfd2fb528;

/** The length of the first frame: zlib would take what follows for another one. Source: RFC 8878, 3.1.1. */
export function zstdFrameBytes(packed: Uint8Array): number {
  const view = new DataView(packed.buffer, packed.byteOffset, packed.length);
  if (packed.length < 6 || view.getUint32(0, true) !== ZSTD_MAGIC) throw new Error('not a zstd frame');
  const descriptor = packed[4]!;
  const isSingleSegment = (descriptor & 0x20) !== 0;
  const dictionaryBytes = [0, 1, 2, 4][descriptor & 3]!;
  const sizeFieldBytes = [isSingleSegment ? 1 : 0, 2, 4, 8][descriptor >> 6]!;
  let at = 5 + (isSingleSegment ? 0 : 1) + dictionaryBytes + sizeFieldBytes;
  for (;;) {
    if (at + 3 > packed.length) throw new Error('zstd frame without end');
    const block = packed[at]! | (packed[at + 1]! << 8) | (packed[at + 2]! << 16);
    // An RLE block has one byte, whatever its size says.
    at += 3 + (((block >> 1) & 3) === 1 ? 1 : block >> 3);
    if (block & 1) break;
  }
  if (descriptor & 4) at += 4;
  if (at > packed.length) throw new Error('zstd frame without end');
  return at;
}
