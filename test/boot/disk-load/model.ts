/** What load.pl writes, said again: what must be on the disk, and what may be, after so many operations. */

export const PROCESSES = 4;
const BLOCK_BYTES = 4096;
const SECTOR_BYTES = 512;
const AREA_A = 16;
const BLOCKS_A = 4096;
const AREA_B = 4112;
const CHUNKS = 128;
const CHUNK = 64;
const CLUSTER = 16;
/** The first block that is checked, and the first that is not. */
const FIRST = AREA_A;
const END = AREA_B + CHUNKS * CHUNK;
export const DISK_BYTES = END * BLOCK_BYTES;

interface Change {
  readonly process: number;
  readonly operation: number;
  readonly block: number;
  readonly count: number;
  readonly discards: boolean;
}

function randomOf(start: number): (below: number) => number {
  let state = start >>> 0;
  return (below) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return state % below;
  };
}

/** All that changes the disk, process by process. */
export function* changesOf(seed: number, operations: number): Generator<Change> {
  for (let process = 0; process < PROCESSES; process++) {
    const random = randomOf(seed * 16 + process + 1);
    for (let operation = 1; operation <= operations; operation++) {
      const kind = random(16);
      if (kind < 8) {
        const block = AREA_A + random(BLOCKS_A / PROCESSES) * PROCESSES + process;
        yield { process, operation, block, count: 1, discards: false };
      } else if (kind < 11) {
        const chunk = random(CHUNKS / PROCESSES) * PROCESSES + process;
        const first = random(CHUNK);
        const count = 1 + random(CHUNK - first);
        yield { process, operation, block: AREA_B + chunk * CHUNK + first, count, discards: false };
      } else if (kind === 11) {
        const chunk = random(CHUNKS / PROCESSES) * PROCESSES + process;
        const first = random(CHUNK / CLUSTER);
        const count = (1 + random(CHUNK / CLUSTER - first)) * CLUSTER;
        yield { process, operation, block: AREA_B + chunk * CHUNK + first * CLUSTER, count, discards: true };
      }
    }
  }
}

function sectorOf(seed: number, block: number, operation: number, sector: number): Buffer {
  const hex = (value: number, digits: number): string => value.toString(16).padStart(digits, '0');
  return Buffer.from(`${hex(seed, 8)} ${hex(block, 8)} ${hex(operation, 8)} ${hex(sector, 4)}\n`.repeat(16), 'latin1');
}

/** `disk` as it is after all operations. */
export function replay(disk: Buffer, seed: number, operations: number): Buffer {
  const after = Buffer.from(disk);
  for (const { block, count, discards, operation } of changesOf(seed, operations)) {
    if (discards) after.fill(0, block * BLOCK_BYTES, (block + count) * BLOCK_BYTES);
    else
      for (let one = block; one < block + count; one++)
        for (let sector = 0; sector < 8; sector++)
          sectorOf(seed, one, operation, sector).copy(after, one * BLOCK_BYTES + sector * SECTOR_BYTES);
  }
  return after;
}

export interface Verdict {
  /** Up to ten sectors that are not what they may be. */
  readonly wrong: readonly string[];
  /** Sectors that had to be what was flushed, or something newer. */
  readonly flushed: number;
}

/**
 * Is every block what was flushed last, or something newer that the process has done to it since? `before` is the disk when the
 * load began; `flushed` is each process's last flush that was acknowledged.
 */
export function verify(
  disk: Buffer,
  before: Buffer,
  seed: number,
  operations: number,
  flushed: readonly number[],
): Verdict {
  /** By block: operations whose effect may be there, negative for a discard; the first is the one that must be there at least. */
  const allowed = new Map<number, number[]>();
  for (const { process, operation, block, count, discards } of changesOf(seed, operations)) {
    const isFlushed = operation <= flushed[process]!;
    const value = discards ? -operation : operation;
    for (let one = block; one < block + count; one++) {
      const values = allowed.get(one) ?? [];
      if (isFlushed) allowed.set(one, [value]);
      else allowed.set(one, values.length === 0 ? [0, value] : [...values, value]);
    }
  }
  const wrong: string[] = [];
  let mustBe = 0;
  const zeroes = Buffer.alloc(SECTOR_BYTES);
  for (let block = FIRST; block < END && wrong.length < 10; block++) {
    const values = allowed.get(block) ?? [0];
    if (values[0] !== 0) mustBe += 8;
    for (let sector = 0; sector < 8; sector++) {
      const at = block * BLOCK_BYTES + sector * SECTOR_BYTES;
      const found = disk.subarray(at, at + SECTOR_BYTES);
      const isOne = (value: number): boolean => {
        if (value === 0) return found.equals(before.subarray(at, at + SECTOR_BYTES));
        return found.equals(value < 0 ? zeroes : sectorOf(seed, block, value, sector));
      };
      if (!values.some(isOne))
        wrong.push(
          `block ${block} sector ${sector}: expected operations ${values.slice(0, 5)} of ${seed}, found ${JSON.stringify(found.toString('latin1', 0, 31))}`,
        );
    }
  }
  return { wrong, flushed: mustBe };
}

/** The content of a file that load.pl writes. */
export function fileContent(seed: number, file: number): string {
  return `${seed} ${file}\n`.repeat(1 + randomOf(seed * 16 + file)(20_000));
}

/** Whether load.pl may have removed the file by now. */
export const mayBeGone = (file: number, last: number): boolean => file % 5 === 0 || file <= last - 10;
