/**
 * The wasm engine's code that outlives domains, in the cache's folder: what was translated for one is translated ahead, at low priority
 * (translate-ahead.ts), for all that come later, down to machine code.
 *
 *     translated/VERSION/code       what domains begin with, replaced as a whole
 *     translated/VERSION/kept-*     records of what domains have translated, until they are in it
 *     translated/VERSION/lock       the process that makes it
 *
 * VERSION says by which sources, Node and options it was made. Only the user may write the folder; one that others can write is not used. What `code` has
 * is checked against its sum before V8 gets to see it.
 */

import { spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { crc32 } from 'node:zlib';
import type { KeptRegions } from '../engine/wasm/kept-regions.ts';
import type { TranslatedCode } from '../engine/wasm/wasm-domain.ts';
import { cacheRoot, temporaryBeside } from '../toolstack/cache.ts';
import { fromMachineCode } from './machine-code.ts';
import { formatProcessId, parseProcessId, processLives, thisProcess } from './process-id.ts';

const MAGIC = 'domus translated code 1\n';
const SUM_BYTES = 4;
const FILE_MAX = 256 << 20;
/** Folders of sources, of which those are removed that have not been used for longest. */
const VERSIONS_MAX = 6;
/** What domains have kept, above which no more is kept until it is in the code. */
const KEPT_MAX = 16;
/** And of one domain. */
const KEPT_BYTES_MAX = 16 << 20;
/** Node starts in less. */
const STARTING_MS = 20_000;
/** Regions that are worth the making of all of them anew, and of how many that are there one must be new. */
const NEW_MIN = 24;
const NEW_PART = 12;

/** What translated code depends on, beside the guest's. */
const SOURCES = ['../engine/wasm', '../engine/x86', '../machine'];

/** Parts of `code`: modules and their machine code, and the records of the regions in them. */
export interface CodeParts {
  readonly records: Uint8Array;
  /** Module and machine code of interpreter, kernel's and programs' regions. */
  readonly modules: readonly { readonly bytes: Uint8Array; readonly code: Uint8Array }[];
}

/** Options of Node that code may depend on: not those of its profiler. */
const v8Options = (): string[] => process.execArgv.filter((option) => !option.startsWith('--cpu-prof'));

/** Of the sources as they are on the disk, where the threads of vCPUs load them from. */
export function translatedVersion(): string {
  const hash = createHash('sha256');
  const extension = import.meta.url.endsWith('.ts') ? '.ts' : '.js';
  for (const folder of SOURCES) {
    const path = fileURLToPath(new URL(folder, import.meta.url));
    for (const name of readdirSync(path, { recursive: true, encoding: 'utf8' }).sort()) {
      if (!name.endsWith(extension) || name.endsWith(`.test${extension}`)) continue;
      hash.update(`${folder}/${name}\0`).update(readFileSync(join(path, name)));
    }
  }
  hash.update(`${process.version} ${process.arch} ${v8Options().join(' ')}`);
  return hash.digest('hex').slice(0, 16);
}

/**
 * The folder for the sources that run; null where nothing is kept: the folder is not the user's alone, or the variable DOMUS_TRANSLATED is `off`. Else
 * that names the folder above, if it is set.
 */
export function translatedFolder(env: NodeJS.ProcessEnv = process.env): string | null {
  const asked = env['DOMUS_TRANSLATED'];
  if (asked === 'off') return null;
  const folder = join(asked ? resolve(asked) : join(cacheRoot(env), 'translated'), translatedVersion());
  try {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    const { uid, mode } = statSync(folder);
    const isUsers = process.getuid === undefined || (uid === process.getuid() && (mode & 0o022) === 0);
    return isUsers ? folder : null;
  } catch (error) {
    if (isSystemError(error)) return null;
    throw error;
  }
}

const isSystemError = (error: unknown): boolean => error instanceof Error && 'syscall' in error;

const wordOf = (word: number): Uint8Array => new Uint8Array(Uint32Array.of(word).buffer);

export function writeCode(folder: string, { records, modules }: CodeParts): void {
  const parts = [records, ...modules.flatMap(({ bytes, code }) => [bytes, code])];
  const sizes = new Uint8Array(Uint32Array.from(parts, ({ length }) => length).buffer);
  if (parts.reduce((sum, { length }) => sum + length, MAGIC.length + SUM_BYTES + sizes.length) > FILE_MAX) return;
  let sum = 0;
  for (const part of [sizes, ...parts]) sum = crc32(part, sum);
  const path = join(folder, 'code');
  const temporary = temporaryBeside(path);
  writeFileSync(temporary, Buffer.concat([Buffer.from(MAGIC), wordOf(sum), sizes, ...parts]), { mode: 0o600 });
  renameSync(temporary, path);
}

/** Null: there is none, or it is damaged. */
export function readCode(folder: string): CodeParts | null {
  let file: Buffer;
  try {
    const path = join(folder, 'code');
    if (statSync(path).size > FILE_MAX) return null;
    file = readFileSync(path);
  } catch (error) {
    if (isSystemError(error)) return null;
    throw error;
  }
  const body = MAGIC.length + SUM_BYTES;
  const sizesBytes = 7 * 4;
  if (file.length < body + sizesBytes || file.toString('latin1', 0, MAGIC.length) !== MAGIC) return null;
  if (crc32(file.subarray(body)) !== file.readUInt32LE(MAGIC.length)) return null;
  let at = body + sizesBytes;
  const parts: Uint8Array[] = [];
  for (let i = 0; i < 7; i++) {
    const size = file.readUInt32LE(body + i * 4);
    parts.push(new Uint8Array(file.buffer, file.byteOffset + at, Math.min(size, file.length - at)));
    at += size;
  }
  if (at !== file.length) return null;
  const [records, ...rest] = parts;
  return { records, modules: [0, 2, 4].map((i) => ({ bytes: rest[i], code: rest[i + 1] })) };
}

/** Words of their own, whatever the place in a file. */
export function wordsOf(bytes: Uint8Array): Uint32Array<ArrayBuffer> {
  const words = new Uint32Array(bytes.length >>> 2);
  new Uint8Array(words.buffer).set(bytes.subarray(0, words.byteLength));
  return words;
}

/** What a domain of the wasm engine begins with; null = nothing, it translates what it runs. */
export function loadTranslated(): TranslatedCode | null {
  try {
    const folder = translatedFolder();
    const parts = folder === null ? null : readCode(folder);
    if (parts === null) return null;
    const [interpreter, kernel, user] = parts.modules.map(({ bytes, code }) => fromMachineCode(code, bytes));
    if (!interpreter || !kernel || !user) return null;
    return { interpreter, regions: { records: wordsOf(parts.records), kernel, user } };
  } catch {
    // No room for it, for one: a domain can do without.
    return null;
  }
}

/** Keeps what a domain's vCPUs have translated, if that is worth it. */
export function keepTranslated(kept: readonly KeptRegions[]): void {
  const isNew = ({ count, used }: KeptRegions): boolean => count >= Math.max(NEW_MIN, used.length / NEW_PART);
  if (!kept.some(isNew)) return;
  const folder = translatedFolder();
  if (folder === null) return;
  try {
    if (keptIn(folder).length < KEPT_MAX) write(folder, kept);
    if (!isBeingMade(folder)) startMaking(folder);
  } catch (error) {
    if (!isSystemError(error)) throw error;
  }
}

const keptIn = (folder: string): string[] => readdirSync(folder).filter((name) => /^kept-[0-9a-f]+$/.test(name));

function write(folder: string, kept: readonly KeptRegions[]): void {
  const used = new Uint8Array(Math.max(...kept.map((one) => one.used.length)));
  for (const one of kept) for (const [number, is] of one.used.entries()) used[number] |= is;
  const size = Uint32Array.of(used.length);
  const name = join(folder, `kept-${randomBytes(6).toString('hex')}`);
  const parts = [size, used, ...kept.map(({ made }) => made)].map((part) => new Uint8Array(part.buffer));
  if (parts.reduce((sum, part) => sum + part.length, 0) > KEPT_BYTES_MAX) return;
  const temporary = temporaryBeside(name);
  writeFileSync(temporary, Buffer.concat(parts), { mode: 0o600 });
  renameSync(temporary, name);
}

/** Another process is at it. */
export function isBeingMade(folder: string): boolean {
  try {
    const maker = parseProcessId(readFileSync(join(folder, 'lock'), 'utf8'));
    return maker !== null && processLives(maker);
  } catch (error) {
    if (isSystemError(error)) return false;
    throw error;
  }
}

function startMaking(folder: string): void {
  const program = import.meta.url.endsWith('.ts') ? './translate-ahead.ts' : './translate-ahead.js';
  const path = fileURLToPath(new URL(program, import.meta.url));
  const child = spawn(process.execPath, [...v8Options(), path, folder], { detached: true, stdio: 'ignore' });
  child.on('error', () => {});
  child.unref();
}

/** Takes what domains have kept out of a folder: who fails over it once would again. */
export function takeKept(folder: string): KeptRegions[] {
  return keptIn(folder).map((name) => {
    const path = join(folder, name);
    const bytes = statSync(path).size > KEPT_BYTES_MAX ? Buffer.alloc(0) : readFileSync(path);
    rmSync(path);
    const count = bytes.length < 4 ? 0 : Math.min(bytes.readUInt32LE(0), bytes.length - 4);
    return { count: 0, used: bytes.subarray(4, 4 + count), made: wordsOf(bytes.subarray(4 + count)) };
  });
}

/** Whether there is something to be made of. */
export const hasKept = (folder: string): boolean => keptIn(folder).length > 0;

/** This process makes the code of a folder from now on; false: another one does. */
export function lock(folder: string): boolean {
  const path = join(folder, 'lock');
  for (let i = 0; i < 2 && !isBeingMade(folder); i++) {
    try {
      writeFileSync(path, formatProcessId(thisProcess()), { flag: 'wx', mode: 0o600 });
      return true;
    } catch (error) {
      if (!isSystemError(error)) throw error;
      // Of one that was killed.
      if (!isBeingMade(folder)) rmSync(path, { force: true });
    }
  }
  return false;
}

export function unlock(folder: string): void {
  rmSync(join(folder, 'lock'), { force: true });
}

/** Resolves when nobody makes code in a folder, of whatever sources, any more: for those who measure. */
export async function untilMade(all: string): Promise<void> {
  const folders = existsSync(all) ? readdirSync(all).map((name) => join(all, name)) : [];
  for (const folder of folders) while (isBeingMade(folder) || isAwaited(folder)) await sleep(100);
}

/** Something has been kept so lately that its maker may not have begun. */
function isAwaited(folder: string): boolean {
  const kept = keptIn(folder).map((name) => statSync(join(folder, name), { throwIfNoEntry: false })?.mtimeMs ?? 0);
  return Math.max(0, ...kept) > Date.now() - STARTING_MS;
}

/** When code was made last in a folder, of whatever sources; 0 = never. */
export function translatedAt(all: string): number {
  const files = existsSync(all) ? readdirSync(all).map((name) => join(all, name, 'code')) : [];
  return Math.max(0, ...files.map((path) => statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0));
}

/** Says that a folder is used, and removes those of other sources that have not been for longest. */
export function forgetStale(folder: string): void {
  const now = new Date();
  utimesSync(folder, now, now);
  const all = dirname(folder);
  const ages = readdirSync(all)
    .filter((name) => /^[0-9a-f]{16}$/.test(name))
    .map((name) => ({ path: join(all, name), ms: statSync(join(all, name), { throwIfNoEntry: false })?.mtimeMs ?? 0 }))
    .sort((a, b) => b.ms - a.ms);
  for (const { path } of ages.slice(VERSIONS_MAX))
    if (!isBeingMade(path)) rmSync(path, { recursive: true, force: true });
}
