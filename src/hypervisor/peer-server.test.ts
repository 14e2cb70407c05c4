/** Two domains whose peers are joined without a socket between them. */
import { expect, test } from 'vitest';
import { EINVAL, ESRCH } from '../abi/errno.ts';
import * as evtchn from '../abi/event-channel.ts';
import * as gnttab from '../abi/grant-table.ts';
import { MFN_BASE, PAGE_SIZE } from '../machine/memory.ts';
import { Dom0Channels } from './dom0-channels.ts';
import { DOMAIN } from './domain.ts';
import { ECS_FREE, ECS_INTERDOMAIN, ECS_UNBOUND, isPending, portA, portB, portState } from './event-channels.ts';
import type { ForeignDomains } from './foreign-domains.ts';
import { statusIndex } from './grant-entries.ts';
import { GrantMappings } from './grant-mappings.ts';
import { eventChannelOp } from './hypercalls/event-channel.ts';
import { grantTableOp } from './hypercalls/grant-table.ts';
import { removeFrame } from './owned-frames.ts';
import { PageArrivals } from './page-transfer.ts';
import { PeerClient } from './peer-client.ts';
import * as peer from './peer-protocol.ts';
import { PeerServer } from './peer-server.ts';
import { KERNEL_VA, TestGuest, VA_HI, va } from './testing.ts';

const OWNER = 5;
const ASKER = 6;
const GREF = 9;
const ARG = KERNEL_VA + 2 * PAGE_SIZE;
const L1 = 20;

/** Domain 6 may ask domain 5. Mapped pages do not really stand in its memory: only the numbers are looked at. */
class Pair {
  readonly owner = new TestGuest({ domid: OWNER });
  readonly asker: TestGuest;
  readonly grants = new GrantMappings(this.owner.domain);
  readonly server: PeerServer;
  readonly client: PeerClient;
  readonly ownerChannels: Dom0Channels;
  readonly askerChannels: Dom0Channels;
  /** [offset, size] that domain 5's engine was told of. */
  readonly stored: [number, number][] = [];
  released = 0;
  connected = true;
  congested = false;

