/** Domains that run nothing, in one process, with the sockets and the memory that they would have. */
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { afterAll, afterEach, expect, test } from 'vitest';
import { ESRCH } from '../abi/errno.ts';
import * as gnttab from '../abi/grant-table.ts';
import { Dom0Channels } from '../hypervisor/dom0-channels.ts';
import { createDomain, DOMAIN, type Domain } from '../hypervisor/domain.ts';
import {
  ECS_INTERDOMAIN,
  ECS_RESERVED,
  ECS_UNBOUND,
  isPending,
  portState,
  setPort,
  signalFarEnd,
} from '../hypervisor/event-channels.ts';
import { GrantMappings } from '../hypervisor/grant-mappings.ts';
import { removeFrame } from '../hypervisor/owned-frames.ts';
import { PageArrivals } from '../hypervisor/page-transfer.ts';
import * as peer from '../hypervisor/peer-protocol.ts';
import { createMachineMemory, MFN_BASE, PAGE_SIZE } from '../machine/memory.ts';
import { VCPU } from '../machine/vcpu-block.ts';
import type { ForeignCall } from './foreign-calls.ts';
import { hostCalls } from './libc.ts';
import { Peers } from './peers.ts';
import { type FreezableDomain, Freezer } from './save-domain.ts';
import { ShareableMemory } from './shared-memory.ts';
import { peerPath } from './state-dir.ts';

const root = mkdtempSync(join(tmpdir(), 'domus-peers-'));
afterAll(() => rmSync(root, { recursive: true }));

interface Guest {
  readonly domain: Domain;
  readonly channels: Dom0Channels;
  readonly grants: GrantMappings;
  readonly peers: Peers;
  readonly log: string[];
  readonly freezer: Freezer;
}

const guests: Guest[] = [];
afterEach(() => {
  for (const { peers } of guests.splice(0)) peers.close();
});

/** Nothing runs here that could be in the way. */
const atRest = { whileFrozen: async (act: () => Promise<unknown>) => void (await act()) };

/** `freezes`: it has to stand still before its memory can be shared. */
async function makeGuest(domid: number, freezes = false): Promise<Guest> {
  const machine = createMachineMemory(64, 64);
  const shareable = ShareableMemory.create(machine);
  const domain = createDomain(machine, domid, 1, new Uint8Array(16));
  domain.vcpus[0].u32[VCPU.vcpuInfo >> 2] = machine.layout.sharedInfoOffset;
  const channels = new Dom0Channels(domain, { kick: () => {} });
  const grants = new GrantMappings(domain);
  const arrivals = new PageArrivals(domain, () => {});
  const log: string[] = [];
  const peers = new Peers({
    domain,
    channels,
    grants,
    memoryFd: shareable?.fd ?? -1,
    share: async () => (await shareable?.share(freezes ? guest.freezer : atRest, () => {})) ?? false,
    memoryStored: () => {},
    arrivals,
    stateRoot: root,
    log: (line) => log.push(line),
  });
  // Of a domain without devices.
  const part = { hold: () => {}, release: () => {}, service: () => {} };
  const freezable = {
    ...{ domain, arrivals, kicker: { kick: () => {} }, service: () => {} },
    ...{ connection: { isIdle: true }, ring: { ...part, isBetweenMessages: true }, console: part },
    devices: { detach: async () => {}, attach: async () => {} },
  } as unknown as FreezableDomain;
  const guest: Guest = { domain, channels, grants, peers, log, freezer: new Freezer(freezable) };
  await peers.listen();
  guests.push(guest);
  return guest;
}

/** What a vCPU would ask; results and bytes. */
async function ask(
  { peers }: Guest,
  question: Pick<ForeignCall, 'kind' | 'domid'> & { words: number[]; frames?: number[]; bytes?: number[] },
): Promise<{ results: Int32Array; bytes: Uint8Array }> {
  const answer = new SharedArrayBuffer(16 + 64 * 4 + 64 * PAGE_SIZE);
  await peers.serve({
    kind: question.kind,
    domid: question.domid,
    words: Uint32Array.from(question.words),
    frames: Int32Array.from(question.frames ?? []),
    bytes: Uint8Array.from(question.bytes ?? []),
    answer,
  });
  const words = new Int32Array(answer);
  await until(() => Atomics.load(words, 0) === 1);
  return { results: new Int32Array(answer, 16, 64), bytes: new Uint8Array(answer, 16 + 64 * 4, words[1]) };
}

