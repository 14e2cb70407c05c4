/** Opens qcow2 images, with the files that they name. */
import { type BlockFile, DiskImageError, type Files, type Sharing } from '../block-file.ts';
import type { DiskImage } from '../disk-image.ts';
import { ClusterSet } from './cluster-set.ts';
import { DamagedImageError } from './damage.ts';
import { type Qcow2Header, readHeader } from './header.ts';
import { clearAutoclear, Qcow2Image } from './image.ts';
import { type L1Table, readL1 } from './mapping.ts';
import { Refcounts } from './refcounts.ts';
import { repairRefcounts } from './repair.ts';
import { findSnapshot, readSnapshots, type Snapshot } from './snapshots.ts';

const REFCOUNT_CACHE_BYTES = 1 << 20;

export interface Qcow2Options {
  readonly sharing: Sharing;
  /** Opens the disk as it was: id or name of an internal snapshot. For reading only. */
  readonly snapshot?: string;
  /** Opens a backing file. `format` is what the image says it is, if it says so. */
  openBacking(name: string, format: string | undefined): Promise<DiskImage>;
}

/**
 * Opens the image in `file`, which is closed with it.
 *
 * @throws DiskImageError; `file` stays open then
 */
export async function openQcow2(files: Files, file: BlockFile, options: Qcow2Options): Promise<Qcow2Image> {
  const header = await readHeader(file);
  const { snapshots, lengthBytes } = await readSnapshots(file, header);
  const snapshot = options.snapshot === undefined ? undefined : findSnapshot(file.path, snapshots, options.snapshot);
  if (snapshot !== undefined && !file.readOnly) {
    throw new DiskImageError(`${file.path}: snapshot ${options.snapshot} can only be read`);
  }
  if (header.isCorrupt && !file.readOnly) {
    throw new DiskImageError(
      `${file.path}: is marked as corrupt, so it can only be read; "qemu-img check -r all" may repair it`,
    );
  }
  const l1Place = snapshot ?? header;
  const l1 = await readL1(file, header.clusterBits, l1Place.l1Offset, l1Place.l1Entries);

  let dataFile: BlockFile | undefined;
  let backing: DiskImage | undefined;
  try {
    if (header.hasExternalData) dataFile = await openDataFile(files, file, header, options.sharing);
    if (header.backingName !== undefined) {
      backing = await options.openBacking(header.backingName, header.backingFormat);
    }
    let writing: { tables: ClusterSet; refcounts: Refcounts } | undefined;
    if (!file.readOnly) {
      const tables = tablesOf(file, header, l1, snapshots, lengthBytes);
      const refcounts = await Refcounts.open(file, header, tables, REFCOUNT_CACHE_BYTES);
      if (header.isDirty) await repairRefcounts(file, header, l1, snapshots, lengthBytes, refcounts);
      await clearAutoclear(file, header);
      writing = { tables, refcounts };
    }
    return new Qcow2Image({
      file,
      header,
      sizeBytes: snapshot?.sizeBytes ?? header.sizeBytes,
      l1,
      backing,
      dataFile,
      decompress: files.decompress,
      writing,
    });
  } catch (error) {
    await backing?.close();
    await dataFile?.close();
    throw error;
  }
}

async function openDataFile(files: Files, file: BlockFile, header: Qcow2Header, sharing: Sharing): Promise<BlockFile> {
  if (header.externalDataName === undefined) {
    throw new DiskImageError(`${file.path}: its data is in an external file, but it does not say in which`);
  }
  const path = files.resolve(file.path, header.externalDataName);
  if ((await files.identity(path).catch(() => path)) === (await files.identity(file.path))) {
    throw new DiskImageError(`${file.path}: names itself as its external data file`);
  }
  return await files.open(path, { readOnly: file.readOnly, sharing });
}

/** The clusters of all tables but the refcount tables: header, L1 tables, the active disk's L2 tables, snapshot table. */
function tablesOf(
  file: BlockFile,
  header: Qcow2Header,
  l1: L1Table,
  snapshots: readonly Snapshot[],
  snapshotTableBytes: number,
): ClusterSet {
  const clusterBytes = 2 ** header.clusterBits;
  const tables = new ClusterSet();
  const addArea = (what: string, offset: number, lengthBytes: number): void => {
    const end = Math.ceil((offset + lengthBytes) / clusterBytes);
    for (let cluster = offset / clusterBytes; cluster < end; cluster++) {
      if (tables.has(cluster)) {
        throw new DamagedImageError(file.path, `${what} is at ${cluster * clusterBytes}, where another table is`);
      }
      if (!tables.add(cluster)) {
        throw new DiskImageError(
          `${file.path}: with clusters of ${clusterBytes} bytes it is too large to be written to`,
        );
      }
    }
  };
  addArea('the header', 0, 1);
  addArea('the L1 table', header.l1Offset, header.l1Entries * 8);
  addArea('the snapshot table', header.snapshotsOffset, snapshotTableBytes);
  for (const { name, l1Offset, l1Entries } of snapshots)
    addArea(`the L1 table of snapshot ${name}`, l1Offset, l1Entries * 8);
  l1.offsets.forEach((offset, index) => {
    if (offset !== 0) addArea(`L2 table ${index}`, offset, clusterBytes);
  });
  return tables;
}
