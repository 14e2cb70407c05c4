/**
 * What growing a disk changes in a VHD image's structures: the footer, and for a dynamic disk the header and the block allocation table,
 * which moves to the end of the file when it needs more entries. Nothing reads the old one's place again.
 */
import { type BlockFile, DiskImageError } from '../block-file.ts';
import { geometryOf, SIZE_MAX, TAP } from './create.ts';
import { checksumOf, FOOTER, SPARSE, UNALLOCATED, type VhdFooter } from './format.ts';

const SECTOR = 512;

/** @throws DiskImageError for a size that the disk cannot be given */
export function checkGrowth(
  { path, readOnly }: { readonly path: string; readonly readOnly: boolean },
  fromBytes: number,
  toBytes: number,
): void {
  if (readOnly) throw new DiskImageError(`${path}: cannot resize: it is open for reading only`);
  if (toBytes < fromBytes)
    throw new DiskImageError(`${path}: cannot shrink from ${fromBytes} to ${toBytes} bytes: vhd images only grow`);
  if (toBytes % SECTOR !== 0 || toBytes > SIZE_MAX)
    throw new DiskImageError(
      `${path}: cannot resize to ${toBytes} bytes: expected a multiple of ${SECTOR} up to ${SIZE_MAX}`,
    );
}

export function grownFooter(footer: VhdFooter, sizeBytes: number): VhdFooter {
  const bytes = footer.bytes.slice();
  const view = new DataView(bytes.buffer);
  const { cylinders, heads, sectors } = geometryOf(sizeBytes / SECTOR);
  view.setBigUint64(FOOTER.current_size, BigInt(sizeBytes));
  view.setUint16(FOOTER.geometry, cylinders);
  bytes[FOOTER.geometry + 2] = heads;
  bytes[FOOTER.geometry + 3] = sectors;
  // The geometry is not exact, so it must not be what counts.
  bytes.set(TAP, FOOTER.creator_application);
  view.setUint32(FOOTER.checksum, checksumOf(bytes, FOOTER.checksum));
  return { ...footer, bytes, sizeBytes };
}

/** The table with `entries` entries, and its bytes in whole sectors. */
export function grownTable(table: Uint32Array, entries: number): { table: Uint32Array; bytes: Uint8Array } {
  const grown = new Uint32Array(entries).fill(UNALLOCATED);
  grown.set(table);
  const bytes = new Uint8Array(Math.ceil((entries * 4) / SECTOR) * SECTOR).fill(0xff);
  const view = new DataView(bytes.buffer);
  for (const [block, entry] of grown.entries()) view.setUint32(block * 4, entry);
  return { table: grown, bytes };
}

/** Makes the header name another table. What changes lies in one sector, so that it is the old header or the new one. */
export async function renameTable(
  file: BlockFile,
  headerOffset: number,
  tableOffset: number,
  entries: number,
): Promise<void> {
  const header = new Uint8Array(SPARSE.SIZE);
  await file.read(headerOffset, [header]);
  const view = new DataView(header.buffer);
  view.setBigUint64(SPARSE.table_offset, BigInt(tableOffset));
  view.setUint32(SPARSE.max_table_entries, entries);
  view.setUint32(SPARSE.checksum, checksumOf(header, SPARSE.checksum));
  await file.write(headerOffset, [header.subarray(0, SECTOR)]);
}
