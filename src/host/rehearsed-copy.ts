/**
 * What a copy's process does while the domain that it is to be a copy of still runs: it takes over a small domain of its own making, by the way by
 * which the copy comes. Then JavaScript has compiled that way: 20 ms and more for which the copy would stand still otherwise. The process of the
 * domain does its part with a small one as well.
 */

import { closeSync, writeSync } from 'node:fs';
import { FEATURE_WORDS } from '../hypervisor/cpu-features.ts';
import { createDomain, type Domain } from '../hypervisor/domain.ts';
import { createMachineMemory, PAGE_SIZE } from '../machine/memory.ts';
import { PART_DESCRIPTION, PART_DOMAIN, PART_END, PART_M2P, SaveWriter } from '../toolstack/saved/save-file.ts';
import { encodeDescription } from '../toolstack/saved/saved-description.ts';
import { encodeM2p } from '../toolstack/saved/saved-memory.ts';
import { encodeDomain } from '../toolstack/saved/saved-state.ts';
import type { SavedNode } from '../toolstack/saved/saved-store.ts';
import { CopiedMemory, type FrozenMemory } from './copied-memory.ts';
import { ForkedDomain, type ForkRequest } from './forked-domain.ts';
import { hostCalls } from './libc.ts';
import { writeVcpus } from './save-domain.ts';
import { PLAIN_CODEC } from './save-stream.ts';

const PAGES = 1024;
/** V8 compiles what has run so often better than what has run once. */
export const TIMES = 4;
/** Written to between two copies: a page, and so many that they are mapped. */
const CHANGED = [7, ...Array.from({ length: 32 }, (_, i) => 100 + i)];
/** When there is room for those already. */
const CHANGED_LATE = 300;

/** `nodes`: those of the domain that is to be copied. False: memory is not shared here, and the way another one. */
export async function rehearseCopy(request: ForkRequest, nodes: readonly SavedNode[]): Promise<boolean> {
  const calls = hostCalls();
  const [from, to] = [smallDomain(), smallDomain()];
  const [source, copied] = [CopiedMemory.create(from), CopiedMemory.create(to)];
  const state = calls?.memfdCreate('domus-fork', 0) ?? -1;
  if (source === null || copied === null || state < 0) return false;
  try {
    await writeSmall(state, from, request, nodes);
    const { early, memory, release } = await freezeTwice(source, from);
    const { ramPages, maxPages } = from.machine.layout;
    const outline = { ...request.outline, shape: { ramPages, maxPages, vcpus: from.vcpus.length } };
    const fork = {
      ...{ state: `/proc/self/fd/${state}`, hasPages: false, memory: Promise.resolve(memory) },
      ...{ askedNs: 0, stoppedNs: 0, describedNs: 0, disks: {} },
    };
    try {
      for (let time = 0; time < TIMES; time++) {
        const domain = new ForkedDomain({ ...request, outline }, { early: async () => early, take: async () => fork });
        await domain.arrive(Promise.resolve(), copied);
        await domain.load(to.machine, to, Promise.resolve(), copied);
      }
    } finally {
      release();
    }
    return true;
  } finally {
    closeSync(state);
    source.close();
    copied.close();
  }
}

/** What the process of the domain does when that is copied: sets aside what a small one has written. */
export async function rehearseFreeze(): Promise<void> {
  const domain = smallDomain();
  const memory = CopiedMemory.create(domain);
  try {
    for (let time = 0; time < TIMES && memory !== null; time++) (await freezeTwice(memory, domain)).release();
  } finally {
    memory?.close();
  }
}

interface FrozenTwice extends ReturnType<CopiedMemory['freeze']> {
  readonly early: FrozenMemory | null;
}

/** The second time there is a base, and some has been written since. */
async function freezeTwice(memory: CopiedMemory, { machine }: Domain): Promise<FrozenTwice> {
  memory.freeze(false).release();
  for (const frame of CHANGED) machine.u8[frame * PAGE_SIZE] = 1;
  await memory.makeRoom();
  const early = memory.early();
  machine.u8[CHANGED_LATE * PAGE_SIZE] = 1;
  return { early, ...memory.freeze(false, memory.look()) };
}

function smallDomain(): Domain {
  return createDomain(createMachineMemory(PAGES, PAGES), 0, 1, new Uint8Array(16));
}

async function writeSmall(
  fd: number,
  domain: Domain,
  { outline, domid, identity }: ForkRequest,
  nodes: readonly SavedNode[],
): Promise<void> {
  const writer = new SaveWriter(async (bytes) => void writeSync(fd, bytes), PLAIN_CODEC);
  const { engine, knownDomid, cmdline } = outline;
  const cpu = { xcr0: 0, words: new Array<number>(FEATURE_WORDS).fill(0) };
  const ring = { pfn: 1, port: 1 };
  const description = {
    ...{ domid, knownDomid, name: identity.name, config: '', engine, cpu },
    ...{ tsc: { khz: outline.tscKhz, ticks: 0 }, store: ring, console: ring, cmdline, nodes, watches: [] },
  };
  await writer.start();
  await writer.part(PART_DESCRIPTION, encodeDescription(description));
  await writer.part(PART_DOMAIN, encodeDomain(domain, 0));
  await writeVcpus(writer, domain);
  await writer.part(PART_M2P, encodeM2p(domain.machine));
  await writer.part(PART_END, new Uint8Array(4));
}
