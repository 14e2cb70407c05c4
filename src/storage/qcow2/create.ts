/** Writes an empty qcow2 image, version 3. */
import { type BlockFile, DiskImageError } from '../block-file.ts';
import { bytesPerTable, EXTENSION, HEADER, QCOW2_MAGIC, setUint64 } from './header.ts';

const CLUSTER_BITS = 16;
const CLUSTER_BYTES = 1 << CLUSTER_BITS;
const L1_BYTES_MAX = 32 << 20;

/**
 * @param file an empty file
 * @param backing the file that shows through where nothing was written, and its format ("raw", "qcow2", "vpc")
 */
export async function createQcow2(
  file: Pick<BlockFile, 'path' | 'write' | 'flush'>,
  sizeBytes: number,
  backing?: { readonly name: string; readonly format: string },
): Promise<void> {
  const l1Entries = Math.ceil(sizeBytes / bytesPerTable(CLUSTER_BITS));
  if (sizeBytes % 512 !== 0 || !Number.isSafeInteger(sizeBytes) || l1Entries * 8 > L1_BYTES_MAX) {
    throw new DiskImageError(
      `${file.path}: cannot make a disk of ${sizeBytes} bytes; expected a multiple of 512 up to 2 PiB`,
    );
  }
  const l1Clusters = Math.max(1, Math.ceil((l1Entries * 8) / CLUSTER_BYTES));
  // Header, refcount table, refcount block, L1 table.
  const bytes = new Uint8Array((3 + l1Clusters) * CLUSTER_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint32(HEADER.magic, QCOW2_MAGIC);
  view.setUint32(HEADER.version, 3);
  view.setUint32(HEADER.cluster_bits, CLUSTER_BITS);
  setUint64(view, HEADER.size, sizeBytes);
  view.setUint32(HEADER.l1_size, l1Entries);
  setUint64(view, HEADER.l1_table_offset, 3 * CLUSTER_BYTES);
  setUint64(view, HEADER.refcount_table_offset, CLUSTER_BYTES);
  view.setUint32(HEADER.refcount_table_clusters, 1);
  view.setUint32(HEADER.refcount_order, 4);
  view.setUint32(HEADER.header_length, HEADER.V3_SIZE);
  if (backing !== undefined) {
    const format = new TextEncoder().encode(backing.format);
    const name = new TextEncoder().encode(backing.name);
    if (name.length > 1023) throw new DiskImageError(`${file.path}: the backing file's name is longer than 1023 bytes`);
    view.setUint32(HEADER.V3_SIZE, EXTENSION.BACKING_FORMAT);
    view.setUint32(HEADER.V3_SIZE + 4, format.length);
    bytes.set(format, HEADER.V3_SIZE + 8);
    const nameOffset = HEADER.V3_SIZE + 8 + Math.ceil(format.length / 8) * 8 + 8;
    bytes.set(name, nameOffset);
    setUint64(view, HEADER.backing_file_offset, nameOffset);
    view.setUint32(HEADER.backing_file_size, name.length);
  }
  setUint64(view, CLUSTER_BYTES, 2 * CLUSTER_BYTES);
  for (let cluster = 0; cluster < 3 + l1Clusters; cluster++) view.setUint16(2 * CLUSTER_BYTES + cluster * 2, 1);
  await file.write(0, [bytes]);
  await file.flush();
}