async function until(isSo: () => boolean): Promise<void> {
  for (let turn = 0; turn < 1000 && !isSo(); turn++) await sleep(2);
  expect(isSo()).toBe(true);
}

function grant({ domain }: Guest, gref: number, page: number, domid: number, flags = gnttab.GTF_permit_access): number {
  const at = domain.machine.layout.grantTableOffset / 4 + gref * 2;
  domain.machine.u32[at] = flags | (domid << 16);
  domain.machine.u32[at + 1] = MFN_BASE + page;
  return at;
}

test('a mapped page is the same page, and its place is a page of the own domain afterwards', async (context) => {
  if (hostCalls() === null) context.skip('no koffi, or not Linux');
  const [owner, asker] = [await makeGuest(1), await makeGuest(2)];
  const entry = grant(owner, 9, 10, 2);
  const [theirs, ours] = [owner.domain.machine, asker.domain.machine];
  theirs.u8[10 * PAGE_SIZE + 5] = 77;
  const { results } = await ask(asker, { kind: 'map', domid: 1, words: [9, 1, 9, 1, 8, 1] });
  const [frame, again, refused] = results;
  expect(frame).toBeGreaterThanOrEqual(ours.layout.foreignOffset / PAGE_SIZE);
  expect(again).toBe(frame);
  expect(refused).toBe(gnttab.GNTST_general_error);
  expect(ours.u8[frame * PAGE_SIZE + 5]).toBe(77);
  ours.u8[frame * PAGE_SIZE + 6] = 78;
  expect(theirs.u8[10 * PAGE_SIZE + 6]).toBe(78);
  // Atomics of both meet.
  Atomics.add(ours.i32, (frame * PAGE_SIZE) / 4 + 2, 3);
  expect(Atomics.add(theirs.i32, (10 * PAGE_SIZE) / 4 + 2, 1)).toBe(3);
  // Its neighbours are not there.
  theirs.u8[11 * PAGE_SIZE] = 79;
  expect(ours.u8[(frame + 1) * PAGE_SIZE]).toBe(0);

  await ask(asker, { kind: 'release', domid: 1, words: [9, 1], frames: [frame] });
  expect(ours.u8[frame * PAGE_SIZE + 5]).toBe(77);
  await ask(asker, { kind: 'release', domid: 1, words: [9, 1], frames: [frame] });
  expect(ours.u8[frame * PAGE_SIZE + 5]).toBe(0);
  expect(theirs.u32[entry] & 0xffff).toBe(gnttab.GTF_permit_access);
  expect(theirs.u8[10 * PAGE_SIZE + 5]).toBe(77);
});

test('a domain that ends leaves nobody hanging, and its pages to those who have them', async (context) => {
  if (hostCalls() === null) context.skip('no koffi, or not Linux');
  const [owner, asker] = [await makeGuest(1), await makeGuest(2)];
  grant(owner, 9, 10, 2);
  owner.domain.machine.u8[10 * PAGE_SIZE] = 77;
  const { results } = await ask(asker, { kind: 'map', domid: 1, words: [9, 1] });
  owner.peers.close();
  const late = await ask(asker, { kind: 'map', domid: 1, words: [9, 1] });
  expect(late.results[0]).toBe(gnttab.GNTST_bad_domain);
  expect((await ask(asker, { kind: 'bind', domid: 1, words: [1, 1] })).results[0]).toBe(-ESRCH);
  expect(asker.domain.machine.u8[results[0] * PAGE_SIZE]).toBe(77);
  await ask(asker, { kind: 'release', domid: 1, words: [9, 1], frames: [results[0]] });
  expect(asker.domain.machine.u8[results[0] * PAGE_SIZE]).toBe(0);
  await until(() => owner.grants.inUse === 0);
});

