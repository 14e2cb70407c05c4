/**
 * The structures of a VHD image: footer, header, and where its parent is.
 *
 *     fixed:    data | footer
 *     dynamic:  copy of the footer | header | block allocation table (BAT) | blocks: sector bitmap, data | footer
 *     differencing: as dynamic, with a parent that has the sectors whose bits are not set
 *
 * Source: Microsoft, Virtual Hard Disk Image Format Specification 1.0. All numbers are big-endian.
 */
import { type BlockFile, DiskImageError } from '../block-file.ts';

export const FOOTER = {
  cookie: 0,
  features: 8,
  version: 12,
  data_offset: 16,
  timestamp: 24,
  creator_application: 28,
  creator_version: 32,
  creator_os: 36,
  original_size: 40,
  current_size: 48,
  geometry: 56,
  disk_type: 60,
  checksum: 64,
  unique_id: 68,
  SIZE: 512,
} as const;

export const SPARSE = {
  cookie: 0,
  data_offset: 8,
  table_offset: 16,
  version: 24,
  max_table_entries: 28,
  block_size: 32,
  checksum: 36,
  parent_unique_id: 40,
  parent_timestamp: 56,
  parent_name: 64,
  PARENT_NAME_SIZE: 512,
  parent_locators: 576,
  LOCATOR_SIZE: 24,
  LOCATORS: 8,
  SIZE: 1024,
} as const;

export const DISK_TYPE = { FIXED: 2, DYNAMIC: 3, DIFFERENCING: 4 } as const;
/** Codes of parent locators: UTF-16 names, relative and absolute, and a file URL, which is what Xen's tools write. */
export const PLATFORM = { W2ru: 0x57327275, W2ku: 0x57326b75, MacX: 0x4d616358 } as const;
export const UNALLOCATED = 0xffffffff;
export const FOOTER_COOKIE = 0x636f6e6563746978n;
export const SPARSE_COOKIE = 0x6378737061727365n;

/** Makers that mean `current_size`; all others mean the size that the geometry gives, as QEMU has it. */
const MEAN_CURRENT_SIZE: readonly string[] = ['win ', 'qem2', 'd2v ', 'tap\0', 'CTXS', 'dms '];
const CHS_SECTORS_MAX = 65535 * 16 * 255;
/** 16 MiB of BAT; 2 TiB, the format's limit, in blocks of 2 MiB are 2^20 entries. */
const TABLE_ENTRIES_MAX = 2 ** 22;
const BLOCK_BYTES_MAX = 2 ** 28;
const LOCATOR_BYTES_MAX = 4096;

export interface VhdFooter {
  readonly bytes: Uint8Array;
  readonly type: number;
  readonly sizeBytes: number;
  readonly dataOffset: number;
  readonly uniqueId: string;
}

export interface VhdHeader {
  readonly tableOffset: number;
  readonly tableEntries: number;
  readonly blockBytes: number;
  readonly parentUniqueId: string;
  /** Names of the parent, the best first. */
  readonly parentNames: readonly string[];
  /** Where data of parent locators is. */
  readonly locatorAreas: readonly { readonly offset: number; readonly lengthBytes: number }[];
}

/** One's complement of the sum of all bytes but the checksum's own. */
export function checksumOf(bytes: Uint8Array, checksumOffset: number): number {
  let sum = 0;
  for (let at = 0; at < bytes.length; at++) if (at < checksumOffset || at >= checksumOffset + 4) sum += bytes[at]!;
  return ~sum >>> 0;
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}

function numberOf(value: bigint): number {
  return value > Number.MAX_SAFE_INTEGER ? Number.POSITIVE_INFINITY : Number(value);
}

export function isFooter(bytes: Uint8Array): boolean {
  return viewOf(bytes).getBigUint64(FOOTER.cookie) === FOOTER_COOKIE;
}

