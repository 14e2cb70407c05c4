/**
 * Reference counts of host clusters: which are free, taking and giving back.
 *
 *     refcount table (contiguous, in memory) -> refcount blocks (a cluster each, cached) -> counts of 1 to 64 bits
 *
 * One at a time (`#mutex`). A block is on disk before the table names it, and the table before the header does. Whoever
 * commits a change of the mapping writes the counts first, by `write`; counts that are too high only leak space.
 *
 * `tables` holds the clusters that the image itself needs. A count of zero for one of them is damage, never free space.
 */
import { type BlockFile, DiskImageError } from '../block-file.ts';
import { Mutex } from '../mutex.ts';
import { type Table, TableCache } from '../table-cache.ts';
import type { ClusterSet } from './cluster-set.ts';
import { DamagedImageError } from './damage.ts';
import { getUint64, HEADER, type Qcow2Header, setUint64 } from './header.ts';

export interface Extent {
  /** Index of a host cluster. */
  readonly first: number;
  readonly count: number;
}

/** QEMU's limit; see header.ts. */
const TABLE_BYTES_MAX = 8 << 20;

export class Refcounts {
  readonly #file: BlockFile;
  readonly #clusterBytes: number;
  readonly #order: number;
  readonly #perBlock: number;
  readonly #tables: ClusterSet;
  readonly #cache: TableCache;
  readonly #mutex = new Mutex();
  /** Offsets of the refcount blocks, 0 where there is none. */
  #table: Float64Array;
  #tableOffset: number;
  readonly #changedEntries = new Set<number>();
  /** No cluster below it is free. */
  #freeFrom = 0;
  /** No cluster from here on was ever written: it reads as zeroes. */
  #freshFrom: number;

  private constructor(
    file: BlockFile,
    header: Qcow2Header,
    tables: ClusterSet,
    table: Float64Array,
    cacheBytes: number,
  ) {
    this.#file = file;
    this.#clusterBytes = 2 ** header.clusterBits;
    this.#order = header.refcountOrder;
    this.#perBlock = 2 ** (header.clusterBits + 3 - header.refcountOrder);
    this.#tables = tables;
    this.#cache = new TableCache(file, this.#clusterBytes, cacheBytes);
    this.#table = table;
    this.#tableOffset = header.refcountTableOffset;
    this.#freshFrom = Math.ceil(file.sizeBytes / this.#clusterBytes);
  }

  /** Reads the refcount table and notes it and its blocks in `tables`. */
  static async open(file: BlockFile, header: Qcow2Header, tables: ClusterSet, cacheBytes: number): Promise<Refcounts> {
    const clusterBytes = 2 ** header.clusterBits;
    const bytes = new Uint8Array(header.refcountTableClusters * clusterBytes);
    await file.read(header.refcountTableOffset, [bytes]);
    const view = new DataView(bytes.buffer);
    const table = new Float64Array(bytes.length / 8);
    const firstCluster = header.refcountTableOffset / clusterBytes;
    for (let cluster = 0; cluster < header.refcountTableClusters; cluster++) tables.add(firstCluster + cluster);
    for (let index = 0; index < table.length; index++) {
      const offset = getUint64(view, index * 8);
      if (offset === 0) continue;
      if (offset % clusterBytes !== 0 || offset >= file.sizeBytes) {
        throw new DamagedImageError(
          file.path,
          `refcount block ${index} is at ${offset}, expected a multiple of ${clusterBytes} within the file (${file.sizeBytes} bytes)`,
        );
      }
      if (tables.has(offset / clusterBytes)) {
        throw new DamagedImageError(file.path, `refcount block ${index} is at ${offset}, where another table is`);
      }
      tables.add(offset / clusterBytes);
      table[index] = offset;
    }
    return new Refcounts(file, header, tables, table, cacheBytes);
  }

  get isFullOfChanges(): boolean {
    return this.#cache.isFullOfChanges;
  }

  get hasChanges(): boolean {
    return this.#cache.hasChanges || this.#changedEntries.size > 0;
  }