test('when the one who maps ends, the owner has its grants back', async (context) => {
  if (hostCalls() === null) context.skip('no koffi, or not Linux');
  const [owner, asker] = [await makeGuest(1), await makeGuest(2)];
  const entry = grant(owner, 9, 10, 2);
  await ask(asker, { kind: 'map', domid: 1, words: [9, 1] });
  expect(owner.domain.machine.u32[entry] & gnttab.GTF_writing).not.toBe(0);
  asker.peers.close();
  await until(() => owner.domain.machine.u32[entry] === (gnttab.GTF_permit_access | (2 << 16)));
});

test('copies need no shared memory, and events find their way', async () => {
  const [owner, asker] = [await makeGuest(1), await makeGuest(2)];
  grant(owner, 9, 10, 2);
  owner.domain.machine.u8.set([1, 2, 3], 10 * PAGE_SIZE + 4);
  const read = await ask(asker, { kind: 'read', domid: 1, words: [9, 4, 3, 9, 4095, 2] });
  expect([...read.results.subarray(0, 2)]).toEqual([0, gnttab.GNTST_bad_copy_arg]);
  expect([...read.bytes]).toEqual([1, 2, 3]);
  const write = await ask(asker, { kind: 'write', domid: 1, words: [9, 100, 2], bytes: [8, 9] });
  expect(write.results[0]).toBe(0);
  expect([...owner.domain.machine.u8.subarray(10 * PAGE_SIZE + 100, 10 * PAGE_SIZE + 102)]).toEqual([8, 9]);

  setPort(owner.domain, 3, ECS_UNBOUND, 0, 2, 0);
  setPort(asker.domain, 7, ECS_RESERVED, 0, 1, 0);
  expect((await ask(asker, { kind: 'bind', domid: 1, words: [3, 7] })).results[0]).toBe(0);
  expect([portState(owner.domain, 3), portState(asker.domain, 7)]).toEqual([ECS_INTERDOMAIN, ECS_INTERDOMAIN]);
  signalFarEnd(asker.domain, 7);
  asker.channels.dispatch();
  await until(() => isPending(owner.domain, 3));
  signalFarEnd(owner.domain, 3);
  owner.channels.dispatch();
  await until(() => isPending(asker.domain, 7));
  asker.peers.close();
  await until(() => portState(owner.domain, 3) === ECS_UNBOUND);
});

const PAGE = new Array<number>(PAGE_SIZE).fill(0x5a);

/** Gives page `pfn` back, and accepts another one for it. */
function acceptFrom(guest: Guest, gref: number, pfn: number, domid: number): number {
  removeFrame(guest.domain, pfn);
  return grant(guest, gref, pfn - MFN_BASE, domid, gnttab.GTF_accept_transfer);
}

const pages = ({ domain }: Guest): number => domain.i32[DOMAIN.totalPages >> 2];

/** What a vCPU does when it is asked to pause: it is parked as long as that lasts. */
async function parkWhilePaused({ domain: { i32 } }: Guest): Promise<void> {
  await until(() => Atomics.load(i32, DOMAIN.paused >> 2) !== 0);
  Atomics.add(i32, DOMAIN.parked >> 2, 1);
  Atomics.notify(i32, DOMAIN.parked >> 2);
  await until(() => Atomics.load(i32, DOMAIN.paused >> 2) === 0);
  Atomics.add(i32, DOMAIN.parked >> 2, -1);
}

test('a page goes to another domain, and nowhere when that has ended', async () => {
  const [owner, asker] = [await makeGuest(1), await makeGuest(2)];
  const { machine } = owner.domain;
  const entry = acceptFrom(owner, 9, 20, 2);
  const give = () => ask(asker, { kind: 'transfer', domid: 1, words: [9], bytes: PAGE });
  expect((await give()).results[0]).toBe(gnttab.GNTST_okay);
  expect([pages(owner), machine.u32[entry + 1], machine.u8[20 * PAGE_SIZE + 4095]]).toEqual([64, MFN_BASE + 20, 0x5a]);
  expect((await give()).results[0]).toBe(gnttab.GNTST_general_error);
  owner.peers.close();
  expect((await give()).results[0]).toBe(gnttab.GNTST_bad_domain);
});

