/**
 * qcow2 images, versions 2 and 3: reading and writing.
 *
 * **What survives a crash.** Changed tables stay in memory until a commit, which `flush` asks for. A commit copies all
 * changes at one moment and writes them in this order, each step durable before the next begins:
 *
 *     1. data (already written by then) and reference counts     a new cluster is taken
 *     2. L2 tables                                               and then referred to
 *     3. L1 entries                                              as are new L2 tables
 *     4. counts go down, in memory: the next commit writes them  an old cluster is let go after nothing refers to it
 *
 * So at every moment the image on disk is sound; a crash can leave clusters that are counted, but not used.
 *
 * **Who may overtake whom.** A cluster that is freed is given to no one before all requests have ended that began
 * while it was in use (`#requests`), since they may still read or write it. Writers that move clusters hold the guest
 * clusters (`#locks`). Requests for data that is in place run freely.
 *
 * **Damage.** Data is never written over the image's own tables (`tables`). An image found contradictory takes no more
 * writes, and its corrupt bit is set.
 *
 * Not supported, and refused: encryption, extended L2 entries. Persistent bitmaps are given up at the first write, as the
 * format provides for. Internal snapshots can be read, and are kept.
 */
import { type BlockFile, DiskImageError, type Files, lengthOf, sliceBuffers, zeroRange } from '../block-file.ts';
import type { DiskImage } from '../disk-image.ts';
import { checkRange } from '../range.ts';
import { type RangeLock, RangeLocks } from '../range-locks.ts';
import type { ClusterSet } from './cluster-set.ts';
import { CompressedClusters } from './compressed.ts';
import { DamagedImageError } from './damage.ts';
import { AUTOCLEAR, bytesPerTable, HEADER, INCOMPATIBLE, type Qcow2Header } from './header.ts';
import { COPIED, type L1Table, Mapping, type MappingChanges, type Run, ZERO } from './mapping.ts';
import { type Extent, type Refcounts, uint64 } from './refcounts.ts';
import { growDisk } from './resize.ts';

/** Memory for L2 tables: with clusters of 64 KiB it covers 32 GiB of disk. */
const L2_CACHE_BYTES = 4 << 20;

export interface Qcow2Parts {
  readonly file: BlockFile;
  readonly header: Qcow2Header;
  /** Size of the disk, which for a snapshot may differ from the header's. */
  readonly sizeBytes: number;
  readonly l1: L1Table;
  readonly backing: DiskImage | undefined;
  readonly dataFile: BlockFile | undefined;
  readonly decompress: Files['decompress'];
  /** For images that may be written. */
  readonly writing: { readonly tables: ClusterSet; readonly refcounts: Refcounts } | undefined;
}

/** Clusters that the mapping no longer refers to. */
interface Freed extends Extent {
  /** Requests below this number may still use them. */
  readonly beforeRequest: number;
}

export class Qcow2Image implements DiskImage {
  readonly format = 'qcow2';
  readonly backing: DiskImage | undefined;
  readonly #file: BlockFile;
  readonly #dataFile: BlockFile | undefined;
  readonly #header: Qcow2Header;
  readonly #clusterBytes: number;
  readonly #mapping: Mapping;
  readonly #compressed: CompressedClusters;
  readonly #writing: Qcow2Parts['writing'];
  readonly #locks = new RangeLocks();
  /** Numbers of the requests under way, oldest first. */
  readonly #requests = new Set<number>();
  #nextRequest = 0;
  /** Freed since the last commit began, and those whose freeing is on disk. */
  #freed: Freed[] = [];
  #freedOnDisk: Freed[] = [];
  #sizeBytes: number;
  #running: Promise<void> = Promise.resolve();
  #queued: Promise<void> | undefined;
  #damage: DamagedImageError | undefined;

