/**
 * VHD images: fixed, dynamic and differencing.
 *
 * A block that is first written to goes behind the others, where the footer was; the footer moves behind it, and its copy
 * at the start of the file counts while it is on its way. Entries of the block allocation table and bits of the sector
 * bitmaps stay in memory until a flush, which writes them when the data is durable. So a crash loses at most what was not
 * flushed, and a block that nothing refers to.
 *
 * A dynamic disk's new blocks have all bits set and read as zeroes, as QEMU writes them, which does not read the bits.
 * Disks grow (resize.ts); the footer says so last.
 */
import { type BlockFile, DiskImageError, lengthOf, sliceBuffers, zeroRange } from '../block-file.ts';
import type { DiskImage } from '../disk-image.ts';
import { Mutex } from '../mutex.ts';
import { checkRange } from '../range.ts';
import { RawImage } from '../raw.ts';
import { type Table, TableCache } from '../table-cache.ts';
import { DISK_TYPE, FOOTER, readFooter, readVhdHeader, UNALLOCATED, type VhdFooter, type VhdHeader } from './format.ts';
import { checkGrowth, grownFooter, grownTable, renameTable } from './resize.ts';

const SECTOR = 512;
const BITMAP_CACHE_BYTES = 1 << 20;
const ZEROES = new Uint8Array(1 << 16);

export interface VhdOptions {
  /** Opens the parent by the first of these names that is there. */
  openParent(names: readonly string[]): Promise<DiskImage>;
}

/** Opens the image in `file`, which is closed with it. @throws DiskImageError; `file` stays open then */
export async function openVhd(
  file: BlockFile,
  options: VhdOptions,
): Promise<DiskImage & { readonly uniqueId: string }> {
  const footer = await readFooter(file);
  switch (footer.type) {
    case DISK_TYPE.FIXED:
      if (footer.sizeBytes > file.sizeBytes - FOOTER.SIZE) {
        throw new DiskImageError(
          `${file.path}: a fixed disk of ${footer.sizeBytes} bytes in a file of ${file.sizeBytes} bytes`,
        );
      }
      return new FixedVhd(file, footer);
    case DISK_TYPE.DYNAMIC:
    case DISK_TYPE.DIFFERENCING:
      break;
    default:
      throw new DiskImageError(
        `${file.path}: vhd type ${footer.type}, expected 2 (fixed), 3 (dynamic) or 4 (differencing)`,
      );
  }
  const header = await readVhdHeader(file, footer);
  const table = await readTable(file, footer, header);
  let parent: DiskImage | undefined;
  if (footer.type === DISK_TYPE.DIFFERENCING) {
    if (header.parentNames.length === 0)
      throw new DiskImageError(`${file.path}: a differencing disk that names no parent`);
    parent = await options.openParent(header.parentNames);
    const parentId = parent instanceof FixedVhd || parent instanceof DynamicVhd ? parent.uniqueId : undefined;
    if (parentId !== undefined && parentId !== header.parentUniqueId) {
      await parent.close();
      throw new DiskImageError(
        `${file.path}: its parent should be the disk ${header.parentUniqueId}, but ${header.parentNames[0]} is ${parentId}`,
      );
    }
  }
  return new DynamicVhd(file, footer, header, table, parent);
}

/** A raw image with a footer behind it. */
class FixedVhd extends RawImage {
  override readonly format = 'vhd';
  readonly uniqueId: string;
  readonly #file: BlockFile;
  #footer: VhdFooter;

  constructor(file: BlockFile, footer: VhdFooter) {
    super(file, footer.sizeBytes);
    this.uniqueId = footer.uniqueId;
    this.#file = file;
    this.#footer = footer;
  }

  /** The footer says how large it is. */
  override async measure(): Promise<void> {}

