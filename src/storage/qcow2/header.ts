/**
 * The header of a qcow2 image: read, checked, and the few fields that change while it is in use.
 *
 * Every number is bounded here, so that what follows can trust them: table sizes have QEMU's own limits, offsets are
 * aligned and lie within the file. Features that would change the meaning of the image are refused by name.
 * Source: QEMU docs/interop/qcow2.rst.
 */
import { type BlockFile, type CompressionType, DiskImageError } from '../block-file.ts';

export const QCOW2_MAGIC = 0x514649fb;

/** Offsets of the header's fields. */
export const HEADER = {
  magic: 0,
  version: 4,
  backing_file_offset: 8,
  backing_file_size: 16,
  cluster_bits: 20,
  size: 24,
  crypt_method: 32,
  l1_size: 36,
  l1_table_offset: 40,
  refcount_table_offset: 48,
  refcount_table_clusters: 56,
  nb_snapshots: 60,
  snapshots_offset: 64,
  V2_SIZE: 72,
  incompatible_features: 72,
  compatible_features: 80,
  autoclear_features: 88,
  refcount_order: 96,
  header_length: 100,
  V3_SIZE: 104,
  compression_type: 104,
} as const;

export const EXTENSION = {
  END: 0,
  BACKING_FORMAT: 0xe2792aca,
  FEATURE_NAMES: 0x6803f857,
  BITMAPS: 0x23852875,
  EXTERNAL_DATA: 0x44415441,
} as const;

export const INCOMPATIBLE = { DIRTY: 1, CORRUPT: 2, EXTERNAL_DATA: 4, COMPRESSION: 8, EXTENDED_L2: 16 } as const;
export const AUTOCLEAR = { BITMAPS: 1, RAW_EXTERNAL_DATA: 2 } as const;

/** QEMU's own limits. An image beyond them is not from this world. */
const L1_BYTES_MAX = 32 << 20;
const REFCOUNT_TABLE_BYTES_MAX = 8 << 20;
const SNAPSHOTS_MAX = 65536;
const BACKING_NAME_BYTES_MAX = 1023;
const CLUSTER_BITS_MIN = 9;
const CLUSTER_BITS_MAX = 21;

export interface Qcow2Header {
  readonly version: 2 | 3;
  readonly clusterBits: number;
  readonly sizeBytes: number;
  readonly l1Entries: number;
  readonly l1Offset: number;
  readonly refcountTableOffset: number;
  readonly refcountTableClusters: number;
  /** Width of a reference count: 1 << refcountOrder bits. */
  readonly refcountOrder: number;
  readonly snapshots: number;
  readonly snapshotsOffset: number;
  readonly isDirty: boolean;
  readonly isCorrupt: boolean;
  readonly hasBitmaps: boolean;
  /** The low word of autoclear_features, and whether any bit of the high word is set. */
  readonly autoclear: number;
  readonly hasUnknownAutoclear: boolean;
  readonly compression: CompressionType;
  readonly backingName: string | undefined;
  readonly backingFormat: string | undefined;
  readonly hasExternalData: boolean;
  readonly externalDataName: string | undefined;
}

/** A 64-bit big-endian number; what a number cannot hold exactly comes out too large for any check to pass. */
export function getUint64(view: DataView, offset: number): number {
  return view.getUint32(offset) * 2 ** 32 + view.getUint32(offset + 4);
}

export function setUint64(view: DataView, offset: number, value: number): void {
  view.setUint32(offset, Math.floor(value / 2 ** 32));
  view.setUint32(offset + 4, value >>> 0);
}

/** Bytes of the virtual disk that one L2 table maps. */
export function bytesPerTable(clusterBits: number): number {
  return 2 ** (clusterBits + clusterBits - 3);
}