  constructor() {
    const kicker = { kick: () => {} };
    const foreign: ForeignDomains = {
      bind: (domid, remotePort, localPort) => {
        let rc = -ESRCH;
        if (domid === OWNER && this.connected) this.client.bind(remotePort, localPort, (done) => (rc = done));
        return rc;
      },
      map: (domid, requests, count, results) => {
        const found = this.#ask(domid, peer.PEER_MAP, requests.slice(0, count * 2));
        for (let i = 0; i < count; i++) {
          const status = found === null ? gnttab.GNTST_bad_domain : found[i];
          // As if frame n of the other domain stood in the foreign frame n.
          results[i] = status < 0 ? status : this.asker.machine.layout.foreignOffset / PAGE_SIZE + status;
        }
      },
      release: (domid, requests, count) => {
        this.released += count;
        this.#ask(domid, peer.PEER_RELEASE, requests.slice(0, count * 2));
      },
      read: (domid, requests, count, bytes, results) => {
        this.#ask(domid, peer.PEER_READ, requests.slice(0, count * 3), undefined, (body) => {
          results.set(new Int32Array(body.buffer, 0, count));
          bytes.set(body.subarray(count * 4));
        });
      },
      write: (domid, requests, count, bytes, results) => {
        const words = [count, ...requests.slice(0, count * 3)];
        const found = this.#ask(domid, peer.PEER_WRITE, words, bytes);
        for (let i = 0; i < count; i++) results[i] = found === null ? gnttab.GNTST_bad_domain : found[i];
      },
      transfer: (domid, gref, page) => {
        const found = this.#ask(domid, peer.PEER_TRANSFER, [gref], page);
        return found === null ? gnttab.GNTST_bad_domain : found[0];
      },
    };
    this.asker = new TestGuest({ domid: ASKER, foreign });
    this.ownerChannels = new Dom0Channels(this.owner.domain, kicker);
    this.askerChannels = new Dom0Channels(this.asker.domain, kicker);
    const decode = (message: Uint8Array): peer.PeerMessage => {
      const [one] = new peer.PeerReader().take(message) ?? [];
      return one;
    };
    this.server = new PeerServer({
      domain: this.owner.domain,
      channels: this.ownerChannels,
      grants: this.grants,
      arrivals: new PageArrivals(this.owner.domain, (offset, size) => this.stored.push([offset, size])),
      memoryStored: (offset, size) => this.stored.push([offset, size]),
      peerDomid: ASKER,
      send: (message) => void this.client.handle(decode(message)),
      isCongested: () => this.congested,
    });
    this.client = new PeerClient(
      OWNER,
      this.askerChannels,
      (message) => void this.server.handle(decode(message)),
      () => this.congested,
    );
  }

  #ask(
    domid: number,
    kind: number,
    words: ArrayLike<number>,
    bytes?: Uint8Array,
    onBody: (body: Uint8Array<ArrayBuffer>) => void = () => {},
  ): Int32Array | null {
    let found: Int32Array | null = null;
    if (domid !== OWNER) return null;
    this.client.request(kind, words, bytes, (body) => {
      if (body === null) return;
      found = new Int32Array(body.buffer, 0, body.length >> 2);
      onBody(body);
    });
    return found;
  }

  /** Domain 5 grants a page of its own. */
  grant(gref: number, page: number, flags = gnttab.GTF_permit_access, domid = ASKER): void {
    const at = this.#entry(gref);
    this.owner.machine.u32[at] = flags | (domid << 16);
    this.owner.machine.u32[at + 1] = MFN_BASE + page;
  }

  /** What the entries say. */
  frames(grefs: readonly number[]): number[] {
    return grefs.map((gref) => this.owner.machine.u32[this.#entry(gref) + 1]);
  }

  flags(gref: number): number {
    return this.owner.machine.u32[this.#entry(gref)] & 0xffff;
  }

  #entry(gref: number): number {
    return this.owner.machine.layout.grantTableOffset / 4 + gref * 2;
  }

  /** What domain 6 does; status, handle, machine address. */
  map(flags: number, gref = GREF, host = 0, domid = OWNER): { status: number; handle: number; maddr: number } {
    this.asker.setWords(ARG, [host, host === 0 ? 0 : VA_HI, flags, gref, domid, 0, 0, 0]);
    expect(this.asker.call(grantTableOp, gnttab.GNTTABOP_map_grant_ref, va(ARG), 1)).toBe(0);
    const [handle, lo, hi] = this.asker.words(ARG + 20, 3);
    return { status: this.asker.s16(ARG + 18), handle, maddr: hi * 2 ** 32 + lo };
  }

  unmap(handle: number, host = 0, bus = 0): number {
    const busHi = Math.floor(bus / 2 ** 32);
    this.asker.setWords(ARG, [host, host === 0 ? 0 : VA_HI, bus >>> 0, busHi, handle, 0]);
    expect(this.asker.call(grantTableOp, gnttab.GNTTABOP_unmap_grant_ref, va(ARG), 1)).toBe(0);
    return this.asker.s16(ARG + 20);
  }

  /** Domain 6 gives page `pfn` away. */
  transfer(pfn: number, gref = GREF, domid = OWNER): number {
    const { asker } = this;
    asker.machine.u32[asker.map(KERNEL_VA + pfn * PAGE_SIZE, VA_HI, MFN_BASE + pfn) >> 2] = 0;
    asker.setWords(ARG, [MFN_BASE + pfn, 0, domid, gref, 0x7777, 0]);
    expect(asker.call(grantTableOp, gnttab.GNTTABOP_transfer, va(ARG), 1)).toBe(0);
    return asker.s16(ARG + 16);
  }

  event(guest: TestGuest, op: number, words: readonly number[]): number {
    guest.setWords(ARG, words);
    return guest.call(eventChannelOp, op, va(ARG));
  }
}

const IN_USE = gnttab.GTF_reading | gnttab.GTF_writing;
const HOST = gnttab.GNTMAP_host_map;
const DEVICE = gnttab.GNTMAP_device_map;

/** An address of the asker whose entry is in a table of level 1. */
function freeAddress(pair: Pair): { host: number; entry: number } {
  const host = 0xc0000000 - 5 * PAGE_SIZE;
  const entry = pair.asker.map(host, VA_HI, MFN_BASE + L1, 0);
  pair.asker.domain.frameTypes[entry >>> 12] = 1;
  return { host, entry };
}

test('a granted page is mapped at an address and given back', () => {
  const pair = new Pair();
  const { host, entry } = freeAddress(pair);
  pair.grant(GREF, 10);
  const mapped = pair.map(HOST, GREF, host);
  expect(mapped.status).toBe(0);
  const mfn = MFN_BASE + pair.asker.machine.layout.foreignOffset / PAGE_SIZE + 10;
  expect(mapped.maddr).toBe(mfn * PAGE_SIZE);
  const { u32 } = pair.asker.machine;
  expect([u32[entry >> 2] & 0xfff, u32[entry >> 2] >>> 12]).toEqual([0x67, mfn & 0xfffff]);
  expect(pair.flags(GREF)).toBe(gnttab.GTF_permit_access | IN_USE);

  const flushes = pair.asker.engine.tlbFlushes;
  expect(pair.unmap(mapped.handle, host)).toBe(0);
  expect(u32[entry >> 2]).toBe(0);
  expect(pair.asker.engine.tlbFlushes).toBe(flushes + 1);
  expect(pair.flags(GREF)).toBe(gnttab.GTF_permit_access);
  // There may be code now in what the other could write.
  expect(pair.stored).toEqual([[10 * PAGE_SIZE, PAGE_SIZE]]);
  expect(pair.unmap(mapped.handle, host)).toBe(gnttab.GNTST_bad_handle);
});

test('a domain maps what was granted to it, and nothing else', () => {
  const pair = new Pair();
  pair.grant(GREF, 10, gnttab.GTF_permit_access, 7);
  expect(pair.map(DEVICE).status).toBe(gnttab.GNTST_general_error);
  pair.grant(GREF, 10, gnttab.GTF_permit_access | gnttab.GTF_readonly);
  expect(pair.map(DEVICE).status).toBe(gnttab.GNTST_general_error);
  const readOnly = pair.map(DEVICE | gnttab.GNTMAP_readonly);
  expect(readOnly.status).toBe(0);
  expect(pair.flags(GREF) & IN_USE).toBe(gnttab.GTF_reading);
  expect(pair.unmap(readOnly.handle, 0, readOnly.maddr + PAGE_SIZE)).toBe(gnttab.GNTST_bad_dev_addr);
  expect(pair.unmap(readOnly.handle, 0, readOnly.maddr)).toBe(0);
  pair.grant(GREF, 0x3fff);
  expect(pair.map(DEVICE).status).toBe(gnttab.GNTST_bad_page);
  expect(pair.map(DEVICE, 0xffffffff).status).toBe(gnttab.GNTST_bad_gntref);
  expect(pair.map(DEVICE, GREF, 0, 77).status).toBe(gnttab.GNTST_bad_domain);
  expect(pair.map(gnttab.GNTMAP_readonly).status).toBe(gnttab.GNTST_bad_gntref);
  expect(pair.grants.inUse).toBe(0);
});

test('a mapping whose entry cannot be made is taken back', () => {
  const pair = new Pair();
  pair.grant(GREF, 10);
  // No table there; and an address whose table is none.
  for (const host of [0x10000000, KERNEL_VA]) {
    expect(pair.map(HOST, GREF, host).status).toBe(gnttab.GNTST_general_error);
    expect(pair.flags(GREF)).toBe(gnttab.GTF_permit_access);
  }
  expect(pair.released).toBe(2);
});

test('when the connection ends, the owner has everything back, and the ports are unbound', () => {
  const pair = new Pair();
  pair.grant(GREF, 10);
  pair.grant(GREF + 1, 11);
  const mapped = pair.map(DEVICE);
  pair.map(DEVICE);
  pair.map(DEVICE | gnttab.GNTMAP_readonly, GREF + 1);
  expect(pair.event(pair.owner, evtchn.EVTCHNOP_alloc_unbound, [0x7ff0 | (ASKER << 16), 0])).toBe(0);
  const port = pair.owner.word(ARG + 4);
  expect(pair.event(pair.asker, evtchn.EVTCHNOP_bind_interdomain, [OWNER, port, 0])).toBe(0);
  const local = pair.asker.word(ARG + 8);

  pair.connected = false;
  pair.server.close();
  pair.client.close();
  expect([pair.flags(GREF), pair.flags(GREF + 1)]).toEqual([1, 1]);
  expect(pair.grants.inUse).toBe(0);
  expect([portState(pair.owner.domain, port), portA(pair.owner.domain, port)]).toEqual([ECS_UNBOUND, ASKER]);
  expect([portState(pair.asker.domain, local), portA(pair.asker.domain, local)]).toEqual([ECS_UNBOUND, OWNER]);
  // What is mapped may still be unmapped; nobody is asked any more.
  expect(pair.unmap(mapped.handle, 0, mapped.maddr)).toBe(0);
  expect(pair.map(DEVICE).status).toBe(gnttab.GNTST_bad_domain);
  expect(pair.event(pair.asker, evtchn.EVTCHNOP_bind_interdomain, [OWNER, port, 0])).toBe(-ESRCH);
});

test('events go both ways, and a closed end leaves the other unbound', () => {
  const pair = new Pair();
  const { owner, asker } = pair;
  pair.event(owner, evtchn.EVTCHNOP_alloc_unbound, [0x7ff0 | (ASKER << 16), 0]);
  const far = owner.word(ARG + 4);
  expect(pair.event(asker, evtchn.EVTCHNOP_bind_interdomain, [OWNER, far + 1, 0])).toBe(-EINVAL);
  expect(portState(asker.domain, 1)).toBe(ECS_FREE);
  expect(pair.event(asker, evtchn.EVTCHNOP_bind_interdomain, [OWNER, far, 0])).toBe(0);
  const local = asker.word(ARG + 8);
  expect([portState(owner.domain, far), portA(owner.domain, far), portB(owner.domain, far)]).toEqual([
    ECS_INTERDOMAIN,
    ASKER,
    local,
  ]);
  expect(isPending(asker.domain, local)).toBe(true);
  expect(isPending(owner.domain, far)).toBe(false);
  // Nobody else can have it.
  expect(pair.event(asker, evtchn.EVTCHNOP_bind_interdomain, [OWNER, far, 0])).toBe(-EINVAL);

  expect(pair.event(asker, evtchn.EVTCHNOP_send, [local])).toBe(0);
  pair.congested = true;
  for (let turn = 0; turn < 3; turn++) pair.askerChannels.dispatch();
  expect(isPending(owner.domain, far)).toBe(false);
  pair.congested = false;
  pair.askerChannels.dispatch();
  expect(isPending(owner.domain, far)).toBe(true);

  expect(pair.event(owner, evtchn.EVTCHNOP_close, [far])).toBe(0);
  pair.ownerChannels.dispatch();
  expect([portState(asker.domain, local), portA(asker.domain, local)]).toEqual([ECS_UNBOUND, OWNER]);
  // An event that has crossed with the end goes nowhere.
  expect(pair.event(asker, evtchn.EVTCHNOP_send, [local])).toBe(0);
  pair.askerChannels.dispatch();
});

test('copies go into and out of granted pages', () => {
  const pair = new Pair();
  const { owner, asker } = pair;
  pair.grant(GREF, 10);
  pair.grant(GREF + 1, 11, gnttab.GTF_permit_access | gnttab.GTF_readonly);
  owner.machine.u8.set([1, 2, 3, 4], 10 * PAGE_SIZE + 100);
  asker.machine.u8.set([5, 6, 7, 8], 4 * PAGE_SIZE);
  const local = MFN_BASE + 4;
  const copy = (from: number[], to: number[], length: number, flags: number): number[] => {
    const one = (words: number[]): number[] => [words[0], 0, words[1] | (words[2] << 16), 0];
    return [...one(from), ...one(to), length | (flags << 16), 0];
  };
  const ops = [
    copy([GREF, OWNER, 100], [local, 0x7ff0, 8], 4, gnttab.GNTCOPY_source_gref),
    copy([GREF, OWNER, 4090], [local, 0x7ff0, 8], 7, gnttab.GNTCOPY_source_gref),
    copy([local, 0x7ff0, 0], [GREF, OWNER, 200], 4, gnttab.GNTCOPY_dest_gref),
    copy([local, 0x7ff0, 0], [GREF + 1, OWNER, 0], 4, gnttab.GNTCOPY_dest_gref),
    copy([local, 0x7ff0, 0], [GREF + 2, OWNER, 0], 4, gnttab.GNTCOPY_dest_gref),
    copy([local, 0x7ff0, 0], [GREF, 77, 0], 4, gnttab.GNTCOPY_dest_gref),
    copy([GREF, OWNER, 100], [GREF, OWNER, 300], 4, gnttab.GNTCOPY_source_gref | gnttab.GNTCOPY_dest_gref),
    copy([0, OWNER, 0], [local, 0x7ff0, 8], 4, 0),
  ];
  asker.setWords(ARG, ops.flat());
  expect(asker.call(grantTableOp, gnttab.GNTTABOP_copy, va(ARG), ops.length)).toBe(0);
  expect(ops.map((_, i) => asker.s16(ARG + i * 40 + 36))).toEqual([
    0,
    gnttab.GNTST_bad_copy_arg,
    0,
    gnttab.GNTST_general_error,
    gnttab.GNTST_general_error,
    gnttab.GNTST_bad_domain,
    0,
    gnttab.GNTST_permission_denied,
  ]);
  expect([...asker.machine.u8.subarray(4 * PAGE_SIZE + 8, 4 * PAGE_SIZE + 12)]).toEqual([1, 2, 3, 4]);
  expect([...owner.machine.u8.subarray(10 * PAGE_SIZE + 200, 10 * PAGE_SIZE + 204)]).toEqual([5, 6, 7, 8]);
  expect([...owner.machine.u8.subarray(10 * PAGE_SIZE + 300, 10 * PAGE_SIZE + 304)]).toEqual([1, 2, 3, 4]);
  expect(owner.machine.u8[11 * PAGE_SIZE]).toBe(0);
  expect(pair.stored).toContainEqual([10 * PAGE_SIZE + 200, 4]);
  expect(pair.flags(GREF)).toBe(gnttab.GTF_permit_access);
});

const total = ({ domain }: TestGuest): number => domain.i32[DOMAIN.totalPages >> 2];
const m2p = ({ machine }: TestGuest, frame: number): number => machine.u32[machine.layout.m2pOffset / 4 + frame * 2];
const COMPLETED = gnttab.GTF_accept_transfer | gnttab.GTF_transfer_committed | gnttab.GTF_transfer_completed;

test('a page that is transferred stands in the frame that the entry names, or in another that is free', () => {
  const pair = new Pair();
  const { owner, asker } = pair;
  for (const pfn of [12, 13, 14]) removeFrame(owner.domain, pfn);
  asker.machine.u8.fill(0x5a, 11 * PAGE_SIZE, 12 * PAGE_SIZE);
  asker.machine.u8.fill(0x5b, 15 * PAGE_SIZE, 16 * PAGE_SIZE);
  // The entry names a page as the receiver counts them; the second one's is no frame that is free.
  pair.grant(GREF, 13 - MFN_BASE, gnttab.GTF_accept_transfer);
  pair.grant(GREF + 1, 0x12345678 - MFN_BASE, gnttab.GTF_accept_transfer);
  expect(pair.transfer(11)).toBe(0);
  expect(pair.transfer(15, GREF + 1)).toBe(0);
  expect(pair.frames([GREF, GREF + 1])).toEqual([MFN_BASE + 13, MFN_BASE + 12]);
  expect([pair.flags(GREF), pair.flags(GREF + 1)]).toEqual([COMPLETED, COMPLETED]);
  expect([m2p(owner, 13), m2p(owner, 12), total(owner)]).toEqual([13, 0x12345678, 63]);
  expect(owner.machine.u8.subarray(13 * PAGE_SIZE, 14 * PAGE_SIZE).every((byte) => byte === 0x5a)).toBe(true);
  expect(owner.machine.u8.subarray(12 * PAGE_SIZE, 13 * PAGE_SIZE).every((byte) => byte === 0x5b)).toBe(true);
  expect([m2p(asker, 11), m2p(asker, 15), total(asker)]).toEqual([0xffffffff, 0xffffffff, 62]);
  expect(asker.discards).toEqual([
    [11, 1],
    [15, 1],
  ]);
  // There may be code in it, and it was stored by others.
  expect(pair.stored).toEqual([
    [13 * PAGE_SIZE, PAGE_SIZE],
    [12 * PAGE_SIZE, PAGE_SIZE],
  ]);
  // Neither page is there any more, and no entry takes two.
  expect(pair.transfer(11)).toBe(gnttab.GNTST_bad_page);
  expect(pair.transfer(16)).toBe(gnttab.GNTST_general_error);
  expect([total(asker), total(owner)]).toEqual([61, 63]);
});

test('a transfer that is not accepted: the page is gone, and the receiver has what it had', () => {
  const pair = new Pair();
  const { owner, asker } = pair;
  pair.grant(GREF, 12 - MFN_BASE, gnttab.GTF_accept_transfer);
  // It has no room.
  expect(pair.transfer(11)).toBe(gnttab.GNTST_general_error);
  removeFrame(owner.domain, 12);
  const refused: [number, number][] = [
    [gnttab.GTF_invalid, ASKER],
    [gnttab.GTF_permit_access, ASKER],
    [gnttab.GTF_transitive, ASKER],
    [COMPLETED, ASKER],
    [gnttab.GTF_accept_transfer | gnttab.GTF_sub_page, ASKER],
    [gnttab.GTF_accept_transfer, 7],
  ];
  refused.forEach(([flags, domid], i) => {
    pair.grant(GREF, 12 - MFN_BASE, flags, domid);
    expect(pair.transfer(20 + i)).toBe(gnttab.GNTST_general_error);
    expect(pair.flags(GREF)).toBe(flags);
  });
  expect(pair.transfer(31, 512)).toBe(gnttab.GNTST_general_error);
  expect(pair.transfer(32, 0xffffffff)).toBe(gnttab.GNTST_general_error);
  expect(pair.transfer(33, GREF, 77)).toBe(gnttab.GNTST_bad_domain);
  expect(pair.transfer(34, GREF, 0)).toBe(gnttab.GNTST_general_error);
  expect(pair.transfer(35, GREF, 0x7ff0)).toBe(gnttab.GNTST_bad_domain);
  pair.connected = false;
  pair.server.close();
  pair.client.close();
  expect(pair.transfer(36)).toBe(gnttab.GNTST_bad_domain);
  expect([total(asker), total(owner)]).toEqual([64 - 13, 63]);
  expect(pair.stored).toEqual([]);
});

test('a domain with a table of version 2 is served as any', () => {
  const pair = new Pair();
  const { owner, asker } = pair;
  owner.domain.i32[DOMAIN.grantVersion >> 2] = 2;
  const grant = (gref: number, words: readonly number[]): void =>
    owner.machine.u32.set(words, owner.machine.layout.grantTableOffset / 4 + gref * 4);
  const status = (gref: number): number => owner.machine.u16[statusIndex(owner.domain, gref)];
  grant(GREF, [gnttab.GTF_permit_access | (ASKER << 16), 0, MFN_BASE + 10, 0]);
  grant(GREF + 1, [gnttab.GTF_permit_access | gnttab.GTF_sub_page | (ASKER << 16), 8 | (8 << 16), MFN_BASE + 10, 0]);
  removeFrame(owner.domain, 12);
  grant(GREF + 2, [gnttab.GTF_accept_transfer | (ASKER << 16), 0, 12, 0]);
  const mapped = pair.map(DEVICE);
  expect([mapped.status, status(GREF)]).toEqual([0, IN_USE]);
  expect([pair.unmap(mapped.handle, 0, mapped.maddr), status(GREF)]).toEqual([0, 0]);
  expect(pair.map(DEVICE, GREF + 1).status).toBe(gnttab.GNTST_general_error);
  owner.machine.u8.set([1, 2, 3], 10 * PAGE_SIZE + 8);
  const copy = (offset: number): number => {
    asker.setWords(ARG, [GREF + 1, 0, OWNER | (offset << 16), 0, MFN_BASE + 4, 0, 0x7ff0, 0, 3 | (1 << 16), 0]);
    expect(asker.call(grantTableOp, gnttab.GNTTABOP_copy, va(ARG), 1)).toBe(0);
    return asker.s16(ARG + 36);
  };
  expect([copy(8), copy(7), copy(14)]).toEqual([0, -1, -1]);
  expect([...asker.machine.u8.subarray(4 * PAGE_SIZE, 4 * PAGE_SIZE + 3)]).toEqual([1, 2, 3]);
  asker.machine.u8.fill(0x5a, 11 * PAGE_SIZE, 12 * PAGE_SIZE);
  expect(pair.transfer(11, GREF + 2)).toBe(0);
  const at = owner.machine.layout.grantTableOffset / 4 + (GREF + 2) * 4;
  expect([...owner.machine.u32.slice(at, at + 4)]).toEqual([COMPLETED | (ASKER << 16), 0, MFN_BASE + 12, 0]);
  expect(owner.machine.u8[12 * PAGE_SIZE]).toBe(0x5a);
  expect([status(GREF + 1), status(GREF + 2), pair.grants.inUse]).toEqual([0, 0, 0]);
});

test('a server refuses what is no message for it, and gives nothing away', () => {
  const message = (kind: number, words: number[]): peer.PeerMessage => ({
    kind,
    id: 1,
    body: new Uint8Array(Uint32Array.from(words).buffer),
  });
  const pair = new Pair();
  pair.grant(GREF, 10);
  const bad = [
    message(0, []),
    message(peer.PEER_HELLO, [ASKER, OWNER]),
    message(peer.PEER_BIND, [1]),
    message(peer.PEER_MAP, []),
    message(peer.PEER_MAP, [GREF]),
    message(peer.PEER_MAP, new Array<number>(130).fill(GREF)),
    message(peer.PEER_READ, [GREF, 0]),
    message(peer.PEER_WRITE, [2, GREF, 0, 4]),
    message(peer.PEER_WRITE, [1, GREF, 0, 4]),
    message(peer.PEER_WRITE, [0xffffffff, GREF, 0, 4]),
    message(peer.PEER_EVENT, [1]),
    message(peer.PEER_TRANSFER, [GREF]),
    message(peer.PEER_TRANSFER, new Array<number>(1026).fill(GREF)),
    message(99, [1, 2]),
  ];
  for (const one of bad) expect(pair.server.handle(one)).toBe(false);
  // What is not held cannot be released.
  pair.grants.map(GREF, true, ASKER);
  expect(pair.server.handle(message(peer.PEER_RELEASE, [GREF, 1]))).toBe(true);
  expect(pair.grants.inUse).toBe(1);
});

test('`PeerReader` joins pieces and refuses sizes that cannot be', () => {
  const message = peer.encodePeerMessage(peer.PEER_MAP, 7, [1, 2], Uint8Array.of(3));
  const reader = new peer.PeerReader();
  const found: peer.PeerMessage[] = [];
  for (const byte of [...message, ...message]) found.push(...(reader.take(Uint8Array.of(byte)) ?? []));
  expect(found.map(({ kind, id, body }) => [kind, id, [...body]])).toEqual(
    new Array(2).fill([peer.PEER_MAP, 7, [1, 0, 0, 0, 2, 0, 0, 0, 3]]),
  );
  for (const size of [0, 11, 0xffffffff]) {
    const words = Uint32Array.of(size, 1, 1);
    expect(new peer.PeerReader().take(new Uint8Array(words.buffer))).toBe(null);
  }
});
