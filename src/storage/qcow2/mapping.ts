/**
 * Where each guest cluster lies: the L1 table (in memory) and the L2 tables (cached).
 *
 *     L2 entry, two big-endian words:
 *       hi  31 COPIED: the refcount is one, so it may be written in place    30 compressed    23..0 offset >> 32
 *       lo  31..9 offset                                                      0 reads as zeroes (version 3)
 *
 * Changes stay in memory until a commit writes them (image.ts): `takeChanges`, then L2 tables, then L1 entries.
 * Source: QEMU docs/interop/qcow2.rst, "Cluster mapping".
 */
import type { BlockFile } from '../block-file.ts';
import { Mutex } from '../mutex.ts';
import { type DirtySpan, type Table, TableCache } from '../table-cache.ts';
import type { ClusterSet } from './cluster-set.ts';
import { DamagedImageError } from './damage.ts';
import { bytesPerTable, type Qcow2Header } from './header.ts';
import { type Extent, type Refcounts, uint64 } from './refcounts.ts';

export const COPIED = 0x80000000;
export const COMPRESSED = 0x40000000;
const OFFSET_HIGH = 0x00ffffff;
const OFFSET_LOW = 0xfffffe00;
export const ZERO = 1;
const ENTRY_BYTES = 8;

/** `hole`: nothing here, the backing file shows through. */
export type ClusterKind = 'hole' | 'zero' | 'data' | 'compressed';

/** A piece of the disk that lies in one piece in the file. */
export interface Run {
  readonly kind: ClusterKind;
  /** Bytes from the asked offset on. */
  readonly lengthBytes: number;
  /** Of the first byte, in the file; 0 for holes and zeroes. Of the first cluster's data for compressed ones. */
  readonly hostOffset: number;
  /** May be written in place. */
  readonly isOwn: boolean;
  /** Compressed: bytes in the file, up to the end of the last sector. */
  readonly compressedBytes: number;
}

/** An L1 table that is in memory: offsets, and whether they are the image's own (COPIED). */
export interface L1Table {
  readonly fileOffset: number;
  readonly offsets: Float64Array;
  readonly isOwn: Uint8Array;
}

export async function readL1(file: BlockFile, clusterBits: number, offset: number, entries: number): Promise<L1Table> {
  const bytes = new Uint8Array(entries * ENTRY_BYTES);
  const view = new DataView(bytes.buffer);
  if (entries > 0) await file.read(offset, [bytes]);
  const offsets = new Float64Array(entries);
  const isOwn = new Uint8Array(entries);
  for (let index = 0; index < entries; index++) {
    const high = view.getUint32(index * ENTRY_BYTES);
    const tableOffset = (high & OFFSET_HIGH) * 2 ** 32 + ((view.getUint32(index * ENTRY_BYTES + 4) & OFFSET_LOW) >>> 0);
    if (tableOffset % 2 ** clusterBits !== 0 || tableOffset >= Math.max(file.sizeBytes, 1)) {
      throw new DamagedImageError(
        file.path,
        `L2 table ${index} is at ${tableOffset}, expected a multiple of ${2 ** clusterBits} within the file (${file.sizeBytes} bytes)`,
      );
    }
    offsets[index] = tableOffset;
    isOwn[index] = high >>> 31;
  }
  return { fileOffset: offset, offsets, isOwn };
}

export interface MappingChanges {
  readonly spans: readonly DirtySpan[];
  readonly entries: readonly { readonly index: number; readonly bytes: Uint8Array }[];
  /** The L1 table that `entries` are for. */
  readonly l1Offset: number;
}

export class Mapping {
  readonly #file: BlockFile;
  readonly #version: number;
  readonly #clusterBits: number;
  readonly #tables: ClusterSet;
  readonly #cache: TableCache;
  readonly #hasExternalData: boolean;
  readonly #mutex = new Mutex();
  readonly #changedEntries = new Set<number>();
  readonly entriesPerTable: number;
  #l1: L1Table;

  constructor(file: BlockFile, header: Qcow2Header, l1: L1Table, tables: ClusterSet, cacheBytes: number) {
    this.#file = file;
    this.#version = header.version;
    this.#clusterBits = header.clusterBits;
    this.#hasExternalData = header.hasExternalData;
    this.#tables = tables;
    this.#cache = new TableCache(file, 2 ** header.clusterBits, cacheBytes);
    this.#l1 = l1;
    this.entriesPerTable = 2 ** (header.clusterBits - 3);
  }

  get l1(): L1Table {
    return this.#l1;
  }

  get isFullOfChanges(): boolean {
    return this.#cache.isFullOfChanges;
  }

  get hasChanges(): boolean {
    return this.#cache.hasChanges || this.#changedEntries.size > 0;
  }

