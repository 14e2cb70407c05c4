import {
  appendFileSync,
  chmodSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { type RegionCode, RegionLibrary, type RegionStore } from '../engine/wasm/region-library.ts';
import { openRegionFile, regionFilePath } from './region-file.ts';

let folder = '';
let path = '';
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'domus-regions-'));
  path = join(folder, 'translated', 'version');
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const region = (entry: number, bytes: number): RegionCode => ({
  entry,
  user: false,
  instructions: 1,
  pieces: Int32Array.of(entry, entry + bytes),
  starts: Int32Array.of(entry),
  code: new Uint8Array(bytes).fill(entry),
});

const opened = (): RegionStore => {
  const store = openRegionFile(path);
  if (store === null) throw new Error('the file cannot be opened');
  return store;
};

/** Adds one region in a chunk of its own. */
function add(key: number, bodyBytes = 100): void {
  const library = new RegionLibrary(opened());
  library.add(key, region(key, 10), new Uint8Array(bodyBytes).fill(key));
  library.flush();
}

function bodyOf(key: number): Uint8Array | null {
  const library = new RegionLibrary(opened());
  const number = library.find(key, ({ entry }) => entry === key);
  if (number < 0) return null;
  const { chunk, place } = library.placeOf(number);
  return library.bodies(chunk)?.[place] ?? null;
}

const age = (seconds: number): void => utimesSync(path, Date.now() / 1000 - seconds, Date.now() / 1000 - seconds);

it('has what others have added, in a file that is the user’s alone', () => {
  add(1);
  add(2);
  expect(bodyOf(1)).toEqual(new Uint8Array(100).fill(1));
  expect(bodyOf(2)).toEqual(new Uint8Array(100).fill(2));
  expect(bodyOf(3)).toBeNull();
  expect(statSync(path).mode & 0o777).toBe(0o600);
});

it('has nothing that was added after it was opened', () => {
  const library = new RegionLibrary(opened());
  add(1);
  expect(library.find(1, () => true)).toBe(-1);
});

it('does not use a chunk with a changed byte, and uses the others', () => {
  add(1);
  const first = statSync(path).size;
  add(2);
  const bytes = readFileSync(path);
  bytes[first - 1] ^= 1;
  writeFileSync(path, bytes);
  expect(bodyOf(1)).toBeNull();
  expect(bodyOf(2)).toEqual(new Uint8Array(100).fill(2));
});

it('cuts away what is no chunk once nobody can be writing it', () => {
  add(1);
  const { size } = statSync(path);
  appendFileSync(path, 'no chunk at all, but long enough to be the head of one');
  opened();
  expect(statSync(path).size).toBeGreaterThan(size);
  age(120);
  opened();
  expect(statSync(path).size).toBe(size);
  add(2);
  expect(bodyOf(2)).not.toBeNull();
});

it('begins anew in a file of something else', () => {
  add(1);
  writeFileSync(path, 'a shopping list'.repeat(100));
  age(120);
  expect(bodyOf(1)).toBeNull();
  add(2);
  expect(bodyOf(2)).not.toBeNull();
});

it('survives any one byte that is wrong', () => {
  add(1);
  const sound = readFileSync(path);
  for (let i = 0; i < sound.length; i++) {
    const bytes = Buffer.from(sound);
    bytes[i] ^= 0x81;
    writeFileSync(path, bytes);
    expect(bodyOf(1), `byte ${i}`).toBeNull();
  }
});

it.skipIf(process.platform === 'win32')('is not used where others can write it, nor through a link', () => {
  add(1);
  chmodSync(path, 0o620);
  expect(openRegionFile(path)).toBeNull();
  chmodSync(path, 0o600);
  const link = join(folder, 'translated', 'link');
  symlinkSync(path, link);
  expect(openRegionFile(link)).toBeNull();
});

it('keeps the younger half of what has grown too large', () => {
  for (let key = 1; key <= 14; key++) add(key, 2_000_000);
  expect(statSync(path).size).toBeLessThan(16 << 20);
  expect(bodyOf(1)).toBeNull();
  expect(bodyOf(14)).not.toBeNull();
  expect(bodyOf(13)).toEqual(new Uint8Array(2_000_000).fill(13));
});

it('lies in the cache, in a folder that is asked for, or nowhere', () => {
  expect(regionFilePath({ DOMUS_CACHE_DIR: '/cache' })).toMatch(/^\/cache\/translated\/[0-9a-f]{16}$/);
  expect(regionFilePath({ DOMUS_REGION_CACHE: '/elsewhere' })).toMatch(/^\/elsewhere\/[0-9a-f]{16}$/);
  expect(regionFilePath({ DOMUS_REGION_CACHE: 'off' })).toBeNull();
});