  override async resize(sizeBytes: number): Promise<void> {
    checkGrowth(this.#file, this.sizeBytes, sizeBytes);
    const grown = grownFooter(this.#footer, sizeBytes);
    // The footer is what the file ends with, wherever the disk does.
    await this.#file.write(Math.max(sizeBytes, this.#file.sizeBytes - SECTOR), [grown.bytes]);
    await this.#file.flush();
    // Where the old footer was, if it was in the way.
    await zeroRange(this.#file, this.sizeBytes, sizeBytes - this.sizeBytes);
    await this.#file.flush();
    this.#footer = grown;
    this.setSize(sizeBytes);
  }
}

/** Offsets of the blocks in sectors. */
async function readTable(file: BlockFile, footer: VhdFooter, header: VhdHeader): Promise<Uint32Array> {
  const { tableOffset, tableEntries, blockBytes } = header;
  const bytes = new Uint8Array(tableEntries * 4);
  await file.read(tableOffset, [bytes]);
  const view = new DataView(bytes.buffer);
  const table = new Uint32Array(tableEntries);
  for (let block = 0; block < tableEntries; block++) table[block] = view.getUint32(block * 4);
  // No block may lie on another one, or on the image's own structures: a guest's data would change them.
  const bytesEach = bitmapBytes(blockBytes) + blockBytes;
  const areas = [
    { offset: 0, lengthBytes: FOOTER.SIZE },
    { offset: footer.dataOffset, lengthBytes: 1024 },
    { offset: tableOffset, lengthBytes: tableEntries * 4 },
    ...header.locatorAreas,
  ];
  const used = table.filter((entry) => entry !== UNALLOCATED).sort();
  let end = 0;
  for (const entry of used) {
    const offset = entry * SECTOR;
    const inTheWay = areas.find((area) => offset < area.offset + area.lengthBytes && area.offset < offset + bytesEach);
    if (offset < end || inTheWay !== undefined) {
      throw new DiskImageError(`${file.path}: the image is damaged: a block at ${offset}, where something else is`);
    }
    end = offset + bytesEach;
    if (end > file.sizeBytes) {
      throw new DiskImageError(
        `${file.path}: the image is damaged: a block at ${offset}, but the file has ${file.sizeBytes} bytes`,
      );
    }
  }
  return table;
}

function bitmapBytes(blockBytes: number): number {
  return Math.ceil(blockBytes / SECTOR / 8 / SECTOR) * SECTOR;
}

/** A piece of the disk that is all there, or all not. */
interface Run {
  readonly lengthBytes: number;
  readonly hostOffset: number | undefined;
}

class DynamicVhd implements DiskImage {
  readonly format = 'vhd';
  readonly uniqueId: string;
  readonly #file: BlockFile;
  #footer: VhdFooter;
  #tableOffset: number;
  readonly #blockBytes: number;
  readonly #bitmapBytes: number;
  #table: Uint32Array;
  readonly #bitmaps: TableCache;
  readonly #parent: DiskImage | undefined;
  readonly #allocation = new Mutex();
  readonly #changedEntries = new Set<number>();
  #flushes: Promise<void> = Promise.resolve();
  /** Where the next block goes. */
  #end: number;

  constructor(
    file: BlockFile,
    footer: VhdFooter,
    header: VhdHeader,
    table: Uint32Array,
    parent: DiskImage | undefined,
  ) {
    this.#file = file;
    this.#footer = footer;
    this.uniqueId = footer.uniqueId;
    this.#tableOffset = header.tableOffset;
    this.#blockBytes = header.blockBytes;
    this.#bitmapBytes = bitmapBytes(header.blockBytes);
    this.#table = table;
    this.#bitmaps = new TableCache(file, this.#bitmapBytes, BITMAP_CACHE_BYTES);
    this.#parent = parent;
    let end = Math.max(footer.dataOffset + 1024, header.tableOffset + header.tableEntries * 4);
    for (const { offset, lengthBytes } of header.locatorAreas) end = Math.max(end, offset + lengthBytes);
    for (const entry of table) {
      if (entry !== UNALLOCATED) end = Math.max(end, entry * SECTOR + this.#bitmapBytes + this.#blockBytes);
    }
    this.#end = Math.ceil(end / SECTOR) * SECTOR;
  }

  get sizeBytes(): number {
    return this.#footer.sizeBytes;
  }

  get readOnly(): boolean {
    return this.#file.readOnly;
  }

  async read(offset: number, buffers: readonly Uint8Array[]): Promise<void> {
    const lengthBytes = lengthOf(buffers);
    checkRange(this.#file.path, this, 'read', offset, lengthBytes);
    for (let done = 0; done < lengthBytes; ) {
      const at = offset + done;
      const run = await this.#lookup(at, lengthBytes - done);
      const part = sliceBuffers(buffers, done, done + run.lengthBytes);
      if (run.hostOffset !== undefined) await this.#file.read(run.hostOffset, part);
      else await this.#readParent(at, part);
      done += run.lengthBytes;
    }
  }

  async #readParent(offset: number, buffers: readonly Uint8Array[]): Promise<void> {
    const lengthBytes = lengthOf(buffers);
    const there = Math.max(0, Math.min(lengthBytes, (this.#parent?.sizeBytes ?? 0) - offset));
    for (const buffer of sliceBuffers(buffers, there, lengthBytes)) buffer.fill(0);
    if (there > 0) await this.#parent!.read(offset, sliceBuffers(buffers, 0, there));
  }

  /** What lies at `offset`, and how many of the next bytes are alike. */
  async #lookup(offset: number, lengthMax: number): Promise<Run> {
    const block = Math.floor(offset / this.#blockBytes);
    const within = offset - block * this.#blockBytes;
    const lengthBytes = Math.min(lengthMax, this.#blockBytes - within);
    const entry = this.#table[block]!;
    if (entry === UNALLOCATED) return { lengthBytes, hostOffset: undefined };
    return await this.#withBitmap(entry, (bitmap) => {
      const last = Math.floor((within + lengthBytes - 1) / SECTOR);
      let sector = Math.floor(within / SECTOR);
      const isThere = hasBit(bitmap.bytes, sector);
      while (sector <= last && hasBit(bitmap.bytes, sector) === isThere) sector++;
      return {
        lengthBytes: Math.min(lengthBytes, sector * SECTOR - within),
        hostOffset: isThere ? entry * SECTOR + this.#bitmapBytes + within : undefined,
      };
    });
  }

  async #withBitmap<T>(entry: number, use: (bitmap: Table) => T): Promise<T> {
    for (;;) {
      const bitmap = this.#bitmaps.get(entry * SECTOR);
      if (bitmap !== undefined) return use(bitmap);
      await this.#bitmaps.load(entry * SECTOR);
    }
  }

  async write(offset: number, buffers: readonly Uint8Array[]): Promise<void> {
    const lengthBytes = lengthOf(buffers);
    checkRange(this.#file.path, this, 'write', offset, lengthBytes);
    this.#checkSectors(offset, lengthBytes);
    if (this.#bitmaps.isFullOfChanges) await this.flush();
    for (let done = 0; done < lengthBytes; ) {
      const at = offset + done;
      const within = at % this.#blockBytes;
      const length = Math.min(lengthBytes - done, this.#blockBytes - within);
      const entry = await this.#place(Math.floor(at / this.#blockBytes));
      await this.#file.write(entry * SECTOR + this.#bitmapBytes + within, sliceBuffers(buffers, done, done + length));
      await this.#setBits(entry, within, length);
      done += length;
    }
  }

  #checkSectors(offset: number, lengthBytes: number): void {
    if (offset % SECTOR !== 0 || lengthBytes % SECTOR !== 0) {
      throw new DiskImageError(
        `${this.#file.path}: cannot write ${lengthBytes} bytes at ${offset}: expected whole sectors`,
      );
    }
  }

  async #setBits(entry: number, within: number, lengthBytes: number): Promise<void> {
    const first = within / SECTOR;
    const end = (within + lengthBytes) / SECTOR;
    await this.#withBitmap(entry, (bitmap) => {
      for (let sector = first; sector < end; sector++) {
        if (hasBit(bitmap.bytes, sector)) continue;
        bitmap.bytes[sector >> 3]! |= 0x80 >> (sector & 7);
        this.#bitmaps.markDirty(bitmap, sector >> 3, (sector >> 3) + 1);
      }
    });
  }

  /** The block's place in sectors; a new one if it has none. */
  async #place(block: number): Promise<number> {
    if (this.#table[block] !== UNALLOCATED) return this.#table[block]!;
    return await this.#allocation.run(async () => {
      if (this.#table[block] !== UNALLOCATED) return this.#table[block]!;
      const offset = this.#end;
      const end = offset + this.#bitmapBytes + this.#blockBytes;
      if (offset / SECTOR >= UNALLOCATED)
        throw new DiskImageError(`${this.#file.path}: is full: a vhd image has at most 2 TiB`);
      // Something may lie here: the footer, or a block that a crash left behind.
      const stale = Math.min(this.#file.sizeBytes, end);
      await this.#file.write(end, [this.#footer.bytes]);
      if (offset < stale) await zeroRange(this.#file, offset, stale - offset);
      const bitmap = new Uint8Array(this.#bitmapBytes).fill(this.#parent === undefined ? 0xff : 0);
      await this.#file.write(offset, [bitmap]);
      this.#end = end;
      this.#table[block] = offset / SECTOR;
      this.#changedEntries.add(block);
      return offset / SECTOR;
    });
  }

  flush(): Promise<void> {
    if (this.readOnly) return Promise.resolve();
    const run = (): Promise<void> => this.#commit();
    this.#flushes = this.#flushes.then(run, run);
    return this.#flushes;
  }

  async #commit(): Promise<void> {
    const entries = [...this.#changedEntries];
    this.#changedEntries.clear();
    const spans = this.#bitmaps.takeChanges();
    let isWritten = false;
    try {
      await this.#file.flush();
      if (entries.length > 0 || spans.length > 0) {
        await this.#bitmaps.write(spans);
        for (const block of entries) {
          const bytes = new Uint8Array(4);
          new DataView(bytes.buffer).setUint32(0, this.#table[block]!);
          await this.#file.write(this.#tableOffset + block * 4, [bytes]);
        }
        await this.#file.flush();
      }
      isWritten = true;
    } finally {
      this.#bitmaps.settle(spans, isWritten);
      if (!isWritten) for (const block of entries) this.#changedEntries.add(block);
    }
  }

  /** Gives the storage of a dynamic disk's blocks back to the host; a differencing disk keeps what it has. */
  async discard(offset: number, lengthBytes: number): Promise<void> {
    checkRange(this.#file.path, this, 'write', offset, lengthBytes);
    if (this.#parent !== undefined) return;
    await this.#eachRun(offset, lengthBytes, async (run) => {
      if (run.hostOffset !== undefined) await this.#file.punch(run.hostOffset, run.lengthBytes);
    });
  }

  async writeZeroes(offset: number, lengthBytes: number): Promise<void> {
    checkRange(this.#file.path, this, 'write', offset, lengthBytes);
    this.#checkSectors(offset, lengthBytes);
    await this.#eachRun(offset, lengthBytes, async (run, at) => {
      if (run.hostOffset !== undefined) return await zeroRange(this.#file, run.hostOffset, run.lengthBytes);
      for (let zeroed = 0; zeroed < run.lengthBytes; zeroed += ZEROES.length) {
        await this.write(at + zeroed, [ZEROES.subarray(0, Math.min(ZEROES.length, run.lengthBytes - zeroed))]);
      }
    });
  }

  /** Passes over what reads as zeroes because it has no place. */
  async #eachRun(offset: number, lengthBytes: number, use: (run: Run, at: number) => Promise<void>): Promise<void> {
    for (let done = 0; done < lengthBytes; ) {
      const at = offset + done;
      const block = Math.floor(at / this.#blockBytes);
      if (this.#table[block] === UNALLOCATED && this.#parent === undefined) {
        done += (block + 1) * this.#blockBytes - at;
        continue;
      }
      const run = await this.#lookup(at, lengthBytes - done);
      if (run.hostOffset !== undefined || this.#parent !== undefined) await use(run, at);
      done += run.lengthBytes;
    }
  }

  async resize(sizeBytes: number): Promise<void> {
    checkGrowth(this.#file, this.sizeBytes, sizeBytes);
    const oldSize = this.sizeBytes;
    // No block gets a place meanwhile, so all entries are on disk after the flush.
    await this.#allocation.run(async () => {
      const entries = Math.ceil(sizeBytes / this.#blockBytes);
      if (entries > this.#table.length) await this.#moveTable(entries);
      const grown = grownFooter(this.#footer, sizeBytes);
      // Behind the end, a crash may have left blocks and a footer.
      for (const offset of [Math.max(this.#end, this.#file.sizeBytes - SECTOR), 0]) {
        await this.#file.write(offset, [grown.bytes]);
        await this.#file.flush();
      }
      this.#footer = grown;
    });
    const shownThrough = Math.min(sizeBytes, this.#parent?.sizeBytes ?? 0);
    // What the old size hid of the parent stays hidden.
    if (shownThrough > oldSize) await this.writeZeroes(oldSize, shownThrough - oldSize);
    await this.flush();
  }

  async #moveTable(entries: number): Promise<void> {
    await this.flush();
    const { table, bytes } = grownTable(this.#table, entries);
    const offset = this.#end;
    await this.#file.write(offset + bytes.length, [this.#footer.bytes]);
    await this.#file.write(offset, [bytes]);
    await this.#file.flush();
    await renameTable(this.#file, this.#footer.dataOffset, offset, entries);
    await this.#file.flush();
    this.#table = table;
    this.#tableOffset = offset;
    this.#end = offset + bytes.length;
  }

  async close(): Promise<void> {
    try {
      await this.flush();
    } finally {
      await this.#parent?.close();
      await this.#file.close();
    }
  }
}

/** The first sector is the highest bit of the first byte. */
function hasBit(bitmap: Uint8Array, sector: number): boolean {
  return (bitmap[sector >> 3]! & (0x80 >> (sector & 7))) !== 0;
}
