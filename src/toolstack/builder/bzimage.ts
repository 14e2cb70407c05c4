/**
 * Finds the kernel inside a kernel file: the compressed payload of a bzImage, or the file itself.
 *
 * Owns: the x86 boot header and the recognition of a payload's kind by its first bytes. Pure: unpacking is the
 * caller's, because it needs the host's decompressors.
 *
 *     file:  | boot sector + setup, (setup_sects + 1) * 512 | protected-mode part ............................... |
 *                                                            | payload_offset -> | payload_length (with trailer) |
 *
 * Source: Linux Documentation/arch/x86/boot.rst, fields setup_sects, header, version, payload_offset, payload_length.
 */

import { isElf } from './elf.ts';
import { KernelImageError } from './errors.ts';

export type PayloadKind = 'elf' | 'gzip' | 'bzip2' | 'lzma' | 'xz' | 'lzo' | 'lz4' | 'zstd';

export interface Payload {
  readonly kind: PayloadKind;
  /** The compressed stream without kbuild's trailer; a view on the input, not a copy. */
  readonly bytes: Uint8Array;
  /** Size after unpacking in bytes, if the file states it (bzImage only). */
  readonly unpackedBytes?: number;
}

/** Offsets in the boot header. Source: boot.rst, "The Real-Mode Kernel Header". */
const SETUP_SECTS = 0x1f1;
const BOOT_FLAG = 0x1fe;
const HEADER = 0x202;
const VERSION = 0x206;
const PAYLOAD_OFFSET = 0x248;
const PAYLOAD_LENGTH = 0x24c;
const HEADER_END = 0x250;
const SECTOR_BYTES = 512;
/** "HdrS" as a little-endian word. */
const HDRS = 0x53726448;

/** First bytes of each kind. Source: boot.rst, payload_offset; RFC 1952, RFC 8878, the xz and lz4 frame formats. */
const MAGICS: readonly { readonly kind: PayloadKind; readonly bytes: readonly number[] }[] = [
  { kind: 'gzip', bytes: [0x1f, 0x8b] },
  { kind: 'bzip2', bytes: [0x42, 0x5a, 0x68] },
  { kind: 'xz', bytes: [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00] },
  { kind: 'zstd', bytes: [0x28, 0xb5, 0x2f, 0xfd] },
  { kind: 'lzma', bytes: [0x5d, 0x00] },
  { kind: 'lzo', bytes: [0x89, 0x4c, 0x5a, 0x4f] },
  { kind: 'lz4', bytes: [0x02, 0x21, 0x4c, 0x18] },
  { kind: 'elf', bytes: [0x7f, 0x45, 0x4c, 0x46] },
];

function kindOf(bytes: Uint8Array): PayloadKind | undefined {
  return MAGICS.find((magic) => magic.bytes.every((value, index) => bytes[index] === value))?.kind;
}

/**
 * Finds the payload of a bzImage, or takes the file as it is if it is an ELF file or a compressed one.
 *
 * @param bytes the whole file
 * @param name the file's name, for messages
 * @throws KernelImageError if the file is neither, or its boot header points outside it
 */
export function findPayload(bytes: Uint8Array, name: string): Payload {
  if (bytes.length === 0) throw new KernelImageError(name, 'the file is empty');
  if (isElf(bytes)) return { kind: 'elf', bytes };
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const isBzImage =
    bytes.length >= HEADER + 4 && view.getUint32(HEADER, true) === HDRS && view.getUint16(BOOT_FLAG, true) === 0xaa55;
  if (!isBzImage) {
    const kind = kindOf(bytes);
    if (kind) return { kind, bytes };
    throw new KernelImageError(
      name,
      'not a kernel: neither a bzImage ("HdrS" at 0x202) nor an ELF file nor a compressed one',
    );
  }

  if (bytes.length < HEADER_END) {
    throw new KernelImageError(
      name,
      `bzImage truncated: the boot header ends at ${HEADER_END}, the file has ${bytes.length} bytes`,
    );
  }
  const version = view.getUint16(VERSION, true);
  if (version < 0x0208) {
    throw new KernelImageError(
      name,
      `bzImage boot protocol: expected at least 2.08 (Linux 2.6.26), found ${version >> 8}.${(version & 0xff).toString().padStart(2, '0')}`,
    );
  }
  // 0 means 4. Source: boot.rst, setup_sects.
  const setupSects = (bytes[SETUP_SECTS] ?? 0) || 4;
  const start = (setupSects + 1) * SECTOR_BYTES + view.getUint32(PAYLOAD_OFFSET, true);
  const length = view.getUint32(PAYLOAD_LENGTH, true);
  if (length === 0) throw new KernelImageError(name, 'bzImage payload_length: expected more than 0, found 0');
  if (start + length > bytes.length) {
    throw new KernelImageError(
      name,
      `bzImage truncated: the payload ends at ${start + length}, the file has ${bytes.length} bytes`,
    );
  }
  const payload = bytes.subarray(start, start + length);
  const kind = kindOf(payload);
  if (!kind) {
    const found = [...payload.subarray(0, 4)].map((byte) => byte.toString(16).padStart(2, '0')).join(' ');
    throw new KernelImageError(
      name,
      `bzImage payload: expected gzip, bzip2, lzma, xz, lz4, zstd or ELF, found bytes ${found}`,
    );
  }
  if (kind === 'elf' || length < 8) return { kind, bytes: payload };
  // kbuild appends the unpacked size to every kind but gzip, whose own last field (ISIZE, RFC 1952) is the same thing.
  const unpackedBytes = view.getUint32(start + length - 4, true);
  return { kind, bytes: kind === 'gzip' ? payload : payload.subarray(0, length - 4), unpackedBytes };
}