  constructor(parts: Qcow2Parts) {
    const { file, header, l1, backing, dataFile, writing } = parts;
    this.#file = file;
    this.#header = header;
    this.#clusterBytes = 2 ** header.clusterBits;
    this.#sizeBytes = parts.sizeBytes;
    this.backing = backing;
    this.#dataFile = dataFile;
    this.#writing = writing;
    // A reader has no tables to protect.
    const tables = writing?.tables ?? NO_TABLES;
    this.#mapping = new Mapping(file, header, l1, tables, L2_CACHE_BYTES);
    this.#compressed = new CompressedClusters(file, this.#clusterBytes, header.compression, parts.decompress);
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  get readOnly(): boolean {
    return this.#writing === undefined;
  }

  async read(offset: number, buffers: readonly Uint8Array[]): Promise<void> {
    const lengthBytes = lengthOf(buffers);
    checkRange(this.#file.path, this, 'read', offset, lengthBytes);
    const request = this.#begin();
    const reads: Promise<void>[] = [];
    try {
      for (let done = 0; done < lengthBytes; ) {
        const run = await this.#mapping.lookup(offset + done, lengthBytes - done);
        const part = run.lengthBytes === lengthBytes ? buffers : sliceBuffers(buffers, done, done + run.lengthBytes);
        start(reads, this.#readRun(run, offset + done, part));
        done += run.lengthBytes;
      }
    } finally {
      await settle(reads, () => this.#end(request));
    }
  }

  async #readRun(run: Run, offset: number, buffers: readonly Uint8Array[]): Promise<void> {
    switch (run.kind) {
      case 'data':
        return await (this.#dataFile ?? this.#file).read(run.hostOffset, buffers);
      case 'compressed': {
        const content = await this.#compressed.read(run.hostOffset, run.compressedBytes);
        let at = offset % this.#clusterBytes;
        for (const buffer of buffers) {
          buffer.set(content.subarray(at, at + buffer.length));
          at += buffer.length;
        }
        return;
      }
      case 'zero':
        for (const buffer of buffers) buffer.fill(0);
        return;
      case 'hole':
        return await this.#readBacking(offset, buffers);
    }
  }

  async #readBacking(offset: number, buffers: readonly Uint8Array[]): Promise<void> {
    const lengthBytes = lengthOf(buffers);
    const there = Math.max(0, Math.min(lengthBytes, (this.backing?.sizeBytes ?? 0) - offset));
    if (there === lengthBytes) return await this.backing!.read(offset, buffers);
    for (const buffer of sliceBuffers(buffers, there, lengthBytes)) buffer.fill(0);
    if (there > 0) await this.backing!.read(offset, sliceBuffers(buffers, 0, there));
  }

  async write(offset: number, buffers: readonly Uint8Array[]): Promise<void> {
    const lengthBytes = lengthOf(buffers);
    checkRange(this.#file.path, this, 'write', offset, lengthBytes);
    await this.#change(async (parts) => {
      for (let done = 0; done < lengthBytes; ) {
        const at = offset + done;
        const run = await this.#mapping.lookup(at, lengthBytes - done);
        const part = (): readonly Uint8Array[] =>
          run.lengthBytes === lengthBytes ? buffers : sliceBuffers(buffers, done, done + run.lengthBytes);
        if (run.kind === 'data' && run.isOwn) {
          this.#checkDataPlace(run.hostOffset, run.lengthBytes);
          start(parts, (this.#dataFile ?? this.#file).write(run.hostOffset, part()));
        } else {
          const lock = await this.#lock(at, run.lengthBytes);
          if (lock === undefined) continue;
          const wasEmpty = run.kind === 'hole' && this.backing === undefined;
          start(parts, this.#writeNew(at, part(), wasEmpty).finally(lock.release));
        }
        done += run.lengthBytes;
      }
    });
  }

  readNow(offset: number, buffers: readonly Uint8Array[], lengthBytes: number): boolean {
    const run = this.#runNow(offset, lengthBytes);
    if (run?.kind !== 'data') return false;
    return (this.#dataFile ?? this.#file).readNow?.(run.hostOffset, buffers, lengthBytes) === true;
  }

  /** Only where the data has its place: nothing of the image changes then, and nobody has to be waited for. */
  writeNow(offset: number, buffers: readonly Uint8Array[], lengthBytes: number): boolean {
    if (this.#writing === undefined || this.#damage !== undefined) return false;
    const run = this.#runNow(offset, lengthBytes);
    if (run?.kind !== 'data' || !run.isOwn) return false;
    if (!this.#dataFile && this.#whyNoDataPlace(run.hostOffset, lengthBytes) !== null) return false;
    return (this.#dataFile ?? this.#file).writeNow?.(run.hostOffset, buffers, lengthBytes) === true;
  }

  /** What lies there, if that is known, and all of it is alike. What is wrong with it is found again by who may wait. */
  #runNow(offset: number, lengthBytes: number): Run | undefined {
    if (lengthBytes === 0 || offset + lengthBytes > this.#sizeBytes) return undefined;
    try {
      const run = this.#mapping.lookupNow(offset, lengthBytes);
      return run?.lengthBytes === lengthBytes ? run : undefined;
    } catch (error) {
      if (error instanceof DamagedImageError) return undefined;
      throw error;
    }
  }

  /** Undefined if another writer was in the way: the mapping must be looked at again. */
  #lock(offset: number, lengthBytes: number): Promise<RangeLock | undefined> {
    const first = Math.floor(offset / this.#clusterBytes);
    return this.#locks.tryTake(first, Math.floor((offset + lengthBytes - 1) / this.#clusterBytes));
  }

  /**
   * Writes to clusters of one L2 table that the disk has no place of its own for. The caller holds them.
   * What the write does not cover is copied from where it was.
   */
  async #writeNew(offset: number, buffers: readonly Uint8Array[], wasEmpty: boolean): Promise<void> {
    const { refcounts } = this.#writing!;
    const clusterBytes = this.#clusterBytes;
    const end = offset + lengthOf(buffers);
    const last = Math.floor((end - 1) / clusterBytes);
    const tableIndex = Math.floor(offset / bytesPerTable(this.#header.clusterBits));
    this.#free(await this.#mapping.ensureOwnTable(tableIndex, refcounts));
    for (let cluster = Math.floor(offset / clusterBytes); cluster <= last; ) {
      const place = this.#dataFile
        ? { first: cluster, count: last - cluster + 1, isFresh: false }
        : await refcounts.allocate(last - cluster + 1);
      const from = Math.max(offset, cluster * clusterBytes);
      const to = Math.min(end, (cluster + place.count) * clusterBytes);
      const headBytes = from - cluster * clusterBytes;
      const tailBytes = (cluster + place.count) * clusterBytes - to;
      try {
        const head = await this.#oldContent(from - headBytes, headBytes, wasEmpty && place.isFresh);
        const tail = await this.#oldContent(to, tailBytes, wasEmpty && place.isFresh);
        const content = [...head, ...sliceBuffers(buffers, from - offset, to - offset), ...tail];
        const skipped = head.length === 0 ? headBytes : 0;
        if (this.#dataFile) await this.#dataFile.write(place.first * clusterBytes + skipped, content);
        else {
          this.#checkDataPlace(place.first * clusterBytes, place.count * clusterBytes);
          await this.#file.write(place.first * clusterBytes + skipped, content);
        }
      } catch (error) {
        // Nothing refers to them yet.
        if (!this.#dataFile) await refcounts.release([place]);
        throw error;
      }
      const firstEntry = cluster % this.#mapping.entriesPerTable;
      await this.#mapping.withTable(tableIndex, (table) => {
        for (let index = 0; index < place.count; index++) {
          const hostOffset = (place.first + index) * clusterBytes;
          const high = (Math.floor(hostOffset / 2 ** 32) | COPIED) >>> 0;
          this.#free(this.#mapping.setEntry(table, firstEntry + index, high, hostOffset >>> 0));
        }
      });
      cluster += place.count;
    }
  }

  /** What a part of a cluster held before; nothing if there is no need to write it. */
  async #oldContent(offset: number, lengthBytes: number, isZeroAlready: boolean): Promise<Uint8Array[]> {
    if (lengthBytes === 0 || isZeroAlready) return [];
    const content = new Uint8Array(lengthBytes);
    const run = await this.#mapping.lookup(offset, lengthBytes);
    await this.#readRun({ ...run, lengthBytes }, offset, [content]);
    return [content];
  }

  async discard(offset: number, lengthBytes: number): Promise<void> {
    checkRange(this.#file.path, this, 'write', offset, lengthBytes);
    const first = Math.ceil(offset / this.#clusterBytes);
    await this.#dropClusters(first, this.#endOfWholeClusters(offset + lengthBytes), false);
  }

  async writeZeroes(offset: number, lengthBytes: number): Promise<void> {
    checkRange(this.#file.path, this, 'write', offset, lengthBytes);
    const clusterBytes = this.#clusterBytes;
    const end = offset + lengthBytes;
    const first = Math.ceil(offset / clusterBytes);
    const last = this.#endOfWholeClusters(end);
    const canMark = this.#header.version >= 3 || this.backing === undefined;
    if (!canMark || first >= last) return await this.#writeZeroBytes(offset, end);
    await this.#writeZeroBytes(offset, first * clusterBytes);
    await this.#dropClusters(first, last, true);
    await this.#writeZeroBytes(last * clusterBytes, end);
  }

  /** The last cluster counts as whole, even if the disk ends within it. */
  #endOfWholeClusters(end: number): number {
    return end === this.#sizeBytes ? Math.ceil(end / this.#clusterBytes) : Math.floor(end / this.#clusterBytes);
  }

  async #writeZeroBytes(from: number, end: number): Promise<void> {
    const zeroes = new Uint8Array(Math.max(0, Math.min(end - from, 1 << 20)));
    while (from < end) {
      const run = await this.#mapping.lookup(from, Math.min(end - from, zeroes.length));
      const readsZero = run.kind === 'zero' || (run.kind === 'hole' && from >= (this.backing?.sizeBytes ?? 0));
      if (!readsZero) await this.write(from, [zeroes.subarray(0, run.lengthBytes)]);
      from += run.lengthBytes;
    }
  }

  /** Whole clusters become holes, or zeroes where a hole would let the backing file show through. */
  async #dropClusters(first: number, end: number, mustBeZero: boolean): Promise<void> {
    const needsFlag = this.backing !== undefined;
    if (needsFlag && this.#header.version < 3) return;
    const perTable = this.#mapping.entriesPerTable;
    for (let cluster = first; cluster < end; ) {
      const tableIndex = Math.floor(cluster / perTable);
      const stop = Math.min(end, (tableIndex + 1) * perTable);
      const from = cluster;
      cluster = stop;
      if (!this.#mapping.hasTable(tableIndex) && !(needsFlag && mustBeZero)) continue;
      await this.#change(async () => {
        const lock = await this.#locks.take(from, stop - 1);
        try {
          await this.#dropInTable(tableIndex, from % perTable, stop - tableIndex * perTable, mustBeZero);
        } finally {
          lock.release();
        }
      });
    }
  }

  async #dropInTable(tableIndex: number, first: number, end: number, mustBeZero: boolean): Promise<void> {
    // A hole stays one unless the caller counts on zeroes; what is zero already stays so.
    const flag = this.backing === undefined ? 0 : ZERO;
    const mapping = this.#mapping;
    if (mapping.hasTable(tableIndex)) {
      const changes = await mapping.withTable(tableIndex, (table) => {
        for (let index = first; index < end; index++) {
          if (needsDrop(mapping.entryKind(table, index), flag !== 0 && mustBeZero)) return true;
        }
        return false;
      });
      if (!changes) return;
    } else if (!mustBeZero) return;
    this.#free(await mapping.ensureOwnTable(tableIndex, this.#writing!.refcounts));
    if (this.#dataFile) {
      const start = (tableIndex * mapping.entriesPerTable + first) * this.#clusterBytes;
      const stop = Math.min(
        (tableIndex * mapping.entriesPerTable + end) * this.#clusterBytes,
        this.#dataFile.sizeBytes,
      );
      if (start < stop) await zeroRange(this.#dataFile, start, stop - start);
    }
    await mapping.withTable(tableIndex, (table) => {
      for (let index = first; index < end; index++) {
        if (!needsDrop(mapping.entryKind(table, index), flag !== 0 && mustBeZero)) continue;
        this.#free(mapping.setEntry(table, index, 0, flag));
      }
    });
  }

  /** @throws DamagedImageError if the image says that data lies where its tables are, or behind its end */
  #checkDataPlace(hostOffset: number, lengthBytes: number): void {
    if (this.#dataFile) return;
    const why = this.#whyNoDataPlace(hostOffset, lengthBytes);
    if (why !== null) throw new DamagedImageError(this.#file.path, why);
  }

  #whyNoDataPlace(hostOffset: number, lengthBytes: number): string | null {
    const { tables, refcounts } = this.#writing!;
    const first = Math.floor(hostOffset / this.#clusterBytes);
    const last = Math.floor((hostOffset + lengthBytes - 1) / this.#clusterBytes);
    for (let cluster = first; cluster <= last; cluster++)
      if (tables.has(cluster)) return `data at ${cluster * this.#clusterBytes}, where a table of the image is`;
    if (last < refcounts.endCluster) return null;
    return `data at ${last * this.#clusterBytes}, behind the end of the file (${this.#file.sizeBytes} bytes)`;
  }

  #free(extent: Extent | undefined): void {
    if (extent !== undefined) this.#freed.push({ ...extent, beforeRequest: this.#nextRequest });
  }

  #begin(): number {
    const request = this.#nextRequest++;
    this.#requests.add(request);
    return request;
  }

  #end(request: number): void {
    this.#requests.delete(request);
  }

  /** Runs a request that changes the image, with a list for the parts of it that go on while it looks further. */
  async #change(task: (parts: Promise<void>[]) => Promise<void>): Promise<void> {
    if (this.#damage !== undefined) throw this.#damage;
    if (this.#mapping.isFullOfChanges || this.#writing!.refcounts.isFullOfChanges) await this.flush();
    const request = this.#begin();
    const parts: Promise<void>[] = [];
    try {
      try {
        await task(parts);
      } finally {
        await settle(parts, () => this.#end(request));
      }
    } catch (error) {
      if (error instanceof DamagedImageError) await this.#giveUp(error);
      throw error;
    }
  }

  async #giveUp(error: DamagedImageError): Promise<void> {
    if (this.#damage !== undefined) return;
    this.#damage = error;
    if (this.#header.version < 3) return;
    const bits = uint64(INCOMPATIBLE.CORRUPT | (this.#header.hasExternalData ? INCOMPATIBLE.EXTERNAL_DATA : 0));
    if (this.#header.compression === 'zstd') bits[7]! |= INCOMPATIBLE.COMPRESSION;
    await this.#file.write(HEADER.incompatible_features, [bits]);
  }

  /** Commits. Those who ask while one runs share the next one. */
  flush(): Promise<void> {
    if (this.#writing === undefined) return Promise.resolve();
    if (this.#queued !== undefined) return this.#queued;
    const run = async (): Promise<void> => {
      this.#queued = undefined;
      await this.#commit();
    };
    const queued = this.#running.then(run, run);
    this.#queued = queued;
    this.#running = queued;
    return queued;
  }

  async #commit(): Promise<void> {
    const { refcounts } = this.#writing!;
    let changes: MappingChanges | undefined;
    let freed: Freed[] = [];
    let isWritten = false;
    try {
      await refcounts.write(() => {
        changes = this.#mapping.takeChanges();
        freed = this.#freed;
        this.#freed = [];
      });
      await this.#dataFile?.flush();
      await this.#file.flush();
      await this.#mapping.write(changes!);
      isWritten = true;
    } finally {
      if (changes !== undefined) this.#mapping.settle(changes, isWritten);
      if (!isWritten) this.#freed.unshift(...freed);
    }
    this.#freedOnDisk.push(...freed);
    await this.#reclaim();
  }

  /** Gives clusters back that no request can use any more. */
  async #reclaim(): Promise<void> {
    if (this.#freedOnDisk.length === 0) return;
    const oldest: number = this.#requests.values().next().value ?? Number.POSITIVE_INFINITY;
    const ready = this.#freedOnDisk.filter(({ beforeRequest }) => beforeRequest <= oldest);
    if (ready.length === 0) return;
    this.#freedOnDisk = this.#freedOnDisk.filter(({ beforeRequest }) => beforeRequest > oldest);
    const { refcounts } = this.#writing!;
    this.#compressed.forgetAll();
    for (const extent of mergeExtents(ready)) {
      for (let cluster = extent.first; cluster < extent.first + extent.count; cluster++) {
        this.#mapping.forget(cluster * this.#clusterBytes);
      }
      await this.#punchUnshared(extent);
      await refcounts.release([extent]);
    }
  }

  /** Gives the storage of clusters back to the host that only the freed entry counted on. */
  async #punchUnshared({ first, count }: Extent): Promise<void> {
    const { refcounts } = this.#writing!;
    let start = first;
    const punch = async (end: number): Promise<void> => {
      const stop = Math.min(end * this.#clusterBytes, this.#file.sizeBytes);
      if (start * this.#clusterBytes < stop)
        await this.#file.punch(start * this.#clusterBytes, stop - start * this.#clusterBytes);
    };
    for (let cluster = first; cluster < first + count; cluster++) {
      if ((await refcounts.count(cluster)) === 1) continue;
      await punch(cluster);
      start = cluster + 1;
    }
    await punch(first + count);
  }

  async resize(sizeBytes: number): Promise<void> {
    const { path } = this.#file;
    if (this.#writing === undefined) throw new DiskImageError(`${path}: cannot resize: it is open for reading only`);
    if (sizeBytes % 512 !== 0 || !Number.isSafeInteger(sizeBytes)) {
      throw new DiskImageError(`${path}: cannot resize to ${sizeBytes} bytes: expected a multiple of 512`);
    }
    if (sizeBytes < this.#sizeBytes) {
      throw new DiskImageError(
        `${path}: cannot shrink from ${this.#sizeBytes} to ${sizeBytes} bytes: qcow2 images only grow`,
      );
    }
    if (this.#header.snapshots > 0) throw new DiskImageError(`${path}: cannot resize: it has internal snapshots`);
    if (this.#damage !== undefined) throw this.#damage;
    const oldSize = this.#sizeBytes;
    const { refcounts, tables } = this.#writing;
    const grow = async (): Promise<void> => {
      // Requests go on meanwhile, and may change the L1 table just after a commit.
      for (;;) {
        await this.#commit();
        const grown = await growDisk(this.#file, this.#header.clusterBits, this.#mapping, refcounts, tables, sizeBytes);
        if (grown === undefined) continue;
        this.#free(grown.oldL1);
        break;
      }
      this.#sizeBytes = sizeBytes;
    };
    // In the place of a commit: none may run at the same time.
    await (this.#running = this.#running.then(grow, grow));
    const shownThrough = Math.min(sizeBytes, this.backing?.sizeBytes ?? 0);
    // What the old size hid of the backing file stays hidden.
    if (shownThrough > oldSize) await this.writeZeroes(oldSize, shownThrough - oldSize);
    await this.flush();
  }

  async close(): Promise<void> {
    try {
      if (this.#writing !== undefined) {
        await this.flush();
        // Counts that went down after the last commit, and what those freed.
        for (let round = 0; round < 3 && (this.#freed.length > 0 || this.#writing.refcounts.hasChanges); round++) {
          await this.flush();
        }
      }
    } finally {
      await this.backing?.close();
      await this.#dataFile?.close();
      await this.#file.close();
    }
  }
}

const NO_TABLES: ClusterSet = new (class {
  add(): boolean {
    return true;
  }
  has(): boolean {
    return false;
  }
  delete(): void {}
})() as unknown as ClusterSet;

/** Does a cluster of this kind change when it is dropped? */
function needsDrop(kind: Run['kind'], holesToo: boolean): boolean {
  return kind === 'data' || kind === 'compressed' || (kind === 'hole' && holesToo);
}

/** Adds a task that is awaited later, by `settle`: if it fails before that, nobody is startled. */
function start(tasks: Promise<void>[], task: Promise<void>): void {
  task.catch(() => {});
  tasks.push(task);
}

/** Waits for all of them, calls `done`, then fails with the first failure. */
async function settle(tasks: readonly Promise<void>[], done: () => void): Promise<void> {
  if (tasks.length === 1) {
    await tasks[0]!.finally(done);
    return;
  }
  const results = await Promise.allSettled(tasks);
  done();
  for (const result of results) if (result.status === 'rejected') throw result.reason;
}

/** Neighbours become one, in any order; extents that are named twice stay twice. */
function mergeExtents(extents: readonly Extent[]): Extent[] {
  const sorted = [...extents].sort((a, b) => a.first - b.first);
  const merged: { first: number; count: number }[] = [];
  for (const { first, count } of sorted) {
    const last = merged.at(-1);
    if (last !== undefined && last.first + last.count === first) last.count += count;
    else merged.push({ first, count });
  }
  return merged;
}

/** Clears the autoclear bits that we do not keep true. */
export async function clearAutoclear(file: BlockFile, header: Qcow2Header): Promise<void> {
  const kept = header.autoclear & AUTOCLEAR.RAW_EXTERNAL_DATA;
  if (header.version < 3 || (kept === header.autoclear && !header.hasUnknownAutoclear)) return;
  await file.write(HEADER.autoclear_features, [uint64(kept)]);
  await file.flush();
}