test('two domains that give each other pages while both are being saved wait for nothing, and have both pages afterwards', async () => {
  const both = [await makeGuest(1), await makeGuest(2)];
  for (const guest of both) {
    const domid = 3 - guest.domain.domid;
    acceptFrom(guest, 9, 20, domid);
    acceptFrom(guest, 10, 21, domid);
  }
  const read: number[] = [];
  const frozen = both.map((guest) =>
    guest.freezer.whileFrozen(async () => {
      read.push(pages(guest));
      await sleep(50);
      read.push(pages(guest));
      return 'as before';
    }),
  );
  // Each vCPU is in the hypercall when it is asked to pause, and parks behind it.
  const statuses = await Promise.all(
    both.map(async (guest) => {
      await until(() => Atomics.load(guest.domain.i32, DOMAIN.paused >> 2) !== 0);
      const domid = 3 - guest.domain.domid;
      const given = [9, 10].map((gref) => ask(guest, { kind: 'transfer', domid, words: [gref], bytes: PAGE }));
      const results = (await Promise.all(given)).map(({ results: [status] }) => status);
      await parkWhilePaused(guest);
      return results;
    }),
  );
  await Promise.all(frozen);
  expect(statuses).toEqual([
    [0, 0],
    [0, 0],
  ]);
  expect(read.length).toBe(4);
  for (const guest of both) {
    expect(pages(guest)).toBe(64);
    for (const page of [20, 21]) expect(guest.domain.machine.u8[page * PAGE_SIZE + 4095]).toBe(0x5a);
  }
});

test('a domain that stands still is given pages at once, and finds them when it goes on', async () => {
  const [owner, asker] = [await makeGuest(1), await makeGuest(2)];
  const { machine } = owner.domain;
  const entry = acceptFrom(owner, 9, 20, 2);
  acceptFrom(owner, 10, 21, 2);
  acceptFrom(owner, 11, 22, 7);
  Atomics.store(owner.domain.i32, DOMAIN.maxPages >> 2, 62);
  const give = async (gref: number): Promise<number> =>
    (await ask(asker, { kind: 'transfer', domid: 1, words: [gref], bytes: PAGE })).results[0];
  const parked = parkWhilePaused(owner);
  const statuses: number[] = [];
  await owner.freezer.whileFrozen(async () => {
    // Not from that domain; no such entry; once; not twice; no room for another.
    for (const gref of [11, 4096, 9, 9, 10]) statuses.push(await give(gref));
    expect([pages(owner), machine.u32[entry] & 0xffff, machine.u8[20 * PAGE_SIZE]]).toEqual([61, 2, 0]);
    return 'as before';
  });
  await parked;
  expect(statuses).toEqual([-1, -1, 0, -1, -1]);
  expect([pages(owner), machine.u32[entry] & 0xffff, machine.u8[20 * PAGE_SIZE]]).toEqual([62, 0xe, 0x5a]);
});

