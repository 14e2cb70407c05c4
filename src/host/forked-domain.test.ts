import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { FEATURE_WORDS } from '../hypervisor/cpu-features.ts';
import { createDomain } from '../hypervisor/domain.ts';
import { createMachineMemory } from '../machine/memory.ts';
import { PART_DESCRIPTION, PART_DOMAIN, SaveWriter } from '../toolstack/saved/save-file.ts';
import { encodeDescription } from '../toolstack/saved/saved-description.ts';
import { encodeDomain } from '../toolstack/saved/saved-state.ts';
import { monotonicNs } from './clock.ts';
import { ForkedDomain } from './forked-domain.ts';
import { PLAIN_CODEC } from './save-stream.ts';

const folder = mkdtempSync(join(tmpdir(), 'domus-forked-'));
afterAll(() => rmSync(folder, { recursive: true }));

const RING = { pfn: 1, port: 1 };
const FACTS = { engine: 'wasm', knownDomid: 3, store: RING, console: RING, cmdline: '' } as const;

/** What comes before the rest. */
async function writeState(path: string): Promise<void> {
  const chunks: Uint8Array[] = [];
  const writer = new SaveWriter(async (bytes) => void chunks.push(Uint8Array.from(bytes)), PLAIN_CODEC);
  const cpu = { xcr0: 0, words: new Array<number>(FEATURE_WORDS).fill(0) };
  const tsc = { khz: 2_000_000, ticks: 0 };
  await writer.start();
  const description = { domid: 3, name: 'a', config: '', cpu, tsc, nodes: [], watches: [], ...FACTS };
  await writer.part(PART_DESCRIPTION, encodeDescription(description));
  const domain = createDomain(createMachineMemory(64, 64), 3, 1, new Uint8Array(16));
  await writer.part(PART_DOMAIN, encodeDomain(domain, 0));
  writeFileSync(path, Buffer.concat(chunks));
}

test('the time that it took to copy a domain has passed for the copy, unless it is none that can be meant', async () => {
  const state = join(folder, 'state');
  await writeState(state);
  const outline = { shape: { ramPages: 64, maxPages: 64, vcpus: 1 }, tscKhz: 2_000_000, ...FACTS };
  const identity = { name: 'copy', uuid: new Uint8Array(16), macs: {}, generation: [1n, 2n] } as const;
  const lateNs = async (agoNs: number): Promise<number> => {
    const taken = { state, hasPages: false, memory: Promise.resolve(null), askedNs: 0, stoppedNs: 0, disks: {} };
    const take = async () => ({ ...taken, describedNs: monotonicNs() - agoNs });
    const request = { outline, domid: 3, ticket: '0', folder, identity };
    const copy = new ForkedDomain(request, { early: async () => null, take });
    await copy.arrive(Promise.resolve(), null);
    return copy.lateNs();
  };
  expect(await lateNs(5e6)).toBeGreaterThanOrEqual(5e6);
  expect(await lateNs(3e9)).toBe(0);
  expect(await lateNs(-3e9)).toBe(0);
});