  /**
   * Moves the L1 table: `move` writes the new one and gives it back. Nothing changes the table meanwhile.
   * @returns false, without a call, if changes of it are not on disk yet
   */
  moveL1(move: (old: L1Table) => Promise<L1Table>): Promise<boolean> {
    return this.#mutex.run(async () => {
      if (this.#changedEntries.size > 0) return false;
      this.#l1 = await move(this.#l1);
      return true;
    });
  }

  /** Does any L2 table map this part of the disk? */
  hasTable(tableIndex: number): boolean {
    return (this.#l1.offsets[tableIndex] ?? 0) !== 0;
  }

  /** What lies at `offset`: as many of the next `lengthMax` bytes as are alike and in one piece. */
  async lookup(offset: number, lengthMax: number): Promise<Run> {
    for (;;) {
      const run = this.lookupNow(offset, lengthMax);
      if (run !== undefined) return run;
      await this.#cache.load(this.#l1.offsets[Math.floor(offset / bytesPerTable(this.#clusterBits))]!);
    }
  }

  /** The same, or undefined while the table for it is not in memory. */
  lookupNow(offset: number, lengthMax: number): Run | undefined {
    const tableIndex = Math.floor(offset / bytesPerTable(this.#clusterBits));
    const tableOffset = this.#l1.offsets[tableIndex] ?? 0;
    if (tableOffset === 0) {
      const end = (tableIndex + 1) * bytesPerTable(this.#clusterBits);
      const lengthBytes = Math.min(lengthMax, end - offset);
      return { kind: 'hole', lengthBytes, hostOffset: 0, isOwn: false, compressedBytes: 0 };
    }
    const table = this.#cache.get(tableOffset);
    return table && this.#lookupIn(table, offset, lengthMax);
  }

  #lookupIn(table: Table, offset: number, lengthMax: number): Run {
    const clusterBytes = 2 ** this.#clusterBits;
    const cluster = Math.floor(offset / clusterBytes);
    const first = cluster % this.entriesPerTable;
    const within = offset - cluster * clusterBytes;
    const high = table.view.getUint32(first * ENTRY_BYTES);
    const low = table.view.getUint32(first * ENTRY_BYTES + 4);
    const kind = this.#kindOf(high, low);
    let lengthBytes = clusterBytes - within;
    if (kind === 'compressed') {
      const { offset: hostOffset, lengthBytes: compressedBytes } = compressedExtent(high, low, this.#clusterBits);
      return { kind, lengthBytes: Math.min(lengthBytes, lengthMax), hostOffset, isOwn: false, compressedBytes };
    }
    const start = hostOffsetOf(high, low);
    const isOwn = high >>> 31 === 1;
    if (start !== 0 || (this.#hasExternalData && kind === 'data')) this.#checkPlace(start, cluster);
    for (let index = first + 1; index < this.entriesPerTable && lengthBytes < lengthMax; index++) {
      const nextHigh = table.view.getUint32(index * ENTRY_BYTES);
      const nextLow = table.view.getUint32(index * ENTRY_BYTES + 4);
      if (this.#kindOf(nextHigh, nextLow) !== kind) break;
      if (kind === 'data') {
        if (nextHigh >>> 31 !== high >>> 31) break;
        if (hostOffsetOf(nextHigh, nextLow) !== start + (index - first) * clusterBytes) break;
      }
      lengthBytes += clusterBytes;
    }
    lengthBytes = Math.min(lengthBytes, lengthMax);
    return { kind, lengthBytes, hostOffset: kind === 'data' ? start + within : 0, isOwn, compressedBytes: 0 };
  }

  #kindOf(high: number, low: number): ClusterKind {
    if (high & COMPRESSED) return 'compressed';
    if (low & ZERO) {
      if (this.#version < 3) throw this.#damaged('a version 2 image has a cluster with the zero flag');
      return 'zero';
    }
    if (hostOffsetOf(high, low) !== 0) return 'data';
    return this.#hasExternalData && high >>> 31 === 1 ? 'data' : 'hole';
  }

  #checkPlace(hostOffset: number, cluster: number): void {
    const clusterBytes = 2 ** this.#clusterBits;
    if (hostOffset % clusterBytes !== 0) {
      throw this.#damaged(`cluster ${cluster} is at ${hostOffset}, expected a multiple of ${clusterBytes}`);
    }
    if (this.#hasExternalData && hostOffset !== cluster * clusterBytes) {
      throw this.#damaged(`cluster ${cluster} is at ${hostOffset} of the external data file, expected its own offset`);
    }
  }

  #damaged(message: string): DamagedImageError {
    return new DamagedImageError(this.#file.path, message);
  }

  /** Calls `use` with an L2 table that exists. It may be changed during the call, and not kept: it leaves memory later. */
  async withTable<T>(tableIndex: number, use: (table: Table) => T): Promise<T> {
    for (;;) {
      const offset = this.#l1.offsets[tableIndex]!;
      const table = this.#cache.get(offset);
      if (table !== undefined) return use(table);
      await this.#cache.load(offset);
    }
  }

  /**
   * Makes sure that the L2 table exists and belongs to the active disk alone, so that it may be changed.
   * @returns the cluster of the shared table that it replaces, which loses a reference once the change is on disk
   */
  ensureOwnTable(tableIndex: number, refcounts: Refcounts): Promise<Extent | undefined> {
    const { offsets, isOwn } = this.#l1;
    if (offsets[tableIndex] !== 0 && isOwn[tableIndex]) return NOTHING;
    return this.#mutex.run(async () => {
      const l1 = this.#l1;
      const old = l1.offsets[tableIndex]!;
      if (old !== 0 && l1.isOwn[tableIndex]) return undefined;
      const clusterBytes = 2 ** this.#clusterBits;
      const { first } = await refcounts.allocate(1);
      let content: Uint8Array | undefined;
      if (old !== 0) {
        const shared = new Uint8Array(clusterBytes);
        const cached = this.#cache.get(old);
        if (cached !== undefined) shared.set(cached.bytes);
        else await this.#file.read(old, [shared]);
        content = shared;
      }
      if (!this.#tables.add(first))
        throw this.#damaged(`cluster ${first} is further away than Domus can keep account of`);
      this.#cache.add(first * clusterBytes, content);
      l1.offsets[tableIndex] = first * clusterBytes;
      l1.isOwn[tableIndex] = 1;
      this.#changedEntries.add(tableIndex);
      return old === 0 ? undefined : { first: old / clusterBytes, count: 1 };
    });
  }

  /** Forgets a cached table whose cluster is free again. */
  forget(tableOffset: number): void {
    this.#cache.drop(tableOffset);
  }

  /**
   * Changes an entry of a table that `withTable` gives.
   * @returns what the entry referred to before
   */
  setEntry(table: Table, index: number, high: number, low: number): Extent | undefined {
    const at = index * ENTRY_BYTES;
    const old = this.#extentOf(table.view.getUint32(at), table.view.getUint32(at + 4));
    table.view.setUint32(at, high);
    table.view.setUint32(at + 4, low);
    this.#cache.markDirty(table, at, at + ENTRY_BYTES);
    return old;
  }

  entryKind(table: Table, index: number): ClusterKind {
    return this.#kindOf(table.view.getUint32(index * ENTRY_BYTES), table.view.getUint32(index * ENTRY_BYTES + 4));
  }

  /** The host clusters that an entry counts on. Those of compressed data may be shared by several entries. */
  #extentOf(high: number, low: number): Extent | undefined {
    return this.#hasExternalData ? undefined : entryExtent(high, low, this.#clusterBits);
  }

  /** All changes, copied. They count as written; `settle` follows. */
  takeChanges(): MappingChanges {
    const entries = [...this.#changedEntries].map((index) => {
      const bytes = uint64(this.#l1.offsets[index]!);
      bytes[0]! |= 0x80;
      return { index, bytes };
    });
    this.#changedEntries.clear();
    return { spans: this.#cache.takeChanges(), entries, l1Offset: this.#l1.fileOffset };
  }

  /** Writes the changes in two steps, each durable before the next begins: tables, then the entries that name them. */
  async write(changes: MappingChanges): Promise<void> {
    if (changes.spans.length > 0) {
      await this.#cache.write(changes.spans);
      await this.#file.flush();
    }
    if (changes.entries.length > 0) {
      for (const { index, bytes } of changes.entries)
        await this.#file.write(changes.l1Offset + index * ENTRY_BYTES, [bytes]);
      await this.#file.flush();
    }
  }

  settle(changes: MappingChanges, isWritten: boolean): void {
    this.#cache.settle(changes.spans, isWritten);
    if (!isWritten) for (const { index } of changes.entries) this.#changedEntries.add(index);
  }
}

const NOTHING = Promise.resolve(undefined);

export function hostOffsetOf(high: number, low: number): number {
  return (high & OFFSET_HIGH) * 2 ** 32 + ((low & OFFSET_LOW) >>> 0);
}

/** Where compressed data lies: from `offset` to the end of its last sector. */
export function compressedExtent(
  high: number,
  low: number,
  clusterBits: number,
): { readonly offset: number; readonly lengthBytes: number } {
  // Bits 0 to x - 1 are the offset, x to 61 the number of further sectors; x = 62 - (cluster_bits - 8).
  const highBits = 62 - (clusterBits - 8) - 32;
  const offset = (high & (2 ** highBits - 1)) * 2 ** 32 + low;
  const sectors = (high & 0x3fffffff) >>> highBits;
  return { offset, lengthBytes: (sectors + 1) * 512 - (offset % 512) };
}

/** The host clusters that an L2 entry counts on. */
export function entryExtent(high: number, low: number, clusterBits: number): Extent | undefined {
  const clusterBytes = 2 ** clusterBits;
  if (high & COMPRESSED) {
    const { offset, lengthBytes } = compressedExtent(high, low, clusterBits);
    const first = Math.floor(offset / clusterBytes);
    return { first, count: Math.floor((offset + lengthBytes - 1) / clusterBytes) - first + 1 };
  }
  const offset = hostOffsetOf(high, low);
  return offset === 0 ? undefined : { first: Math.floor(offset / clusterBytes), count: 1 };
}
