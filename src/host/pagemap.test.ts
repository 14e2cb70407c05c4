import { expect, test } from 'vitest';
import { PAGE_SIZE } from '../machine/memory.ts';
import { type HostCalls, hostCalls } from './libc.ts';
import { anonymousPages } from './pagemap.ts';

test('pages that were written to are told, by a scan and one by one', (context) => {
  const calls = hostCalls();
  if (calls === null) return context.skip('no koffi, or not Linux');
  const PAGES = 8192;
  const { buffer } = new WebAssembly.Memory({ initial: PAGES / 16, maximum: PAGES / 16, shared: true });
  const bytes = new Uint8Array(buffer);
  const fd = calls.memfdCreate('pages', PAGES * PAGE_SIZE);
  calls.mapAt(calls.addressOf(bytes), PAGES * PAGE_SIZE, fd, 0, 'copy');
  const written: number[] = [];
  for (let page = 3; page < PAGES; page += page % 7 === 0 ? 1 : 3) written.push(page);
  for (const page of written) bytes[page * PAGE_SIZE] = 1;
  // What is only read is the file's.
  expect(bytes[(PAGES - 1) * PAGE_SIZE] + bytes[0]).toBeLessThan(2);
  const old: HostCalls = { ...calls, ioctl: () => 25 };
  for (const some of [calls, old]) expect(anonymousPages(some, calls.addressOf(bytes), PAGES)).toEqual(written);
});
