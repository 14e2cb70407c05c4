/** Makes the disk of an image larger: a new L1 table if the old one is too short, then size and table in one write. */
import { type BlockFile, DiskImageError } from '../block-file.ts';
import type { ClusterSet } from './cluster-set.ts';
import { bytesPerTable, HEADER, setUint64 } from './header.ts';
import type { L1Table, Mapping } from './mapping.ts';
import type { Extent, Refcounts } from './refcounts.ts';

const L1_BYTES_MAX = 32 << 20;

/**
 * The caller has committed and lets no commit run meanwhile.
 *
 * @returns the clusters of the old L1 table, to be freed; undefined if the L1 table has uncommitted changes: commit again
 * @throws DiskImageError if the format does not reach so far
 */
export async function growDisk(
  file: BlockFile,
  clusterBits: number,
  mapping: Mapping,
  refcounts: Refcounts,
  tables: ClusterSet,
  sizeBytes: number,
): Promise<{ readonly oldL1: Extent | undefined } | undefined> {
  const clusterBytes = 2 ** clusterBits;
  const entries = Math.ceil(sizeBytes / bytesPerTable(clusterBits));
  if (entries * 8 > L1_BYTES_MAX) {
    throw new DiskImageError(
      `${file.path}: cannot grow to ${sizeBytes} bytes: with clusters of ${clusterBytes} bytes a disk has at most ${(L1_BYTES_MAX / 8) * bytesPerTable(clusterBits)}`,
    );
  }
  let oldL1: Extent | undefined;
  const isMoved = await mapping.moveL1(async (old) => {
    if (old.offsets.length >= entries) {
      await writeFields(file, sizeBytes, old);
      return old;
    }
    const clusters = Math.ceil((entries * 8) / clusterBytes);
    const place = await refcounts.allocateContiguous(clusters);
    const content = new Uint8Array(clusters * clusterBytes);
    const view = new DataView(content.buffer);
    const offsets = new Float64Array(entries);
    const isOwn = new Uint8Array(entries);
    offsets.set(old.offsets);
    isOwn.set(old.isOwn);
    for (let index = 0; index < entries; index++) {
      setUint64(view, index * 8, offsets[index]!);
      if (isOwn[index]) content[index * 8]! |= 0x80;
    }
    await file.write(place.first * clusterBytes, [content]);
    await refcounts.write(() => {});
    await file.flush();
    const moved = { fileOffset: place.first * clusterBytes, offsets, isOwn };
    await writeFields(file, sizeBytes, moved);
    for (let cluster = place.first; cluster < place.first + clusters; cluster++) tables.add(cluster);
    if (old.offsets.length > 0) {
      oldL1 = { first: old.fileOffset / clusterBytes, count: Math.ceil((old.offsets.length * 8) / clusterBytes) };
    }
    return moved;
  });
  return isMoved ? { oldL1 } : undefined;
}

/** size, crypt_method (always 0), l1_size and l1_table_offset are neighbours within one sector. */
async function writeFields(file: BlockFile, sizeBytes: number, l1: L1Table): Promise<void> {
  const bytes = new Uint8Array(HEADER.refcount_table_offset - HEADER.size);
  const view = new DataView(bytes.buffer);
  setUint64(view, 0, sizeBytes);
  view.setUint32(HEADER.l1_size - HEADER.size, l1.offsets.length);
  setUint64(view, HEADER.l1_table_offset - HEADER.size, l1.fileOffset);
  await file.write(HEADER.size, [bytes]);
  await file.flush();
}