/** Reads and checks the header. @throws DiskImageError */
export async function readHeader(file: BlockFile): Promise<Qcow2Header> {
  const fail = (message: string): never => {
    throw new DiskImageError(`${file.path}: ${message}`);
  };
  const bytes = new Uint8Array(4096);
  const view = new DataView(bytes.buffer);
  await file.read(0, [bytes]);
  const magic = view.getUint32(HEADER.magic);
  if (magic !== QCOW2_MAGIC) {
    return fail(`not a qcow2 image: it starts with 0x${magic.toString(16).padStart(8, '0')}, expected 0x514649fb`);
  }
  const version = view.getUint32(HEADER.version);
  if (version !== 2 && version !== 3) return fail(`qcow2 version ${version}, expected 2 or 3`);
  const clusterBits = view.getUint32(HEADER.cluster_bits);
  if (clusterBits < CLUSTER_BITS_MIN || clusterBits > CLUSTER_BITS_MAX) {
    return fail(`cluster_bits is ${clusterBits}, expected ${CLUSTER_BITS_MIN} to ${CLUSTER_BITS_MAX}`);
  }
  const clusterBytes = 2 ** clusterBits;
  const checkArea = (what: string, offset: number, lengthBytes: number): void => {
    if (offset % clusterBytes !== 0) fail(`${what} is at ${offset}, expected a multiple of ${clusterBytes}`);
    if (offset === 0) fail(`${what} is at 0, where the header is`);
    // The file may end within the last cluster of an area.
    if (offset + lengthBytes > Math.ceil(file.sizeBytes / clusterBytes) * clusterBytes) {
      fail(`${what} is at ${offset} with ${lengthBytes} bytes, but the file has ${file.sizeBytes} bytes`);
    }
  };

  const isV3 = version === 3;
  const headerBytes = isV3 ? view.getUint32(HEADER.header_length) : HEADER.V2_SIZE;
  if (isV3 && (headerBytes < HEADER.V3_SIZE || headerBytes % 8 !== 0 || headerBytes > clusterBytes)) {
    fail(`header_length is ${headerBytes}, expected a multiple of 8 from ${HEADER.V3_SIZE} to ${clusterBytes}`);
  }
  const extensions = await readExtensions(file, headerBytes, clusterBytes, view);
  const incompatible = isV3 ? view.getUint32(HEADER.incompatible_features + 4) : 0;
  const incompatibleHigh = isV3 ? view.getUint32(HEADER.incompatible_features) : 0;
  refuseUnknownFeatures(file.path, incompatible, incompatibleHigh, extensions.featureNames);

  const cryptMethod = view.getUint32(HEADER.crypt_method);
  if (cryptMethod !== 0) {
    const name = ['', ' (AES)', ' (LUKS)'][cryptMethod] ?? '';
    fail(`is encrypted with method ${cryptMethod}${name}; encrypted images are not supported`);
  }

  const sizeBytes = getUint64(view, HEADER.size);
  if (!Number.isSafeInteger(sizeBytes)) fail(`a disk of ${sizeBytes} bytes, expected at most 2^53`);
  const l1Entries = view.getUint32(HEADER.l1_size);
  const l1Offset = getUint64(view, HEADER.l1_table_offset);
  if (l1Entries * 8 > L1_BYTES_MAX) fail(`the L1 table has ${l1Entries} entries, expected at most ${L1_BYTES_MAX / 8}`);
  const tablesNeeded = Math.ceil(sizeBytes / bytesPerTable(clusterBits));
  if (l1Entries < tablesNeeded) {
    fail(`the L1 table has ${l1Entries} entries, expected ${tablesNeeded} for a disk of ${sizeBytes} bytes`);
  }
  if (l1Entries > 0) checkArea('the L1 table', l1Offset, l1Entries * 8);

  const refcountTableOffset = getUint64(view, HEADER.refcount_table_offset);
  const refcountTableClusters = view.getUint32(HEADER.refcount_table_clusters);
  if (refcountTableClusters === 0 || refcountTableClusters * clusterBytes > REFCOUNT_TABLE_BYTES_MAX) {
    fail(
      `the refcount table has ${refcountTableClusters} clusters, expected 1 to ${REFCOUNT_TABLE_BYTES_MAX / clusterBytes}`,
    );
  }
  checkArea('the refcount table', refcountTableOffset, refcountTableClusters * clusterBytes);
  const refcountOrder = isV3 ? view.getUint32(HEADER.refcount_order) : 4;
  if (refcountOrder > 6) fail(`refcount_order is ${refcountOrder}, expected 0 to 6`);

  const snapshots = view.getUint32(HEADER.nb_snapshots);
  const snapshotsOffset = getUint64(view, HEADER.snapshots_offset);
  if (snapshots > SNAPSHOTS_MAX) fail(`${snapshots} snapshots, expected at most ${SNAPSHOTS_MAX}`);
  if (snapshots > 0) checkArea('the snapshot table', snapshotsOffset, 40 * snapshots);

  const compressionType = isV3 && headerBytes > HEADER.compression_type ? bytes[HEADER.compression_type]! : 0;
  if (compressionType > 1) fail(`compression_type is ${compressionType}, expected 0 (deflate) or 1 (zstd)`);
  if ((compressionType !== 0) !== ((incompatible & INCOMPATIBLE.COMPRESSION) !== 0)) {
    fail(
      `compression_type is ${compressionType}, which does not go with incompatible_features 0x${incompatible.toString(16)}`,
    );
  }

  const hasExternalData = (incompatible & INCOMPATIBLE.EXTERNAL_DATA) !== 0;
  const backingName = await readBackingName(file, view, clusterBytes);
  const autoclear = isV3 ? view.getUint32(HEADER.autoclear_features + 4) : 0;
  if (backingName !== undefined && hasExternalData && (autoclear & AUTOCLEAR.RAW_EXTERNAL_DATA) !== 0) {
    fail('has both a backing file and a raw external data file, which exclude each other');
  }
  if (hasExternalData && snapshots > 0) fail('has both snapshots and an external data file, which exclude each other');
  return {
    version,
    clusterBits,
    sizeBytes,
    l1Entries,
    l1Offset,
    refcountTableOffset,
    refcountTableClusters,
    refcountOrder,
    snapshots,
    snapshotsOffset,
    isDirty: (incompatible & INCOMPATIBLE.DIRTY) !== 0,
    isCorrupt: (incompatible & INCOMPATIBLE.CORRUPT) !== 0,
    hasBitmaps: extensions.hasBitmaps,
    autoclear,
    hasUnknownAutoclear: isV3 && view.getUint32(HEADER.autoclear_features) !== 0,
    compression: compressionType === 1 ? 'zstd' : 'deflate-raw',
    backingName,
    backingFormat: extensions.backingFormat,
    hasExternalData,
    externalDataName: extensions.externalDataName,
  };
}

