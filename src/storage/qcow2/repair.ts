/**
 * Makes reference counts true again, for images with the dirty bit: their last writer kept counts in memory and did not
 * come to write them (QEMU with lazy_refcounts, killed).
 *
 * Every table is walked and every use of a cluster counted; then the counts on disk are made to agree, and only then is
 * the dirty bit cleared. Source: QEMU docs/interop/qcow2.rst, "Dirty bit".
 */
import { type BlockFile, DiskImageError } from '../block-file.ts';
import { DamagedImageError } from './damage.ts';
import { HEADER, INCOMPATIBLE, type Qcow2Header } from './header.ts';
import { entryExtent, type L1Table, readL1 } from './mapping.ts';
import { type Extent, type Refcounts, uint64 } from './refcounts.ts';
import type { Snapshot } from './snapshots.ts';

/** 512 MiB of counts. */
const CLUSTERS_MAX = 2 ** 26;

export async function repairRefcounts(
  file: BlockFile,
  header: Qcow2Header,
  l1: L1Table,
  snapshots: readonly Snapshot[],
  snapshotTableBytes: number,
  refcounts: Refcounts,
): Promise<void> {
  const advice = 'repair it with "qemu-img check -r all"';
  if (header.hasBitmaps) throw new DiskImageError(`${file.path}: was not closed properly, and has bitmaps; ${advice}`);
  const clusterBytes = 2 ** header.clusterBits;
  const clusters = refcounts.endCluster;
  if (clusters > CLUSTERS_MAX)
    throw new DiskImageError(`${file.path}: was not closed properly, and is large; ${advice}`);
  const counts = new Array<number>(clusters).fill(0);
  const use = ({ first, count }: Extent): void => {
    if (first + count > clusters) {
      throw new DamagedImageError(file.path, `cluster ${first + count - 1} is in use, behind the end of the file`);
    }
    for (let cluster = first; cluster < first + count; cluster++) counts[cluster]!++;
  };
  const useArea = (offset: number, lengthBytes: number): void =>
    use({ first: offset / clusterBytes, count: Math.ceil(lengthBytes / clusterBytes) });

  useArea(0, clusterBytes);
  useArea(header.snapshotsOffset, snapshotTableBytes);
  const useDisk = async (table: L1Table): Promise<void> => {
    useArea(table.fileOffset, table.offsets.length * 8);
    for (const offset of table.offsets) {
      if (offset === 0) continue;
      useArea(offset, clusterBytes);
      if (header.hasExternalData) continue;
      const bytes = new Uint8Array(clusterBytes);
      await file.read(offset, [bytes]);
      const view = new DataView(bytes.buffer);
      for (let at = 0; at < clusterBytes; at += 8) {
        const extent = entryExtent(view.getUint32(at), view.getUint32(at + 4), header.clusterBits);
        if (extent !== undefined) use(extent);
      }
    }
  };
  await useDisk(l1);
  for (const { l1Offset, l1Entries } of snapshots) {
    await useDisk(await readL1(file, header.clusterBits, l1Offset, l1Entries));
  }
  for (const extent of refcounts.ownClusters()) use(extent);
  await refcounts.correct(counts);
  await refcounts.write(() => {});
  await file.flush();
  const kept =
    (header.hasExternalData ? INCOMPATIBLE.EXTERNAL_DATA : 0) |
    (header.compression === 'zstd' ? INCOMPATIBLE.COMPRESSION : 0);
  await file.write(HEADER.incompatible_features, [uint64(kept)]);
  await file.flush();
}