function hexOf(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** The footer at the end, or its copy at the start if that one is damaged. @throws DiskImageError if neither is sound */
export async function readFooter(file: BlockFile): Promise<VhdFooter> {
  const reasons: string[] = [];
  for (const offset of [file.sizeBytes - FOOTER.SIZE, 0]) {
    if (offset < 0) continue;
    const bytes = new Uint8Array(FOOTER.SIZE);
    await file.read(offset, [bytes]);
    const view = viewOf(bytes);
    if (!isFooter(bytes)) {
      reasons.push(`no footer at ${offset}`);
      continue;
    }
    const found = view.getUint32(FOOTER.checksum);
    const expected = checksumOf(bytes, FOOTER.checksum);
    if (found !== expected) {
      reasons.push(
        `the footer at ${offset} has the checksum 0x${found.toString(16)}, expected 0x${expected.toString(16)}`,
      );
      continue;
    }
    const type = view.getUint32(FOOTER.disk_type);
    // A fixed disk may begin with anything, even with another disk's footer.
    if (offset === 0 && type === DISK_TYPE.FIXED) {
      reasons.push('the footer at 0 is that of a fixed disk');
      continue;
    }
    return {
      bytes,
      type,
      sizeBytes: diskSize(view, bytes),
      dataOffset: numberOf(view.getBigUint64(FOOTER.data_offset)),
      uniqueId: hexOf(bytes.subarray(FOOTER.unique_id, FOOTER.unique_id + 16)),
    };
  }
  throw new DiskImageError(
    `${file.path}: not a vhd image: ${reasons.join(', ') || `it has only ${file.sizeBytes} bytes`}`,
  );
}

function diskSize(view: DataView, bytes: Uint8Array): number {
  const maker = String.fromCharCode(...bytes.subarray(FOOTER.creator_application, FOOTER.creator_application + 4));
  const sectors = view.getUint16(FOOTER.geometry) * bytes[FOOTER.geometry + 2]! * bytes[FOOTER.geometry + 3]!;
  const current = numberOf(view.getBigUint64(FOOTER.current_size));
  if (MEAN_CURRENT_SIZE.includes(maker) || sectors >= CHS_SECTORS_MAX || sectors === 0) return current;
  return sectors * 512;
}

/** The header of a dynamic or differencing disk. @throws DiskImageError */
export async function readVhdHeader(file: BlockFile, footer: VhdFooter): Promise<VhdHeader> {
  const fail = (message: string): never => {
    throw new DiskImageError(`${file.path}: ${message}`);
  };
  if (footer.dataOffset + SPARSE.SIZE > file.sizeBytes) {
    return fail(`the header is at ${footer.dataOffset}, but the file has ${file.sizeBytes} bytes`);
  }
  const bytes = new Uint8Array(SPARSE.SIZE);
  const view = viewOf(bytes);
  await file.read(footer.dataOffset, [bytes]);
  if (view.getBigUint64(SPARSE.cookie) !== SPARSE_COOKIE)
    return fail(`no header of a dynamic disk at ${footer.dataOffset}`);
  const expected = checksumOf(bytes, SPARSE.checksum);
  const found = view.getUint32(SPARSE.checksum);
  if (found !== expected)
    fail(`the header has the checksum 0x${found.toString(16)}, expected 0x${expected.toString(16)}`);
  const blockBytes = view.getUint32(SPARSE.block_size);
  if (blockBytes < 4096 || blockBytes > BLOCK_BYTES_MAX || !Number.isInteger(Math.log2(blockBytes))) {
    fail(`block size ${blockBytes}, expected a power of two from 4096 to ${BLOCK_BYTES_MAX}`);
  }
  const tableEntries = view.getUint32(SPARSE.max_table_entries);
  const needed = Math.ceil(footer.sizeBytes / blockBytes);
  if (tableEntries > TABLE_ENTRIES_MAX || tableEntries < needed) {
    fail(`the block allocation table has ${tableEntries} entries, expected ${needed} to ${TABLE_ENTRIES_MAX}`);
  }
  const tableOffset = numberOf(view.getBigUint64(SPARSE.table_offset));
  if (tableOffset < FOOTER.SIZE || tableOffset + tableEntries * 4 > file.sizeBytes) {
    fail(
      `the block allocation table is at ${tableOffset} with ${tableEntries * 4} bytes, but the file has ${file.sizeBytes} bytes`,
    );
  }
  const { names, areas } = await readLocators(file, view);
  return {
    tableOffset,
    tableEntries,
    blockBytes,
    parentUniqueId: hexOf(bytes.subarray(SPARSE.parent_unique_id, SPARSE.parent_unique_id + 16)),
    parentNames: footer.type === DISK_TYPE.DIFFERENCING ? names : [],
    locatorAreas: areas,
  };
}

async function readLocators(
  file: BlockFile,
  header: DataView,
): Promise<{ names: string[]; areas: { offset: number; lengthBytes: number }[] }> {
  const areas: { offset: number; lengthBytes: number }[] = [];
  const byCode = new Map<number, string>();
  for (let index = 0; index < SPARSE.LOCATORS; index++) {
    const at = SPARSE.parent_locators + index * SPARSE.LOCATOR_SIZE;
    const code = header.getUint32(at);
    const lengthBytes = header.getUint32(at + 8);
    const offset = numberOf(header.getBigUint64(at + 16));
    if (code === 0 || lengthBytes === 0) continue;
    if (lengthBytes > LOCATOR_BYTES_MAX || offset + lengthBytes > file.sizeBytes) {
      throw new DiskImageError(
        `${file.path}: parent locator ${index} is at ${offset} with ${lengthBytes} bytes, expected at most ${LOCATOR_BYTES_MAX} within the file (${file.sizeBytes} bytes)`,
      );
    }
    const bytes = new Uint8Array(lengthBytes);
    await file.read(offset, [bytes]);
    areas.push({ offset, lengthBytes });
    if (code === PLATFORM.MacX)
      byCode.set(
        code,
        new TextDecoder()
          .decode(bytes)
          .replace(/^file:\/\//, '')
          .replace(/\0.*$/s, ''),
      );
    else byCode.set(code, new TextDecoder('utf-16le').decode(bytes).replace(/\0.*$/s, '').replaceAll('\\', '/'));
  }
  const nameBytes = new Uint8Array(header.buffer, SPARSE.parent_name, SPARSE.PARENT_NAME_SIZE);
  const ownName = new TextDecoder('utf-16be').decode(nameBytes).replace(/\0.*$/s, '').replaceAll('\\', '/');
  const names = [PLATFORM.MacX, PLATFORM.W2ru, PLATFORM.W2ku].map((code) => byCode.get(code) ?? '');
  return { names: [...names, ownName].filter((name) => name !== ''), areas };
}