interface Extensions {
  backingFormat: string | undefined;
  externalDataName: string | undefined;
  hasBitmaps: boolean;
  /** Names of incompatible features by bit. */
  featureNames: Map<number, string>;
}

const text = new TextDecoder();

async function readExtensions(
  file: BlockFile,
  headerBytes: number,
  clusterBytes: number,
  header: DataView,
): Promise<Extensions> {
  const found: Extensions = {
    backingFormat: undefined,
    externalDataName: undefined,
    hasBitmaps: false,
    featureNames: new Map(),
  };
  // The area ends where the backing file's name starts, or with the first cluster.
  const backingOffset = getUint64(header, HEADER.backing_file_offset);
  const end = backingOffset === 0 ? clusterBytes : Math.min(backingOffset, clusterBytes);
  if (end < headerBytes) return found;
  const area = new Uint8Array(end - headerBytes);
  await file.read(headerBytes, [area]);
  const view = new DataView(area.buffer);
  for (let at = 0; at + 8 <= area.length; ) {
    const type = view.getUint32(at);
    const lengthBytes = view.getUint32(at + 4);
    if (type === EXTENSION.END) break;
    at += 8;
    if (lengthBytes > area.length - at) {
      throw new DiskImageError(
        `${file.path}: header extension 0x${type.toString(16)} has ${lengthBytes} bytes, but only ${area.length - at} are left for it`,
      );
    }
    const content = area.subarray(at, at + lengthBytes);
    if (type === EXTENSION.BACKING_FORMAT) found.backingFormat = text.decode(content);
    else if (type === EXTENSION.EXTERNAL_DATA) found.externalDataName = text.decode(content);
    else if (type === EXTENSION.BITMAPS) found.hasBitmaps = true;
    else if (type === EXTENSION.FEATURE_NAMES) {
      for (let entry = 0; entry + 48 <= content.length; entry += 48) {
        if (content[entry] !== 0) continue;
        const name = text.decode(content.subarray(entry + 2, entry + 48)).replace(/\0.*$/s, '');
        found.featureNames.set(content[entry + 1]!, name.replace(/[^ -~]/g, '?'));
      }
    }
    at += Math.ceil(lengthBytes / 8) * 8;
  }
  return found;
}

function refuseUnknownFeatures(path: string, low: number, high: number, names: ReadonlyMap<number, string>): void {
  const { DIRTY, CORRUPT, EXTERNAL_DATA, COMPRESSION } = INCOMPATIBLE;
  const known = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION;
  const unknown: string[] = [];
  for (let bit = 0; bit < 64; bit++) {
    const isSet = ((bit < 32 ? low & ~known : high) >>> (bit & 31)) & 1;
    if (isSet) unknown.push(`"${names.get(bit) ?? (bit === 4 ? 'extended L2 entries' : 'unknown')}" (bit ${bit})`);
  }
  if (unknown.length > 0) {
    throw new DiskImageError(`${path}: needs the qcow2 feature ${unknown.join(', ')}, which is not supported`);
  }
}

async function readBackingName(file: BlockFile, view: DataView, clusterBytes: number): Promise<string | undefined> {
  const offset = getUint64(view, HEADER.backing_file_offset);
  if (offset === 0) return undefined;
  const lengthBytes = view.getUint32(HEADER.backing_file_size);
  if (lengthBytes > BACKING_NAME_BYTES_MAX || offset + lengthBytes > clusterBytes) {
    throw new DiskImageError(
      `${file.path}: the backing file's name is at ${offset} with ${lengthBytes} bytes, expected at most ${BACKING_NAME_BYTES_MAX} within the first cluster (${clusterBytes} bytes)`,
    );
  }
  const name = new Uint8Array(lengthBytes);
  await file.read(offset, [name]);
  return lengthBytes === 0 ? undefined : text.decode(name);
}
