/**
 * Where file systems may begin on a disk: MBR with logical partitions, GPT, or no table at all.
 *
 * Source: UEFI specification 2.10, chapter 5 (GPT, legacy MBR); extended partitions as Linux reads them.
 */
import type { Volume } from './volume.ts';

export interface Partition {
  /** As the kernel counts them; 0 is the whole disk. */
  readonly number: number;
  readonly offset: number;
  readonly sizeBytes: number;
}

const SECTOR = 512;
const SIGNATURE = 0xaa55;
const TABLE = 446;
const TYPE_GPT = 0xee;
const TYPES_EXTENDED: readonly number[] = [0x05, 0x0f, 0x85];
const LOGICAL_MAX = 128;
const GPT_ENTRIES_MAX = 1024;
const GPT_ENTRY_BYTES_MAX = 4096;

/** All partitions, the active one first, as pygrub tries them; the whole disk if there is no table, and last in any case. */
export async function findPartitions(disk: Volume): Promise<Partition[]> {
  const wholeDisk: Partition = { number: 0, offset: 0, sizeBytes: disk.sizeBytes };
  if (disk.sizeBytes < SECTOR) return [wholeDisk];
  const mbr = await disk.view(0, SECTOR);
  if (mbr.getUint16(510, true) !== SIGNATURE) return [wholeDisk];
  const found: Partition[] = [];
  for (let index = 0; index < 4; index++) {
    const { type, isActive, start, sectors } = entryAt(mbr, index);
    if (type === 0 || start === 0) continue;
    if (type === TYPE_GPT) {
      found.push(...(await gptPartitions(disk)));
      break;
    }
    if (TYPES_EXTENDED.includes(type)) {
      found.push(...(await logicalPartitions(disk, start)));
      continue;
    }
    const partition = { number: index + 1, offset: start * SECTOR, sizeBytes: sectors * SECTOR };
    if (isActive) found.unshift(partition);
    else found.push(partition);
  }
  const onDisk = found.filter(({ offset }) => offset < disk.sizeBytes);
  // An ISO image that also boots from USB sticks has a table, but the file system is the whole of it.
  return (await isIso(disk)) ? [wholeDisk, ...onDisk] : [...onDisk, wholeDisk];
}

interface Entry {
  readonly type: number;
  readonly isActive: boolean;
  readonly start: number;
  readonly sectors: number;
}

function entryAt(table: DataView, index: number): Entry {
  const at = TABLE + index * 16;
  return {
    isActive: table.getUint8(at) === 0x80,
    type: table.getUint8(at + 4),
    start: table.getUint32(at + 8, true),
    sectors: table.getUint32(at + 12, true),
  };
}

/** A chain of tables, each with one partition, relative to the table, and the next table, relative to the first. */
async function logicalPartitions(disk: Volume, first: number): Promise<Partition[]> {
  const found: Partition[] = [];
  for (let table = first; found.length < LOGICAL_MAX && (table + 1) * SECTOR <= disk.sizeBytes; ) {
    const view = await disk.view(table * SECTOR, SECTOR);
    if (view.getUint16(510, true) !== SIGNATURE) break;
    const { type, start, sectors } = entryAt(view, 0);
    if (type !== 0 && start !== 0) {
      found.push({ number: 5 + found.length, offset: (table + start) * SECTOR, sizeBytes: sectors * SECTOR });
    }
    const next = entryAt(view, 1);
    // Backwards would be a loop.
    if (!TYPES_EXTENDED.includes(next.type) || first + next.start <= table) break;
    table = first + next.start;
  }
  return found;
}

async function gptPartitions(disk: Volume): Promise<Partition[]> {
  const found: Partition[] = [];
  if (disk.sizeBytes < 2 * SECTOR) return found;
  const header = await disk.view(SECTOR, SECTOR);
  if (header.getBigUint64(0) !== 0x4546492050415254n) return found; // "EFI PART"
  const table = Number(header.getBigUint64(72, true)) * SECTOR;
  const entries = Math.min(header.getUint32(80, true), GPT_ENTRIES_MAX);
  const entryBytes = header.getUint32(84, true);
  if (entryBytes < 128 || entryBytes > GPT_ENTRY_BYTES_MAX) return found;
  for (let index = 0; index < entries && table + (index + 1) * entryBytes <= disk.sizeBytes; index++) {
    const entry = await disk.view(table + index * entryBytes, entryBytes);
    if (entry.getBigUint64(0) === 0n && entry.getBigUint64(8) === 0n) continue;
    const first = Number(entry.getBigUint64(32, true));
    const last = Number(entry.getBigUint64(40, true));
    if (last < first || first === 0) continue;
    found.push({ number: index + 1, offset: first * SECTOR, sizeBytes: (last - first + 1) * SECTOR });
  }
  return found;
}

async function isIso(disk: Volume): Promise<boolean> {
  if (disk.sizeBytes < 0x8800) return false;
  const mark = await disk.read(0x8001, 5);
  return String.fromCharCode(...mark) === 'CD001';
}
