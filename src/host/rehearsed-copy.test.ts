import { expect, test } from 'vitest';
import { hostCalls } from './libc.ts';
import { rehearseCopy } from './rehearsed-copy.ts';

test('a copy is taken over in rehearsal as it will be', async (context) => {
  if (hostCalls() === null) return context.skip('no koffi, or not Linux');
  const ring = { pfn: 1, port: 1 };
  const shape = { ramPages: 4096, maxPages: 4096, vcpus: 2 };
  const facts = { engine: 'wasm', knownDomid: 3, tscKhz: 2_000_000, store: ring, console: ring, cmdline: 'a' } as const;
  const identity = { name: 'copy', uuid: new Uint8Array(16), macs: {}, generation: [1n, 2n] } as const;
  const nodes = [['/local/domain/5', '', ['n5']]] as const;
  const rehearsed = rehearseCopy({ outline: { shape, ...facts }, domid: 5, ticket: '0', folder: '', identity }, nodes);
  // What it comes to is thrown away; what is wrong is not.
  await expect(rehearsed).resolves.toBe(true);
});
