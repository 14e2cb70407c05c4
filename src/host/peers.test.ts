/** Domains that run nothing, in one process, with the sockets and the memory that they would have. */
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
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
import * as peer from '../hypervisor/peer-protocol.ts';
import { createMachineMemory, MFN_BASE, PAGE_SIZE } from '../machine/memory.ts';
import { VCPU } from '../machine/vcpu-block.ts';
import type { ForeignCall } from './foreign-calls.ts';
import { hostCalls } from './libc.ts';
import { Peers } from './peers.ts';
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
  /** Resolves when the domain no longer stands still. */
  moving: Promise<void> | null;
}

const guests: Guest[] = [];
afterEach(() => {
  for (const { peers } of guests.splice(0)) peers.close();
});

/** Nothing runs here that could be in the way. */
const atRest = { whileFrozen: async (act: () => Promise<unknown>) => void (await act()) };

async function makeGuest(domid: number): Promise<Guest> {
  const machine = createMachineMemory(64, 64);
  const shareable = ShareableMemory.create(machine);
  const domain = createDomain(machine, domid, 1, new Uint8Array(16));
  domain.vcpus[0].u32[VCPU.vcpuInfo >> 2] = machine.layout.sharedInfoOffset;
  const channels = new Dom0Channels(domain, { kick: () => {} });
  const grants = new GrantMappings(domain);
  const log: string[] = [];
  const peers = new Peers({
    domain,
    channels,
    grants,
    memoryFd: shareable?.fd ?? -1,
    share: async () => (await shareable?.share(atRest, () => {})) ?? false,
    memoryStored: () => {},
    untilMoving: () => guest.moving,
    stateRoot: root,
    log: (line) => log.push(line),
  });
  const guest: Guest = { domain, channels, grants, peers, log, moving: null };
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

test('a page goes to another domain; not while that stands still, and nowhere when it has ended', async () => {
  const [owner, asker] = [await makeGuest(1), await makeGuest(2)];
  const { machine, i32 } = owner.domain;
  const pages = (): number => i32[DOMAIN.totalPages >> 2];
  removeFrame(owner.domain, 20);
  removeFrame(owner.domain, 21);
  const entry = grant(owner, 9, 20 - MFN_BASE, 2, gnttab.GTF_accept_transfer);
  const bytes = new Array<number>(PAGE_SIZE).fill(0x5a);
  let goOn = (): void => {};
  owner.moving = new Promise((resolve) => (goOn = resolve));
  const asked = ask(asker, { kind: 'transfer', domid: 1, words: [9], bytes });
  await sleep(50);
  expect(pages()).toBe(62);
  owner.moving = null;
  goOn();
  expect((await asked).results[0]).toBe(gnttab.GNTST_okay);
  expect([pages(), machine.u32[entry + 1], machine.u8[20 * PAGE_SIZE + 4095]]).toEqual([63, MFN_BASE + 20, 0x5a]);
  expect((await ask(asker, { kind: 'transfer', domid: 1, words: [9], bytes })).results[0]).toBe(-1);

  grant(owner, 10, 21 - MFN_BASE, 2, gnttab.GTF_accept_transfer);
  owner.moving = new Promise(() => {});
  const late = ask(asker, { kind: 'transfer', domid: 1, words: [10], bytes });
  await sleep(50);
  owner.peers.close();
  expect((await late).results[0]).toBe(gnttab.GNTST_bad_domain);
  expect(pages()).toBe(63);
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
