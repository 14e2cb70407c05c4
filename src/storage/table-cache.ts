/**
 * Tables of one size each (qcow2's L2 tables and refcount blocks, vhd's sector bitmaps), a bounded number of them in memory.
 *
 * A table that was changed stays until it was written; the others go when room is needed, the longest unused first.
 * Whoever changes a table must have got it by `get` in the same turn of the event loop: after an `await` it may be gone.
 */
import type { BlockFile } from './block-file.ts';

export interface Table {
  /** Where it lies in the file. */
  readonly offset: number;
  readonly bytes: Uint8Array;
  readonly view: DataView;
  /** The changed bytes; none if from >= to. */
  dirtyFrom: number;
  dirtyTo: number;
  /** Being written: its bytes on disk are in doubt, so it must stay. */
  isBeingWritten: boolean;
  lastUsed: number;
}

/** Changed bytes of a table, copied, on their way to the file. */
export interface DirtySpan {
  readonly table: Table;
  readonly from: number;
  readonly bytes: Uint8Array;
}

/** A table on its way into memory. It is stale if its place in the file got another use meanwhile. */
interface Load {
  done: Promise<void>;
  isStale: boolean;
}

/** Writes are whole sectors, so that a torn one leaves whole entries. */
const SECTOR = 512;

export class TableCache {
  readonly #file: BlockFile;
  readonly #tableBytes: number;
  readonly #tablesMax: number;
  readonly #tables = new Map<number, Table>();
  readonly #loads = new Map<number, Load>();
  #clock = 0;
  #dirtyCount = 0;

  constructor(file: BlockFile, tableBytes: number, limitBytes: number) {
    this.#file = file;
    this.#tableBytes = tableBytes;
    this.#tablesMax = Math.max(8, Math.floor(limitBytes / tableBytes));
  }

  /** So many tables wait to be written that room for others runs short. */
  get isFullOfChanges(): boolean {
    return this.#dirtyCount * 2 > this.#tablesMax;
  }

  get hasChanges(): boolean {
    return this.#dirtyCount > 0;
  }

  get(offset: number): Table | undefined {
    const table = this.#tables.get(offset);
    if (table !== undefined) table.lastUsed = ++this.#clock;
    return table;
  }

  /** Brings the table into memory; `get` has it then, in this turn. */
  async load(offset: number): Promise<void> {
    let load = this.#loads.get(offset);
    if (load === undefined) {
      load = { done: Promise.resolve(), isStale: false };
      this.#loads.set(offset, load);
      load.done = this.#read(offset, load);
    }
    await load.done;
  }

  async #read(offset: number, load: Load): Promise<void> {
    const bytes = new Uint8Array(this.#tableBytes);
    try {
      await this.#file.read(offset, [bytes]);
    } finally {
      if (this.#loads.get(offset) === load) this.#loads.delete(offset);
    }
    if (!load.isStale) this.#insert(offset, bytes);
  }

  /** A new table at `offset`, all of it changed. */
  add(offset: number, content?: Uint8Array): Table {
    this.drop(offset);
    const table = this.#insert(offset, content?.slice() ?? new Uint8Array(this.#tableBytes));
    this.markDirty(table, 0, this.#tableBytes);
    return table;
  }

  /** Forgets the table and its changes: its place in the file is free. */
  drop(offset: number): void {
    const load = this.#loads.get(offset);
    if (load !== undefined) {
      load.isStale = true;
      this.#loads.delete(offset);
    }
    const table = this.#tables.get(offset);
    if (table === undefined) return;
    if (table.dirtyFrom < table.dirtyTo) this.#dirtyCount--;
    this.#tables.delete(offset);
  }

  markDirty(table: Table, from: number, to: number): void {
    if (table.dirtyFrom >= table.dirtyTo) {
      this.#dirtyCount++;
      table.dirtyFrom = from;
      table.dirtyTo = to;
    } else {
      table.dirtyFrom = Math.min(table.dirtyFrom, from);
      table.dirtyTo = Math.max(table.dirtyTo, to);
    }
  }

  /** Copies of all changes. They count as written from now on; `write` and `settle` follow. */
  takeChanges(): DirtySpan[] {
    const spans: DirtySpan[] = [];
    if (this.#dirtyCount === 0) return spans;
    for (const table of this.#tables.values()) {
      if (table.dirtyFrom >= table.dirtyTo) continue;
      const from = table.dirtyFrom - (table.dirtyFrom % SECTOR);
      const to = Math.ceil(table.dirtyTo / SECTOR) * SECTOR;
      spans.push({ table, from, bytes: table.bytes.slice(from, to) });
      table.dirtyFrom = table.dirtyTo = 0;
      table.isBeingWritten = true;
    }
    this.#dirtyCount = 0;
    return spans;
  }

  async write(spans: readonly DirtySpan[]): Promise<void> {
    await Promise.all(spans.map(({ table, from, bytes }) => this.#file.write(table.offset + from, [bytes])));
  }

  /** The end of what `takeChanges` began. What was not written is changed still. */
  settle(spans: readonly DirtySpan[], isWritten: boolean): void {
    for (const { table, from, bytes } of spans) {
      table.isBeingWritten = false;
      if (!isWritten && this.#tables.get(table.offset) === table) this.markDirty(table, from, from + bytes.length);
    }
  }

  #insert(offset: number, bytes: Uint8Array): Table {
    while (this.#tables.size >= this.#tablesMax) {
      let oldest: Table | undefined;
      for (const table of this.#tables.values()) {
        if (table.dirtyFrom < table.dirtyTo || table.isBeingWritten) continue;
        if (oldest === undefined || table.lastUsed < oldest.lastUsed) oldest = table;
      }
      if (oldest === undefined) break;
      this.#tables.delete(oldest.offset);
    }
    const table: Table = {
      offset,
      bytes,
      view: new DataView(bytes.buffer),
      dirtyFrom: 0,
      dirtyTo: 0,
      isBeingWritten: false,
      lastUsed: ++this.#clock,
    };
    this.#tables.set(offset, table);
    return table;
  }
}
