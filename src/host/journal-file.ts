/**
 * A file of records that only grows, and is replaced by a shorter equal one from time to time.
 *
 * What `append` has accepted is in the file by write(2): it survives the end of this process, however sudden. It survives a
 * power failure only as far as the system had written it; the file is then cut at the first record that is not whole.
 *
 *   header   "DOMUSXS1", u32 records of state at the start, u32 CRC-32 of these 12 bytes
 *   record   u32 MAGIC, u32 length of payload, u32 number of the record, u32 CRC-32 of length, number and payload, payload
 *
 * All little-endian. Reading it back:
 * - what is not a whole record, and has no whole record behind it, is a torn tail: it was never acknowledged (or the power
 *   failed), is dropped, and a line in the log says so;
 * - what is not a whole record, but has one behind it, or stands in the state at the start, is damage: a JournalError names
 *   file and byte, and nothing is changed.
 *
 * Replacing it (`compact`): the state goes to a temporary file beside it, fsync, rename over it, fsync of the folder. So the
 * name always has one whole file. It is done when the file is opened and when it has grown to a multiple of the state.
 */
import {
  closeSync,
  existsSync,
  fstatSync,
  fsyncSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { dirname } from 'node:path';
import { crc32 } from 'node:zlib';
import type { XsErrorName } from '../abi/io/xs-wire.ts';
import type { Journal } from '../xenstore/store.ts';

/** The file cannot be read back. One line, with the file's name and the place. */
export class JournalError extends Error {
  override readonly name = 'JournalError';
}

export interface JournalFileOptions {
  readonly path: string;
  readonly log: (line: string) => void;
  /** The file is replaced once it is larger than this and than twice the state; for tests. */
  readonly compactBytes?: number;
}

const HEADER_BYTES = 16;
const RECORD_HEADER_BYTES = 16;
const FILE_MAGIC = Buffer.from('DOMUSXS1', 'latin1');
/** "XSR1" */
const RECORD_MAGIC = Buffer.from('XSR1', 'latin1');
const COMPACT_BYTES = 4 << 20;
const RECORD_BYTES_MAX = 1 << 30;

export class JournalFile implements Journal {
  readonly #path: string;
  readonly #log: (line: string) => void;
  readonly #compactBytes: number;
  #records: Uint8Array[];
  #state: () => Iterable<Uint8Array> = () => [];
  /** The file that is appended to; -1 before `start`. */
  #file = -1;
  #size = 0;
  #compactAt = Infinity;
  #nextNumber = 0;
  /** Why nothing can be appended any more. */
  #broken = false;

  /** Reads the file, if there is one, and changes nothing. Throws JournalError. */
  constructor({ path, log, compactBytes = COMPACT_BYTES }: JournalFileOptions) {
    this.#path = path;
    this.#log = log;
    this.#compactBytes = compactBytes;
    this.#records = existsSync(path) ? this.#read(readFileSync(path)) : [];
  }

  /** What was in the file. */
  get records(): readonly Uint8Array[] {
    return this.#records;
  }

  /** Takes up work: replaces the file by `state`, which is what its records come to, and again when it has grown. */
  start(state: () => Iterable<Uint8Array>): void {
    this.#state = state;
    this.#records = [];
    mkdirSync(dirname(this.#path), { recursive: true, mode: 0o700 });
    this.#compact();
  }

  append(record: Uint8Array): XsErrorName | null {
    if (this.#broken || this.#file < 0) return 'EIO';
    // Before this record: the store does what it says only afterwards.
    if (this.#size >= this.#compactAt) this.#tryCompact();
    const bytes = frame(record, this.#nextNumber);
    try {
      writeAll(this.#file, bytes, this.#size);
    } catch (error) {
      this.#log(`xenstored: ${this.#path}: a change was refused: ${messageOf(error)}`);
      this.#cutBack();
      return codeOf(error) === 'ENOSPC' || codeOf(error) === 'EDQUOT' ? 'ENOSPC' : 'EIO';
    }
    this.#size += bytes.length;
    this.#nextNumber = (this.#nextNumber + 1) >>> 0;
    return null;
  }

  close(): void {
    if (this.#file < 0) return;
    fsyncSync(this.#file);
    closeSync(this.#file);
    this.#file = -1;
  }

  /** Takes out what a failed write has left. */
  #cutBack(): void {
    try {
      ftruncateSync(this.#file, this.#size);
    } catch (error) {
      this.#broken = true;
      this.#log(`xenstored: ${this.#path}: no more changes until a restart: ${messageOf(error)}`);
    }
  }

  #tryCompact(): void {
    try {
      this.#compact();
    } catch (error) {
      this.#log(`xenstored: ${this.#path} could not be made shorter: ${messageOf(error)}`);
      this.#compactAt = this.#size * 2;
    }
  }

  #compact(): void {
    const records = [...this.#state()];
    const header = Buffer.alloc(HEADER_BYTES);
    FILE_MAGIC.copy(header);
    header.writeUInt32LE(records.length, 8);
    header.writeUInt32LE(crc32(header.subarray(0, 12)), 12);
    const bytes = Buffer.concat([header, ...records.map(frame)]);
    const temporary = `${this.#path}.new`;
    // What an earlier process left when it was killed here.
    rmSync(temporary, { force: true });
    const file = openSync(temporary, 'wx', 0o600);
    try {
      writeAll(file, bytes, 0);
      fsyncSync(file);
      renameSync(temporary, this.#path);
    } catch (error) {
      closeSync(file);
      rmSync(temporary, { force: true });
      throw error;
    }
    // From the rename on this is the file: what is appended to the old one would be lost.
    if (this.#file >= 0) closeSync(this.#file);
    this.#file = file;
    this.#size = bytes.length;
    this.#nextNumber = records.length;
    this.#compactAt = Math.max(this.#compactBytes, bytes.length * 2);
    syncFolder(dirname(this.#path));
  }

  /** The payloads of all whole records. */
  #read(bytes: Buffer): Uint8Array[] {
    if (bytes.length < HEADER_BYTES || !bytes.subarray(0, 8).equals(FILE_MAGIC))
      throw this.#damage(0, 'this is no journal of a store');
    if (crc32(bytes.subarray(0, 12)) !== bytes.readUInt32LE(12)) throw this.#damage(0, 'the header is damaged');
    const stateRecords = bytes.readUInt32LE(8);
    const payloads: Uint8Array[] = [];
    let at = HEADER_BYTES;
    while (at < bytes.length) {
      const payload = recordAt(bytes, at, payloads.length);
      if (payload === null) break;
      payloads.push(payload);
      at += RECORD_HEADER_BYTES + payload.length;
    }
    if (payloads.length < stateRecords)
      throw this.#damage(at, `record ${payloads.length} of the ${stateRecords} that the file began with is damaged`);
    if (at === bytes.length) return payloads;
    for (let later = bytes.indexOf(RECORD_MAGIC, at); later >= 0; later = bytes.indexOf(RECORD_MAGIC, later + 1)) {
      if (recordAt(bytes, later, null) !== null)
        throw this.#damage(at, `record ${payloads.length} is damaged, and there are whole ones behind it`);
    }
    this.#log(
      `xenstored: ${this.#path}: the last ${bytes.length - at} bytes, from byte ${at} on, are a change that was not written to its end: dropped`,
    );
    return payloads;
  }

  #damage(offset: number, what: string): JournalError {
    return new JournalError(`${this.#path}: damaged at byte ${offset}: ${what}`);
  }
}

function frame(payload: Uint8Array, number: number): Buffer {
  const bytes = Buffer.alloc(RECORD_HEADER_BYTES + payload.length);
  RECORD_MAGIC.copy(bytes);
  bytes.writeUInt32LE(payload.length, 4);
  bytes.writeUInt32LE(number >>> 0, 8);
  bytes.set(payload, RECORD_HEADER_BYTES);
  bytes.writeUInt32LE(checksum(bytes, 0, payload.length), 12);
  return bytes;
}

/** The payload of the whole record that starts at `at` (with this number, if one is given), or null. */
function recordAt(bytes: Buffer, at: number, number: number | null): Uint8Array | null {
  if (bytes.length - at < RECORD_HEADER_BYTES || bytes.compare(RECORD_MAGIC, 0, 4, at, at + 4) !== 0) return null;
  const length = bytes.readUInt32LE(at + 4);
  if (length > RECORD_BYTES_MAX || bytes.length - at - RECORD_HEADER_BYTES < length) return null;
  if (number !== null && bytes.readUInt32LE(at + 8) !== number >>> 0) return null;
  if (bytes.readUInt32LE(at + 12) !== checksum(bytes, at, length)) return null;
  return bytes.subarray(at + RECORD_HEADER_BYTES, at + RECORD_HEADER_BYTES + length);
}

/** Of length, number and payload of the record at `at`. */
function checksum(bytes: Buffer, at: number, length: number): number {
  const payload = bytes.subarray(at + RECORD_HEADER_BYTES, at + RECORD_HEADER_BYTES + length);
  return crc32(payload, crc32(bytes.subarray(at + 4, at + 12)));
}

function writeAll(file: number, bytes: Uint8Array, position: number): void {
  for (let written = 0; written < bytes.length; )
    written += writeSync(file, bytes, written, bytes.length - written, position + written);
}

/** Makes a rename last. Not every system lets a folder be opened. */
function syncFolder(path: string): void {
  let folder: number;
  try {
    folder = openSync(path, 'r');
  } catch {
    return;
  }
  try {
    if (fstatSync(folder).isDirectory()) fsyncSync(folder);
  } catch (error) {
    // EINVAL: a file system that has no such thing.
    if (codeOf(error) !== 'EINVAL' && codeOf(error) !== 'EPERM') throw error;
  } finally {
    closeSync(folder);
  }
}

function codeOf(error: unknown): string {
  return error instanceof Error && 'code' in error ? String(error.code) : '';
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
