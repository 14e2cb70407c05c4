import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { hostCalls } from './libc.ts';

test('the mapping of a guest`s memory is marked for huge pages, and no other is split for it', (context) => {
  const read = (): string => (process.platform === 'linux' ? readFileSync('/proc/self/smaps', 'latin1') : '');
  const calls = hostCalls();
  if (calls === null) return context.skip('no koffi here');
  try {
    readFileSync('/sys/kernel/mm/transparent_hugepage/enabled');
  } catch (error) {
    return context.skip(`no huge pages here: ${error instanceof Error ? error.message.split('\n')[0] : error}`);
  }
  const marked = (): number => read().match(/^VmFlags:.* hg\b/gm)?.length ?? 0;
  const atFirst = marked();
  const memory = new WebAssembly.Memory({ initial: 1024, maximum: 1024, shared: true });
  calls.askForHugePages(new Uint8Array(memory.buffer));
  expect(marked()).toBe(atFirst + 1);
});
