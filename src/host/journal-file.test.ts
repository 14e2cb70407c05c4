import {
  appendFileSync,
  existsSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeEach, describe, expect, it } from 'vitest';
import { createStore, type Store } from '../xenstore/store.ts';
import { JournalFile } from './journal-file.ts';

const folder = mkdtempSync(join(tmpdir(), 'domus-journal-'));
afterAll(() => rmSync(folder, { recursive: true }));

let path = '';
let count = 0;
const lines: string[] = [];
beforeEach(() => {
  path = join(folder, `journal-${count++}`);
  lines.length = 0;
});

const log = (line: string): void => void lines.push(line);

/** As domusd opens it. */
function open(compactBytes?: number): { store: Store; file: JournalFile } {
  const file = new JournalFile({ path, log, ...(compactBytes === undefined ? {} : { compactBytes }) });
  const store = createStore({ records: file.records });
  file.start(() => store.records());
  store.journal = file;
  return { store, file };
}

const read = (store: Store, node: string): string => new TextDecoder().decode(store.read(node) ?? undefined);

describe('the journal', () => {
  it('has every change, without being closed', () => {
    const { store } = open();
    for (let i = 0; i < 50; i++) store.write(`/a/${i}`, `value ${i}`);
    store.remove('/a/7');
    // Nothing told the first file to finish: this is what a killed process leaves.
    const again = open().store;
    expect(again.list('/a')).toEqual(store.list('/a'));
    expect(read(again, '/a/49')).toBe('value 49');
    expect(lines).toEqual([]);
  });

  it('drops a torn tail at any byte, with a line in the log, and loses nothing before it', () => {
    const { store, file } = open();
    store.write('/first', 'kept');
    const sizeBefore = statSync(path).size;
    store.write('/second', 'torn');
    file.close();
    const whole = readFileSync(path);
    for (let size = sizeBefore + 1; size < whole.length; size++) {
      writeFileSync(path, whole.subarray(0, size));
      lines.length = 0;
      const { store: again, file: opened } = open();
      opened.close();
      expect(read(again, '/first')).toBe('kept');
      expect(again.read('/second')).toBe(null);
      expect(lines.join('\n')).toMatch(`the last ${size - sizeBefore} bytes, from byte ${sizeBefore} on`);
    }
    // And cut where a record ends it is whole.
    lines.length = 0;
    writeFileSync(path, whole);
    expect(read(open().store, '/second')).toBe('torn');
    expect(lines).toEqual([]);
  });

  it('drops a tail of zeroes, as a power failure leaves it', () => {
    const { store } = open();
    store.write('/first', 'kept');
    appendFileSync(path, Buffer.alloc(5000));
    expect(read(open().store, '/first')).toBe('kept');
    expect(lines.join('\n')).toMatch('dropped');
  });

  it('names file and byte when any byte in the middle is damaged, and leaves the file alone', () => {
    const { store, file } = open();
    const start = statSync(path).size;
    store.write('/first', 'one');
    const firstEnd = statSync(path).size;
    store.write('/second', 'two');
    file.close();
    const whole = readFileSync(path);
    for (let at = 0; at < firstEnd; at++) {
      const damaged = Buffer.from(whole);
      damaged[at] ^= 0x55;
      writeFileSync(path, damaged);
      const where = at < 16 ? 0 : at >= start ? start : '\\d+';
      expect(() => open(), `byte ${at}`).toThrow(new RegExp(`^${path}: damaged at byte ${where}: `));
      expect(readFileSync(path).equals(damaged)).toBe(true);
    }
    expect(lines).toEqual([]);
  });

  it('says so when records are missing in the middle, and when the file began with more than it has', () => {
    const { store, file } = open();
    const start = statSync(path).size;
    store.write('/first', 'one');
    const firstEnd = statSync(path).size;
    store.write('/second', 'two');
    file.close();
    const whole = readFileSync(path);
    writeFileSync(path, Buffer.concat([whole.subarray(0, start), whole.subarray(firstEnd)]));
    expect(() => open()).toThrow(`damaged at byte ${start}`);
    writeFileSync(path, whole);
    truncateSync(path, start - 1);
    expect(() => open()).toThrow(/that the file began with is damaged/);
  });

  it('stays small under changes that replace each other, and is whole at every step', () => {
    const { store } = open(4096);
    const sizes: number[] = [];
    for (let i = 0; i < 500; i++) {
      store.write('/same', `${i} ${'x'.repeat(100)}`);
      sizes.push(statSync(path).size);
      if (i % 50 === 0)
        expect(read(createStore({ records: new JournalFile({ path, log }).records }), '/same')).toMatch(`${i} `);
    }
    expect(Math.max(...sizes)).toBeLessThan(5000);
    expect(sizes.some((size, i) => i > 0 && size < sizes[i - 1])).toBe(true);
  });

  it('is not disturbed by what was left of a replacement that was cut off', () => {
    const { store, file } = open();
    store.write('/a', 'one');
    file.close();
    writeFileSync(`${path}.new`, readFileSync(path).subarray(0, 100));
    const again = open();
    expect(read(again.store, '/a')).toBe('one');
    expect(existsSync(`${path}.new`)).toBe(false);
  });

  it('refuses what cannot be written, and what was there before stays', () => {
    const { store, file } = open();
    store.write('/a', 'one');
    file.close();
    expect(() => store.write('/a', 'two')).toThrow('EIO');
    expect(read(store, '/a')).toBe('one');
    expect(read(open().store, '/a')).toBe('one');
  });
});