/** A vCPU's thread that maps page 10 of the other domain, again if it is told to, and parks when it is asked to; until it is posted anything. */
const MAPPER = `
  import { parentPort, workerData } from 'node:worker_threads';
  const { foreignCalls, domainModule, handle, other } = workerData;
  const { ForeignCalls } = await import(foreignCalls);
  const { Domain, DOMAIN } = await import(domainModule);
  const domain = new Domain(handle);
  const { i32 } = domain;
  const calls = new ForeignCalls(domain, domain.vcpus[0], (call) => parentPort.postMessage({ call }));
  const statuses = [];
  const results = new Int32Array(1);
  let done = false;
  parentPort.on('message', () => { done = true; });
  const turn = () => {
    if (Atomics.load(i32, DOMAIN.paused >> 2) !== 0) {
      Atomics.add(i32, DOMAIN.parked >> 2, 1);
      Atomics.notify(i32, DOMAIN.parked >> 2);
      while (Atomics.load(i32, DOMAIN.paused >> 2) !== 0) Atomics.wait(i32, DOMAIN.paused >> 2, 1, 10);
      Atomics.add(i32, DOMAIN.parked >> 2, -1);
    }
    if (statuses.length === 0 || statuses.at(-1) === -12) {
      calls.map(other, Uint32Array.of(9, 1), 1, results);
      statuses.push(results[0]);
      if (results[0] !== -12) parentPort.postMessage({ statuses });
    }
    if (!done) setTimeout(turn, 1);
    else parentPort.close();
  };
  turn();
`;

interface MapperMessage {
  readonly call?: ForeignCall;
  readonly statuses?: readonly number[];
}

test('two domains that map a page of each other for the first time do not wait for each other, and keep no mapping that nobody has', async (context) => {
  if (hostCalls() === null) context.skip('no koffi, or not Linux');
  const both = [await makeGuest(1, true), await makeGuest(2, true)];
  for (const guest of both) grant(guest, 9, 10, 3 - guest.domain.domid);
  // Both are in the hypercall before either is answered.
  const bothAsk = Promise.withResolvers<void>();
  let asked = 0;
  const workers = both.map((guest) => {
    const worker = new Worker(MAPPER, {
      eval: true,
      workerData: {
        foreignCalls: new URL('./foreign-calls.ts', import.meta.url).href,
        domainModule: new URL('../hypervisor/domain.ts', import.meta.url).href,
        handle: guest.domain.handle(),
        other: 3 - guest.domain.domid,
      },
    });
    const statuses = new Promise<readonly number[]>((resolve, reject) => {
      worker.on('error', reject);
      worker.on('message', (message: MapperMessage) => {
        const { call } = message;
        if (call !== undefined) void bothAsk.promise.then(() => guest.peers.serve(call));
        if (call !== undefined && ++asked === both.length) bothAsk.resolve();
        if (message.statuses !== undefined) resolve(message.statuses);
      });
    });
    return { worker, statuses };
  });
  const frames: number[] = [];
  for (const { statuses } of workers) {
    const last = (await statuses).at(-1) ?? -1;
    expect(last).toBeGreaterThan(0);
    frames.push(last);
  }
  for (const [i, { domain }] of both.entries()) {
    domain.machine.u8[10 * PAGE_SIZE + 5] = 70 + i;
    const other = both[1 - i];
    expect(other.domain.machine.u8[frames[1 - i] * PAGE_SIZE + 5]).toBe(70 + i);
    // One mapping, whatever was asked before.
    await ask(other, { kind: 'release', domid: domain.domid, words: [9, 1], frames: [frames[1 - i]] });
    await until(() => both[i].grants.inUse === 0);
    expect(other.domain.machine.u8[frames[1 - i] * PAGE_SIZE + 5]).toBe(0);
  }
  for (const { worker } of workers) worker.postMessage('done');
});

test('who says nothing sensible at the socket is shown out', async () => {
  const owner = await makeGuest(1);
  const hello = (from: number, to: number): Uint8Array => peer.encodePeerMessage(peer.PEER_HELLO, 1, [from, to]);
  const cases = [
    new TextEncoder().encode('GET / HTTP/1.1\r\n\r\n'),
    hello(2, 3),
    hello(1, 1),
    hello(0, 1),
    hello(0x7ff0, 1),
    peer.encodePeerMessage(peer.PEER_MAP, 1, [9, 1]),
  ];
  for (const bytes of cases) {
    const socket = await new Promise<Socket>((resolve) => {
      const made = connect(peerPath(root, 1), () => resolve(made));
    });
    const closed = new Promise((resolve) => socket.once('close', resolve));
    socket.on('error', () => {});
    socket.resume().write(bytes);
    await closed;
  }
  expect(owner.grants.inUse).toBe(0);
});