  /** A bound for all clusters that are in use: the file's end, or what was taken behind it. */
  get endCluster(): number {
    return Math.max(this.#freshFrom, Math.ceil(this.#file.sizeBytes / this.#clusterBytes));
  }

  count(cluster: number): Promise<number> {
    return this.#mutex.run(() => this.#count(cluster));
  }

  /**
   * Takes up to `countMax` clusters in a row.
   * @returns the clusters, and whether nothing was ever written there
   */
  allocate(countMax: number): Promise<Extent & { readonly isFresh: boolean }> {
    return this.#mutex.run(async () => {
      const first = await this.#findFree();
      let count = 1;
      while (count < countMax && (await this.#isFree(first + count))) count++;
      return this.#take(first, count);
    });
  }

  /**
   * Takes `count` clusters in a row, for a table that must be contiguous. They lie behind all others.
   * @throws DiskImageError if a refcount block would come to lie among them, as with many clusters of 512 bytes
   */
  allocateContiguous(count: number): Promise<Extent> {
    return this.#mutex.run(async () => {
      if (count >= this.#perBlock) {
        throw new DiskImageError(
          `${this.#file.path}: a table of ${count} clusters does not fit: its clusters are too small`,
        );
      }
      for (;;) {
        const first = this.endCluster;
        for (let cluster = first; cluster < first + count; cluster++) await this.#ensureBlock(cluster);
        // New blocks come before the rest of what they count, and so may have moved the end.
        if (this.endCluster !== first) continue;
        for (let cluster = first; cluster < first + count; cluster++) {
          if (!(await this.#isFree(cluster)))
            throw this.#damaged(`cluster ${cluster} behind the end of the file is in use`);
        }
        return this.#take(first, count);
      }
    });
  }

  /** Lowers the counts by one. Nothing on disk may refer to the clusters any more. */
  release(extents: readonly Extent[]): Promise<void> {
    return this.#mutex.run(async () => {
      for (const { first, count } of extents) {
        for (let cluster = first; cluster < first + count; cluster++) {
          const old = await this.#count(cluster);
          // Damage, but of the harmless kind: nothing is freed that is in use.
          if (old === 0) continue;
          await this.#setCount(cluster, old - 1);
          if (old === 1) {
            this.#tables.delete(cluster);
            this.#freeFrom = Math.min(this.#freeFrom, cluster);
          }
        }
      }
    });
  }

  /** The clusters of the refcount table and blocks. */
  ownClusters(): Extent[] {
    const extents: Extent[] = [
      { first: this.#tableOffset / this.#clusterBytes, count: (this.#table.length * 8) / this.#clusterBytes },
    ];
    for (const offset of this.#table) if (offset !== 0) extents.push({ first: offset / this.#clusterBytes, count: 1 });
    return extents;
  }

  /**
   * For repair: makes the counts what they should be. Blocks that are missing come behind the last cluster.
   *
   * @param counts for each cluster up to the file's end; the blocks' own are added
   */
  correct(counts: number[]): Promise<void> {
    return this.#mutex.run(async () => {
      for (let index = 0; index * this.#perBlock < counts.length; index++) {
        const start = index * this.#perBlock;
        if (this.#table[index] === undefined)
          throw this.#damaged('its refcount table does not reach to the end of the file');
        if (this.#table[index] === 0) {
          if (!counts.slice(start, start + this.#perBlock).some((count) => count > 0)) continue;
          const place = counts.push(1) - 1;
          this.#noteTable(place);
          this.#cache.add(place * this.#clusterBytes);
          this.#table[index] = place * this.#clusterBytes;
          this.#changedEntries.add(index);
        }
        const end = Math.min(start + this.#perBlock, counts.length);
        for (let cluster = start; cluster < end; cluster++) await this.#correct(cluster, counts[cluster]!);
      }
      // Blocks that came after the blocks that count them.
      for (let cluster = this.#freshFrom; cluster < counts.length; cluster++)
        await this.#correct(cluster, counts[cluster]!);
      this.#freshFrom = Math.max(this.#freshFrom, counts.length);
    });
  }

  async #correct(cluster: number, count: number): Promise<void> {
    if (count > 2 ** Math.min(52, 2 ** this.#order) - 1)
      throw this.#damaged(`cluster ${cluster} is in use ${count} times`);
    if ((await this.#count(cluster)) === count) return;
    if (this.#cache.isFullOfChanges) await this.#write(() => {});
    await this.#setCount(cluster, count);
  }

  /**
   * Writes all changes, not yet durably. `atSnapshot` is called at the moment whose state is written: no cluster that is
   * taken later is in it.
   */
  write(atSnapshot: () => void): Promise<void> {
    return this.#mutex.run(() => this.#write(atSnapshot));
  }

  async #write(atSnapshot: () => void): Promise<void> {
    const spans = this.#cache.takeChanges();
    const entries = [...this.#changedEntries];
    this.#changedEntries.clear();
    atSnapshot();
    let isWritten = false;
    try {
      await this.#cache.write(spans);
      if (entries.length > 0) {
        await this.#file.flush();
        for (const index of entries)
          await this.#file.write(this.#tableOffset + index * 8, [uint64(this.#table[index]!)]);
      }
      isWritten = true;
    } finally {
      this.#cache.settle(spans, isWritten);
      if (!isWritten) for (const index of entries) this.#changedEntries.add(index);
    }
  }

  async #take(first: number, count: number): Promise<Extent & { readonly isFresh: boolean }> {
    for (let cluster = first; cluster < first + count; cluster++) await this.#setCount(cluster, 1);
    const isFresh = first >= this.#freshFrom;
    this.#freshFrom = Math.max(this.#freshFrom, first + count);
    if (first === this.#freeFrom) this.#freeFrom = first + count;
    return { first, count, isFresh };
  }

  async #findFree(): Promise<number> {
    for (let cluster = this.#freeFrom; ; ) {
      await this.#ensureBlock(cluster);
      const block = await this.#block(Math.floor(cluster / this.#perBlock));
      const end = Math.ceil((cluster + 1) / this.#perBlock) * this.#perBlock;
      while (cluster < end && readCount(block!, this.#order, cluster % this.#perBlock) !== 0) cluster++;
      this.#freeFrom = cluster;
      if (cluster === end) continue;
      if (await this.#isFree(cluster)) return cluster;
    }
  }

  /** @throws DamagedImageError if the count says so, but a table of the image is there */
  async #isFree(cluster: number): Promise<boolean> {
    if (this.#table[Math.floor(cluster / this.#perBlock)] === undefined) return false;
    if (this.#table[Math.floor(cluster / this.#perBlock)] === 0) return false;
    if ((await this.#count(cluster)) !== 0) return false;
    if (this.#tables.has(cluster)) {
      throw this.#damaged(
        `cluster ${cluster} (at ${cluster * this.#clusterBytes}) holds a table, but its refcount is 0`,
      );
    }
    return true;
  }

  #damaged(message: string): DamagedImageError {
    return new DamagedImageError(this.#file.path, message);
  }

  async #block(index: number): Promise<Table | undefined> {
    const offset = this.#table[index] ?? 0;
    if (offset === 0) return undefined;
    for (;;) {
      const block = this.#cache.get(offset);
      if (block !== undefined) return block;
      await this.#cache.load(offset);
    }
  }

  async #count(cluster: number): Promise<number> {
    const block = await this.#block(Math.floor(cluster / this.#perBlock));
    return block === undefined ? 0 : readCount(block, this.#order, cluster % this.#perBlock);
  }

  async #setCount(cluster: number, count: number): Promise<void> {
    const block = (await this.#block(Math.floor(cluster / this.#perBlock)))!;
    const index = cluster % this.#perBlock;
    writeCount(block, this.#order, index, count);
    const from = Math.floor(index * 2 ** (this.#order - 3));
    this.#cache.markDirty(block, from, from + Math.max(1, 2 ** (this.#order - 3)));
  }

  /** Makes the block that counts `cluster`, if there is none: it takes the first of the clusters that it counts. */
  async #ensureBlock(cluster: number): Promise<void> {
    const index = Math.floor(cluster / this.#perBlock);
    if (index >= this.#table.length) await this.#growTable(index);
    if (this.#table[index] !== 0) return;
    const own = index * this.#perBlock;
    if (this.#tables.has(own)) throw this.#damaged(`cluster ${own} holds a table, but no refcount block counts it`);
    this.#noteTable(own);
    this.#cache.add(own * this.#clusterBytes);
    this.#table[index] = own * this.#clusterBytes;
    this.#changedEntries.add(index);
    await this.#take(own, 1);
  }

  #noteTable(cluster: number): void {
    if (!this.#tables.add(cluster))
      throw this.#damaged(`cluster ${cluster} is further away than Domus can keep account of`);
  }

  /** A larger refcount table, behind all that the old one counts, with the blocks that count it. */
  async #growTable(indexWanted: number): Promise<void> {
    const clusterBytes = this.#clusterBytes;
    const perCluster = clusterBytes / 8;
    const start = this.#table.length * this.#perBlock;
    let blocks = 1;
    let entries = 0;
    for (;;) {
      const wanted = Math.max(this.#table.length + blocks, indexWanted + 1, Math.ceil(this.#table.length * 1.5));
      entries = Math.ceil(wanted / perCluster) * perCluster;
      const needed = Math.ceil((blocks + entries / perCluster) / this.#perBlock);
      if (needed <= blocks) break;
      blocks = needed;
    }
    if (entries * 8 > TABLE_BYTES_MAX) {
      throw this.#damaged(`its refcount table would need ${entries * 8} bytes, more than ${TABLE_BYTES_MAX}`);
    }
    const tableClusters = entries / perCluster;
    const used = blocks + tableClusters;
    for (let cluster = start; cluster < start + used; cluster++) {
      if (this.#tables.has(cluster))
        throw this.#damaged(`cluster ${cluster} holds a table, but no refcount block counts it`);
    }
    await this.#write(() => {});
    const grown = new Float64Array(entries);
    grown.set(this.#table);
    for (let block = 0; block < blocks; block++) {
      const offset = (start + block) * clusterBytes;
      grown[this.#table.length + block] = offset;
      const bytes = new Uint8Array(clusterBytes);
      const table = { bytes, view: new DataView(bytes.buffer) };
      const counted = Math.min(used - block * this.#perBlock, this.#perBlock);
      for (let index = 0; index < counted; index++) writeCount(table, this.#order, index, 1);
      await this.#file.write(offset, [bytes]);
    }
    const content = new Uint8Array(tableClusters * clusterBytes);
    const view = new DataView(content.buffer);
    grown.forEach((offset, index) => {
      setUint64(view, index * 8, offset);
    });
    const tableOffset = (start + blocks) * clusterBytes;
    await this.#file.write(tableOffset, [content]);
    await this.#file.flush();
    const fields = new Uint8Array(12);
    setUint64(new DataView(fields.buffer), 0, tableOffset);
    new DataView(fields.buffer).setUint32(8, tableClusters);
    await this.#file.write(HEADER.refcount_table_offset, [fields]);
    await this.#file.flush();

    for (let cluster = start; cluster < start + used; cluster++) this.#noteTable(cluster);
    const old: Extent = { first: this.#tableOffset / clusterBytes, count: (this.#table.length * 8) / clusterBytes };
    this.#table = grown;
    this.#tableOffset = tableOffset;
    this.#freshFrom = Math.max(this.#freshFrom, start + used);
    for (let cluster = old.first; cluster < old.first + old.count; cluster++) {
      await this.#setCount(cluster, Math.max(0, (await this.#count(cluster)) - 1));
      this.#tables.delete(cluster);
    }
    this.#freeFrom = Math.min(this.#freeFrom, old.first);
  }
}

type Counts = Pick<Table, 'bytes' | 'view'>;

function readCount({ bytes, view }: Counts, order: number, index: number): number {
  switch (order) {
    case 3:
      return bytes[index]!;
    case 4:
      return view.getUint16(index * 2);
    case 5:
      return view.getUint32(index * 4);
    case 6:
      return getUint64(view, index * 8);
    default: {
      // Several counts a byte, the first in the lowest bits.
      const width = 1 << order;
      const shift = (index * width) & 7;
      return (bytes[(index * width) >> 3]! >> shift) & ((1 << width) - 1);
    }
  }
}

function writeCount({ bytes, view }: Counts, order: number, index: number, count: number): void {
  switch (order) {
    case 3:
      bytes[index] = count;
      break;
    case 4:
      view.setUint16(index * 2, count);
      break;
    case 5:
      view.setUint32(index * 4, count);
      break;
    case 6:
      setUint64(view, index * 8, count);
      break;
    default: {
      const width = 1 << order;
      const shift = (index * width) & 7;
      const at = (index * width) >> 3;
      bytes[at] = (bytes[at]! & ~(((1 << width) - 1) << shift)) | (count << shift);
    }
  }
}

export function uint64(value: number): Uint8Array {
  const bytes = new Uint8Array(8);
  setUint64(new DataView(bytes.buffer), 0, value);
  return bytes;
}
