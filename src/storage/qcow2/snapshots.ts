/**
 * The table of internal snapshots.
 *
 *     40 bytes (offset of the L1 table, its entries, lengths) | extra data | id | name | padding to 8
 *
 * Source: QEMU docs/interop/qcow2.rst, "Snapshots".
 */
import { type BlockFile, DiskImageError } from '../block-file.ts';
import { bytesPerTable, getUint64, type Qcow2Header } from './header.ts';

export interface Snapshot {
  readonly id: string;
  readonly name: string;
  readonly l1Offset: number;
  readonly l1Entries: number;
  readonly sizeBytes: number;
}

const FIXED_BYTES = 40;
const EXTRA_BYTES_MAX = 1024;
const L1_BYTES_MAX = 32 << 20;
/** QEMU's own limit for the whole table. */
const TABLE_BYTES_MAX = 64 << 20;
const DISK_SIZE = 48;

const text = new TextDecoder();

/** Reads the table. @throws DiskImageError if an entry is not sound */
export async function readSnapshots(
  file: BlockFile,
  header: Qcow2Header,
): Promise<{ snapshots: Snapshot[]; lengthBytes: number }> {
  const snapshots: Snapshot[] = [];
  const clusterBytes = 2 ** header.clusterBits;
  let at = 0;
  for (let index = 0; index < header.snapshots; index++) {
    const fail = (message: string): never => {
      throw new DiskImageError(`${file.path}: snapshot ${index + 1} of ${header.snapshots}: ${message}`);
    };
    const fixed = new Uint8Array(FIXED_BYTES);
    const view = new DataView(fixed.buffer);
    if (header.snapshotsOffset + at + FIXED_BYTES > file.sizeBytes) fail('lies behind the end of the file');
    await file.read(header.snapshotsOffset + at, [fixed]);
    const l1Offset = getUint64(view, 0);
    const l1Entries = view.getUint32(8);
    const idBytes = view.getUint16(12);
    const nameBytes = view.getUint16(14);
    const extraBytes = view.getUint32(36);
    if (extraBytes > EXTRA_BYTES_MAX)
      fail(`has ${extraBytes} bytes of extra data, expected at most ${EXTRA_BYTES_MAX}`);
    const rest = new Uint8Array(extraBytes + idBytes + nameBytes);
    await file.read(header.snapshotsOffset + at + FIXED_BYTES, [rest]);
    const hasSize = extraBytes >= DISK_SIZE + 8 - FIXED_BYTES;
    const sizeBytes = hasSize ? getUint64(new DataView(rest.buffer), DISK_SIZE - FIXED_BYTES) : header.sizeBytes;
    if (l1Entries * 8 > L1_BYTES_MAX || l1Entries * bytesPerTable(header.clusterBits) < sizeBytes) {
      fail(`its L1 table has ${l1Entries} entries for a disk of ${sizeBytes} bytes`);
    }
    if (l1Entries > 0 && (l1Offset % clusterBytes !== 0 || l1Offset === 0 || l1Offset >= file.sizeBytes)) {
      fail(
        `its L1 table is at ${l1Offset}, expected a multiple of ${clusterBytes} within the file (${file.sizeBytes} bytes)`,
      );
    }
    snapshots.push({
      id: text.decode(rest.subarray(extraBytes, extraBytes + idBytes)),
      name: text.decode(rest.subarray(extraBytes + idBytes)),
      l1Offset,
      l1Entries,
      sizeBytes,
    });
    at += Math.ceil((FIXED_BYTES + rest.length) / 8) * 8;
    if (at > TABLE_BYTES_MAX) fail(`the table has more than ${TABLE_BYTES_MAX} bytes`);
  }
  return { snapshots, lengthBytes: at };
}

/** The snapshot with this id, or else this name, as qemu-img finds it. */
export function findSnapshot(path: string, snapshots: readonly Snapshot[], wanted: string): Snapshot {
  const found = snapshots.find(({ id }) => id === wanted) ?? snapshots.find(({ name }) => name === wanted);
  if (found === undefined) {
    const there = snapshots.map(({ id, name }) => `${id} (${name})`).join(', ') || 'none';
    throw new DiskImageError(`${path}: there is no snapshot ${wanted}; there are: ${there}`);
  }
  return found;
}
