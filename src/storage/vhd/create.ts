/** Writes an empty VHD image: dynamic, or differencing if it has a parent. */
import { type BlockFile, DiskImageError } from '../block-file.ts';
import { checksumOf, DISK_TYPE, FOOTER, FOOTER_COOKIE, PLATFORM, SPARSE, SPARSE_COOKIE } from './format.ts';

const BLOCK_BYTES = 2 << 20;
/** Of a disk, in bytes. */
export const SIZE_MAX = 2040 * 2 ** 30;
/** Seconds from 1970 to 2000, where the format's time begins. */
const EPOCH_2000 = 946_684_800;

/** "tap": whoever reads it takes the size in the footer, not the geometry. */
export const TAP: readonly number[] = [0x74, 0x61, 0x70, 0];

export interface VhdParent {
  /** A path relative to the image's folder. */
  readonly name: string;
  /** The parent's unique id as its footer has it, in hexadecimal digits; all zero for a parent that is no vhd. */
  readonly uniqueId: string;
}

/** @param file an empty file */
export async function createVhd(
  file: BlockFile,
  sizeBytes: number,
  uniqueId: Uint8Array,
  parent?: VhdParent,
): Promise<void> {
  if (sizeBytes % 512 !== 0 || sizeBytes <= 0 || sizeBytes > SIZE_MAX) {
    throw new DiskImageError(
      `${file.path}: cannot make a disk of ${sizeBytes} bytes; expected a multiple of 512 up to ${SIZE_MAX}`,
    );
  }
  const entries = Math.ceil(sizeBytes / BLOCK_BYTES);
  const tableOffset = FOOTER.SIZE + SPARSE.SIZE;
  const tableEnd = tableOffset + Math.ceil((entries * 4) / 512) * 512;
  const locatorBytes = parent === undefined ? 0 : 1024;
  const bytes = new Uint8Array(tableEnd + locatorBytes + FOOTER.SIZE);
  const now = Math.floor(Date.now() / 1000) - EPOCH_2000;

  const footer = bytes.subarray(0, FOOTER.SIZE);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(FOOTER.cookie, FOOTER_COOKIE);
  view.setUint32(FOOTER.features, 2);
  view.setUint32(FOOTER.version, 0x00010000);
  view.setBigUint64(FOOTER.data_offset, BigInt(FOOTER.SIZE));
  view.setUint32(FOOTER.timestamp, now);
  bytes.set(TAP, FOOTER.creator_application);
  view.setUint32(FOOTER.creator_version, 0x00010003);
  view.setBigUint64(FOOTER.original_size, BigInt(sizeBytes));
  view.setBigUint64(FOOTER.current_size, BigInt(sizeBytes));
  const { cylinders, heads, sectors } = geometryOf(sizeBytes / 512);
  view.setUint16(FOOTER.geometry, cylinders);
  bytes[FOOTER.geometry + 2] = heads;
  bytes[FOOTER.geometry + 3] = sectors;
  view.setUint32(FOOTER.disk_type, parent === undefined ? DISK_TYPE.DYNAMIC : DISK_TYPE.DIFFERENCING);
  footer.set(uniqueId.subarray(0, 16), FOOTER.unique_id);
  view.setUint32(FOOTER.checksum, checksumOf(footer, FOOTER.checksum));

  const header = bytes.subarray(FOOTER.SIZE, FOOTER.SIZE + SPARSE.SIZE);
  const headerView = new DataView(bytes.buffer, FOOTER.SIZE, SPARSE.SIZE);
  headerView.setBigUint64(SPARSE.cookie, SPARSE_COOKIE);
  headerView.setBigUint64(SPARSE.data_offset, 0xffffffffffffffffn);
  headerView.setBigUint64(SPARSE.table_offset, BigInt(tableOffset));
  headerView.setUint32(SPARSE.version, 0x00010000);
  headerView.setUint32(SPARSE.max_table_entries, entries);
  headerView.setUint32(SPARSE.block_size, BLOCK_BYTES);
  if (parent !== undefined) {
    for (let index = 0; index < 16; index++) {
      header[SPARSE.parent_unique_id + index] = Number.parseInt(parent.uniqueId.slice(index * 2, index * 2 + 2), 16);
    }
    headerView.setUint32(SPARSE.parent_timestamp, now);
    const url = new TextEncoder().encode(`file://${parent.name.startsWith('/') ? '' : './'}${parent.name}`);
    const nameUnits = parent.name.length;
    if (url.length > 512 || nameUnits * 2 > SPARSE.PARENT_NAME_SIZE - 2) {
      throw new DiskImageError(`${file.path}: the parent's name is longer than 255 characters`);
    }
    for (let index = 0; index < nameUnits; index++) {
      headerView.setUint16(SPARSE.parent_name + index * 2, parent.name.charCodeAt(index));
    }
    // MacX: a file URL. W2ru: a relative path of Windows.
    const locators = [
      { code: PLATFORM.MacX, content: url },
      { code: PLATFORM.W2ru, content: utf16le(`.\\${parent.name.replaceAll('/', '\\')}`) },
    ];
    for (const [index, { code, content }] of locators.entries()) {
      const at = SPARSE.parent_locators + index * SPARSE.LOCATOR_SIZE;
      const offset = tableEnd + index * 512;
      headerView.setUint32(at, code);
      headerView.setUint32(at + 4, 512);
      headerView.setUint32(at + 8, content.length);
      headerView.setBigUint64(at + 16, BigInt(offset));
      bytes.set(content, offset);
    }
  }
  headerView.setUint32(SPARSE.checksum, checksumOf(header, SPARSE.checksum));
  bytes.fill(0xff, tableOffset, tableOffset + Math.ceil((entries * 4) / 512) * 512);
  bytes.set(footer, bytes.length - FOOTER.SIZE);
  await file.write(0, [bytes]);
  await file.flush();
}

function utf16le(text: string): Uint8Array {
  const bytes = new Uint8Array(text.length * 2);
  for (let index = 0; index < text.length; index++) {
    bytes[index * 2] = text.charCodeAt(index);
    bytes[index * 2 + 1] = text.charCodeAt(index) >> 8;
  }
  return bytes;
}

/** Source: the specification's appendix, "CHS calculation". */
export function geometryOf(totalSectors: number): { cylinders: number; heads: number; sectors: number } {
  const total = Math.min(totalSectors, 65535 * 16 * 255);
  if (total >= 65535 * 16 * 63) return { cylinders: Math.floor(total / 255 / 16), heads: 16, sectors: 255 };
  let sectors = 17;
  let tracks = Math.floor(total / sectors);
  let heads = Math.max(4, Math.floor((tracks + 1023) / 1024));
  if (tracks >= heads * 1024 || heads > 16) {
    sectors = 31;
    heads = 16;
    tracks = Math.floor(total / sectors);
  }
  if (tracks >= heads * 1024) {
    sectors = 63;
    heads = 16;
    tracks = Math.floor(total / sectors);
  }
  return { cylinders: Math.floor(tracks / heads), heads, sectors };
}
