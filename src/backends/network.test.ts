import { afterEach, describe, expect, test } from 'vitest';
import * as netif from '../abi/io/netif.ts';
import { SRING } from '../abi/io/ring.ts';
import { sumBytes } from '../network/checksum.ts';
import {
  CHECKSUM_COMPLETE,
  CHECKSUM_PARTIAL,
  CHECKSUM_VALID,
  Frame,
  type FramePort,
  GSO_NONE,
  GSO_TCPV4,
  type NetworkEnd,
} from '../network/frame.ts';
import { GUEST_MAC, tcpFrame } from '../network/testing.ts';
import { NetworkDevice } from './network.ts';
import { FakeGuest, FrontRing, makeDevice, waitForValue } from './testing.ts';
import { XenbusBackend } from './xenbus.ts';

interface Seen {
  readonly bytes: Uint8Array;
  readonly checksum: number;
  readonly gsoType: number;
  readonly gsoSize: number;
}

/** A network that keeps what it gets. */
class FakeNetwork implements NetworkEnd {
  device: FramePort | null = null;
  readonly seen: Seen[] = [];
  closed = false;
  /** Frames that it takes before it is full. */
  roomLeft = Number.POSITIVE_INFINITY;
  rooms = 0;

  connect(device: FramePort): void {
    this.device = device;
  }
  close(): void {
    this.closed = true;
  }
  send(frame: Frame): boolean {
    if (this.roomLeft <= 0) return false;
    this.roomLeft--;
    const bytes = new Uint8Array(frame.length);
    frame.copyTo(bytes, 0);
    this.seen.push({ bytes, checksum: frame.checksum, gsoType: frame.gsoType, gsoSize: frame.gsoSize });
    return true;
  }
  flush(): void {}
  room(): void {
    this.rooms++;
  }
}

const FEATURES = {
  'request-rx-copy': '1',
  'feature-rx-notify': '1',
  'feature-sg': '1',
  'feature-gso-tcpv4': '1',
  'feature-gso-tcpv6': '1',
  'feature-ipv6-csum-offload': '1',
};

interface Timer {
  readonly atMs: number;
  readonly callback: () => void;
}

const open: XenbusBackend[] = [];
afterEach(async () => {
  for (const backend of open.splice(0)) await backend.stop();
});

async function setUp(
  options: { nodes?: Record<string, string>; onlyMac?: Uint8Array; rate?: { bytes: number; periodUs: number } } = {},
) {
  const guest = new FakeGuest();
  const device = await makeDevice('vif', 0);
  const network = new FakeNetwork();
  const log: string[] = [];
  const clock = { nowMs: 0, timers: [] as Timer[] };
  const backend = new XenbusBackend({
    store: device.dom0,
    path: device.backend,
    log: (line) => log.push(line),
    device: (bus) =>
      new NetworkDevice(guest, bus, {
        network,
        onlyMac: options.onlyMac ?? null,
        rate: options.rate ?? null,
        nowMs: () => clock.nowMs,
        setTimer: (delayMs, callback) => {
          const timer = { atMs: clock.nowMs + delayMs, callback };
          clock.timers.push(timer);
          return () => void clock.timers.splice(clock.timers.indexOf(timer), 1);
        },
      }),
  });
  open.push(backend);
  await backend.start();
  const tx = new FrontRing(guest, [guest.allocatePage()], 12, 256);
  const rx = new FrontRing(guest, [guest.allocatePage()], 8, 256);
  const [txRef, rxRef] = [guest.grant(8, tx.pages[0]), guest.grant(9, rx.pages[0])];
  const [txPort, rxPort] = [guest.allocatePort(), guest.allocatePort()];
  const nodes: Record<string, string> = {
    'tx-ring-ref': String(txRef),
    'rx-ring-ref': String(rxRef),
    'event-channel-tx': String(txPort),
    'event-channel-rx': String(rxPort),
    ...FEATURES,
    ...options.nodes,
  };
  const connect = async (state = '4'): Promise<void> => {
    for (const [name, value] of Object.entries(nodes))
      if (value !== '') await device.guest.write(`${device.frontend}/${name}`, value);
    await device.guest.write(`${device.frontend}/state`, '4');
    await waitForValue(device.dom0, `${device.backend}/state`, state);
  };
  const advance = (ms: number): void => {
    clock.nowMs += ms;
    for (const timer of clock.timers.filter((t) => t.atMs <= clock.nowMs)) {
      clock.timers.splice(clock.timers.indexOf(timer), 1);
      timer.callback();
    }
    guest.dispatch();
  };
  return { guest, device, network, log, tx, rx, txPort, rxPort, connect, advance, clock };
}

type Rig = Awaited<ReturnType<typeof setUp>>;

interface Slot {
  gref?: number;
  offset?: number;
  flags?: number;
  id?: number;
  size?: number;
}

const txSlot = ({ gref = 20, offset = 0, flags = 0, id = 0, size = 60 }: Slot): Uint8Array => {
  const bytes = new Uint8Array(12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, gref, true);
  view.setUint16(4, offset, true);
  view.setUint16(6, flags, true);
  view.setUint16(8, id, true);
  view.setUint16(10, size, true);
  return bytes;
};

const extra = (type: number, flags = 0, gsoSize = 0, gsoType = 0): Uint8Array => {
  const bytes = new Uint8Array(12);
  bytes[0] = type;
  bytes[1] = flags;
  bytes[2] = gsoSize & 0xff;
  bytes[3] = gsoSize >> 8;
  bytes[4] = gsoType;
  return bytes;
};

/** Puts requests on the tx ring, shows them, and lets the backend run. */
function transmit(rig: Rig, ...slots: Uint8Array[]): { id: number; status: number }[] {
  for (const slot of slots) rig.tx.put(slot);
  rig.tx.push();
  rig.guest.send(rig.txPort);
  rig.guest.dispatch();
  return rig.tx.take(4).map((r) => {
    const view = new DataView(r.buffer);
    return { id: view.getUint16(0, true), status: view.getInt16(2, true) };
  });
}

/** Grants so many pages of the guest from reference 20 on, with the bytes in them. */
function dataPages(rig: Rig, bytes: Uint8Array): void {
  for (let at = 0, gref = 20; at < bytes.length; at += 4096, gref++) {
    const page = rig.guest.allocatePage();
    rig.guest.grant(gref, page, true);
    rig.guest.memory.u8.set(bytes.subarray(at, at + 4096), page);
  }
}

/** Puts pages on the rx ring, with ids from `first` on; byte offsets of the pages by id. */
function post(rig: Rig, count: number, first = 0): number[] {
  const pages: number[] = [];
  for (let i = 0; i < count; i++) {
    const page = rig.guest.allocatePage();
    const gref = rig.guest.grant(100 + first + i, page);
    pages.push(page);
    const bytes = new Uint8Array(8);
    const view = new DataView(bytes.buffer);
    view.setUint16(0, first + i, true);
    view.setUint32(4, gref, true);
    rig.rx.put(bytes);
  }
  rig.rx.push();
  return pages;
}

function received(rig: Rig): { id: number; offset: number; flags: number; status: number; bytes: Uint8Array }[] {
  return rig.rx.take(8).map((bytes) => {
    const view = new DataView(bytes.buffer);
    return {
      id: view.getUint16(0, true),
      offset: view.getUint16(2, true),
      flags: view.getUint16(4, true),
      status: view.getInt16(6, true),
      bytes,
    };
  });
}

const plain = (length: number): Uint8Array => Uint8Array.from({ length }, (_, i) => (i * 7 + 3) & 0xff);
const send = (rig: Rig, bytes: Uint8Array, change: (frame: Frame) => void = () => {}): boolean => {
  const frame = new Frame().set(bytes, bytes.length);
  change(frame);
  const taken = rig.network.device!.send(frame);
  rig.network.device!.flush();
  return taken;
};

describe('the handshake', () => {
  test('offers what a frontend needs, and connects', async () => {
    const rig = await setUp();
    const read = (name: string): Promise<string | null> => rig.device.dom0.read(`${rig.device.backend}/${name}`);
    expect(await read('feature-rx-copy')).toBe('1');
    expect(await read('feature-sg')).toBe('1');
    expect(await read('feature-gso-tcpv4')).toBe('1');
    await rig.connect();
    expect(rig.log).toEqual([]);
  });

  test('takes one event channel for both rings', async () => {
    const rig = await setUp({ nodes: { 'event-channel-tx': '', 'event-channel-rx': '', 'event-channel': '1' } });
    await rig.connect();
    dataPages(rig, plain(60));
    expect(transmit(rig, txSlot({ id: 5 }))).toEqual([{ id: 5, status: 0 }]);
  });

  test.each([
    ['request-rx-copy', '0', 'request-rx-copy: 1 is expected'],
    ['tx-ring-ref', '77', 'tx-ring-ref: 77 grants no ring'],
    ['rx-ring-ref', 'x', 'a number from 0'],
    ['event-channel-rx', '99', 'event-channel: 99 is no port for Dom0'],
    ['multi-queue-num-queues', '2', 'a number from 1 to 1 is expected'],
  ])('refuses %s = %s and lets everything go', async (name, value, message) => {
    const rig = await setUp({ nodes: { [name]: value } });
    await rig.connect('5');
    expect(rig.log.join()).toContain(message);
    expect(rig.guest.mappings).toBe(0);
  });

  test('a frontend that goes releases everything, and may come back', async () => {
    const rig = await setUp();
    await rig.connect();
    await rig.device.guest.write(`${rig.device.frontend}/state`, '6');
    await waitForValue(rig.device.dom0, `${rig.device.backend}/state`, '6');
    expect(rig.guest.mappings).toBe(0);
    expect(send(rig, plain(60))).toBe(true);
    await rig.device.guest.write(`${rig.device.frontend}/state`, '1');
    await waitForValue(rig.device.dom0, `${rig.device.backend}/state`, '2');
    await rig.connect();
    post(rig, 4);
    expect(send(rig, plain(60))).toBe(true);
    expect(received(rig)).toHaveLength(1);
  });
});

describe('from the guest', () => {
  test('a packet in one slot arrives as it is', async () => {
    const rig = await setUp();
    await rig.connect();
    dataPages(rig, plain(300));
    expect(transmit(rig, txSlot({ offset: 100, size: 200, id: 3 }))).toEqual([{ id: 3, status: 0 }]);
    expect(rig.network.seen[0].bytes).toEqual(plain(300).slice(100));
    expect(rig.network.seen[0].checksum).toBe(CHECKSUM_COMPLETE);
    expect(rig.guest.mappings).toBe(2);
    expect(rig.guest.events.get(rig.txPort)).toBe(1);
    expect(transmit(rig, txSlot({ offset: 0, size: 3, id: 4 }))).toEqual([{ id: 4, status: -1 }]);
    expect(rig.network.device).toMatchObject({
      traffic: { received: { bytes: 200, frames: 1, errors: 1, dropped: 0 } },
    });
  });

  test('where only its own address may send, a frame from another one is dropped, and the guest goes on', async () => {
    const rig = await setUp({ onlyMac: GUEST_MAC });
    await rig.connect();
    const own = tcpFrame({ payload: plain(100) });
    const forged = own.slice();
    forged[11] ^= 1;
    dataPages(rig, forged);
    expect(transmit(rig, txSlot({ size: forged.length, id: 1 }))).toEqual([
      { id: 1, status: netif.XEN_NETIF_RSP_DROPPED },
    ]);
    dataPages(rig, own);
    expect(transmit(rig, txSlot({ size: own.length, id: 2 }))).toEqual([{ id: 2, status: 0 }]);
    expect(rig.network.seen.map(({ bytes }) => bytes)).toEqual([own]);
    expect(rig.network.device).toMatchObject({ traffic: { received: { frames: 1, errors: 0, dropped: 1 } } });
  });

  test('a chain of fragments with GSO becomes one frame, and each slot gets its response', async () => {
    const rig = await setUp();
    await rig.connect();
    const packet = tcpFrame({ payload: plain(10_000) });
    dataPages(rig, packet);
    const flags = netif.XEN_NETTXF_csum_blank | netif.XEN_NETTXF_data_validated;
    const responses = transmit(
      rig,
      txSlot({ id: 1, size: packet.length, flags: flags | netif.XEN_NETTXF_more_data | netif.XEN_NETTXF_extra_info }),
      extra(netif.XEN_NETIF_EXTRA_TYPE_GSO, 0, 1448, netif.XEN_NETIF_GSO_TYPE_TCPV4),
      txSlot({ id: 2, gref: 21, size: 4096, flags: netif.XEN_NETTXF_more_data }),
      txSlot({ id: 3, gref: 22, size: packet.length - 8192 }),
    );
    expect(responses.map((r) => r.status)).toEqual([0, netif.XEN_NETIF_RSP_NULL, 0, 0]);
    expect([responses[0].id, responses[2].id, responses[3].id]).toEqual([1, 2, 3]);
    const { bytes, ...rest } = rig.network.seen[0];
    expect(bytes).toEqual(packet);
    expect(rest).toEqual({ checksum: CHECKSUM_PARTIAL, gsoType: GSO_TCPV4, gsoSize: 1448 });
  });

  test('data_validated alone is good data', async () => {
    const rig = await setUp();
    await rig.connect();
    dataPages(rig, plain(60));
    transmit(rig, txSlot({ flags: netif.XEN_NETTXF_data_validated }));
    expect(rig.network.seen[0].checksum).toBe(CHECKSUM_VALID);
  });

  test('a network without room stops the ring, and goes on with the same frame', async () => {
    const rig = await setUp();
    await rig.connect();
    dataPages(rig, plain(60));
    rig.network.roomLeft = 1;
    const responses = transmit(rig, ...[1, 2, 3, 4].map((id) => txSlot({ id, size: 40 + id })));
    // The second has been copied, so the guest has its page back.
    expect(responses.map((r) => r.id)).toEqual([1, 2]);
    rig.network.roomLeft = 10;
    rig.network.device!.room();
    rig.guest.dispatch();
    expect(rig.network.seen.map((f) => f.bytes.length)).toEqual([41, 42, 43, 44]);
    expect(rig.tx.take(4)).toHaveLength(2);
  });

  test('a rate is kept: what exceeds the credit waits for the next period', async () => {
    const rig = await setUp({ rate: { bytes: 1000, periodUs: 50_000 } });
    await rig.connect();
    dataPages(rig, plain(600));
    transmit(rig, ...[1, 2, 3, 4].map((id) => txSlot({ id, size: 600 })));
    expect(rig.network.seen).toHaveLength(1);
    rig.advance(49);
    expect(rig.network.seen).toHaveLength(1);
    // 400 left over and 1000 new.
    rig.advance(1);
    expect(rig.network.seen).toHaveLength(3);
    rig.advance(50);
    expect(rig.network.seen).toHaveLength(4);
  });

  test('a guest that never stops sending leaves room for others', async () => {
    const rig = await setUp();
    await rig.connect();
    dataPages(rig, plain(60));
    rig.guest.dispatch();
    for (let i = 0; i < 256; i++) rig.tx.put(txSlot({ id: i }));
    rig.tx.push();
    rig.guest.send(rig.txPort);
    rig.guest.dispatch(1);
    expect(rig.network.seen).toHaveLength(256);
    expect(rig.tx.take(4)).toHaveLength(256);
  });
});

describe('what is wrong with one packet fails that packet', () => {
  test.each([
    ['a reference that grants nothing', [txSlot({ gref: 12345, id: 9 })]],
    ['a frame shorter than its header', [txSlot({ size: 13, id: 9 })]],
    ['no data at all', [txSlot({ size: 0, id: 9 })]],
    ['a missing checksum where there is no TCP or UDP', [txSlot({ flags: netif.XEN_NETTXF_csum_blank, id: 9 })]],
  ])('%s', async (_name, slots) => {
    const rig = await setUp();
    await rig.connect();
    dataPages(rig, plain(60));
    expect(transmit(rig, ...slots)).toEqual([{ id: 9, status: netif.XEN_NETIF_RSP_ERROR }]);
    expect(transmit(rig, txSlot({ id: 10 }))).toEqual([{ id: 10, status: 0 }]);
    expect(rig.network.seen).toHaveLength(1);
    expect(rig.log).toEqual([]);
  });

  test('GSO of what is no TCP', async () => {
    const rig = await setUp();
    await rig.connect();
    dataPages(rig, plain(60));
    const gso = extra(netif.XEN_NETIF_EXTRA_TYPE_GSO, 0, 1448, netif.XEN_NETIF_GSO_TYPE_TCPV4);
    const first = txSlot({ flags: netif.XEN_NETTXF_extra_info, id: 9 });
    expect(transmit(rig, first, gso)[0].status).toBe(netif.XEN_NETIF_RSP_ERROR);
    expect(rig.network.seen).toHaveLength(0);
  });
});

describe('what breaks the protocol closes the device, and nothing else happens', () => {
  const more = netif.XEN_NETTXF_more_data;
  const withExtra = netif.XEN_NETTXF_extra_info;
  test.each<[string, Uint8Array[], string]>([
    ['a chain that does not end', [txSlot({ flags: more })], 'does not end'],
    ['an extra info that does not come', [txSlot({ flags: withExtra })], 'does not end'],
    ['an extra info of no type', [txSlot({ flags: withExtra }), extra(0)], 'extra info of type 0'],
    ['an extra info of an unknown type', [txSlot({ flags: withExtra }), extra(6)], 'extra info of type 6'],
    [
      'an endless chain of extra infos',
      [txSlot({ flags: withExtra }), ...Array.from({ length: 30 }, () => extra(4, 1))],
      'extra info of type 4',
    ],
    ['GSO of an unknown type', [txSlot({ flags: withExtra }), extra(1, 0, 100, 7)], 'GSO of type 7'],
    ['GSO of no size', [txSlot({ flags: withExtra }), extra(1, 0, 0, 1)], 'GSO of size 0'],
    ['a fragment beyond its page', [txSlot({ offset: 4000, size: 97 })], '97 bytes at 4000'],
    ['an offset beyond the page', [txSlot({ offset: 65535, size: 20 })], '20 bytes at 65535'],
    ['a packet larger than its first page', [txSlot({ size: 4097 })], '4097 bytes at 0'],
    [
      'fragments larger than the packet',
      [txSlot({ size: 100, flags: more }), txSlot({ size: 101 })],
      '101 bytes in a packet of 100',
    ],
    [
      'too many fragments',
      Array.from({ length: 21 }, (_, i) => txSlot({ size: i === 0 ? 2000 : 60, flags: more })),
      'more than 20 fragments',
    ],
  ])('%s', async (_name, slots, message) => {
    const rig = await setUp();
    await rig.connect();
    dataPages(rig, plain(60));
    transmit(rig, ...slots);
    await waitForValue(rig.device.dom0, `${rig.device.backend}/state`, '5');
    expect(rig.log).toHaveLength(1);
    expect(rig.log[0]).toContain(message);
    expect(await rig.device.dom0.read('/local/domain/0/error/backend/vif/7/0/error')).toContain(message);
    expect(rig.guest.mappings).toBe(0);
    expect(rig.network.seen).toHaveLength(0);
    // Whatever comes now is not looked at.
    rig.tx.word(SRING.req_prod, 0x12345678);
    rig.guest.send(rig.txPort);
    rig.guest.dispatch();
    expect(send(rig, plain(60))).toBe(true);
  });

  test.each([
    ['tx', 257],
    ['tx', -5],
    ['rx', 257],
    ['rx', 0x80000000],
  ])('req_prod of the %s ring jumps to %i', async (which, to) => {
    const rig = await setUp();
    await rig.connect();
    rig.guest.dispatch();
    rig[which as 'tx' | 'rx'].word(SRING.req_prod, to);
    rig.guest.send(which === 'tx' ? rig.txPort : rig.rxPort);
    rig.guest.dispatch();
    await waitForValue(rig.device.dom0, `${rig.device.backend}/state`, '5');
    expect(rig.log[0]).toContain(`more requests on the ${which} ring than it has slots`);
  });

  test('random slots never do harm: each run ends connected or closed', async () => {
    let seed = 1;
    const random = (n: number): number => {
      seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff;
      return (seed >>> 8) % n;
    };
    for (let run = 0; run < 40; run++) {
      const rig = await setUp();
      await rig.connect();
      dataPages(rig, plain(60));
      for (let burst = 0; burst < 10; burst++) {
        const slots = Array.from({ length: 1 + random(20) }, () =>
          random(4) === 0
            ? extra(random(8), random(2), random(65536), random(4))
            : txSlot({
                gref: random(3) === 0 ? random(1 << 30) : 20,
                offset: random(2) === 0 ? 0 : random(5000),
                size: random(2) === 0 ? 60 : random(5000),
                flags: random(16),
                id: random(65536),
              }),
        );
        transmit(rig, ...slots);
        post(rig, random(10), burst * 10);
        send(rig, tcpFrame({ payload: plain(random(20_000)) }), (f) => {
          f.gsoType = random(2) === 0 ? GSO_TCPV4 : GSO_NONE;
          f.gsoSize = 1448;
        });
      }
      await new Promise((resolve) => setTimeout(resolve, 5));
      const state = await rig.device.dom0.read(`${rig.device.backend}/state`);
      expect(['4', '5']).toContain(state);
      expect(rig.guest.mappings).toBe(state === '4' ? 2 : 0);
    }
  });
});

describe('to the guest', () => {
  test('a frame goes into the pages that the guest has put, and the guest hears of it', async () => {
    const rig = await setUp();
    await rig.connect();
    const pages = post(rig, 4);
    expect(send(rig, plain(5000), (f) => (f.checksum = CHECKSUM_VALID))).toBe(true);
    const [first, second] = received(rig);
    expect(first).toMatchObject({ id: 0, offset: 0, status: 4096 });
    expect(first.flags).toBe(netif.XEN_NETRXF_more_data | netif.XEN_NETRXF_data_validated);
    expect(second).toMatchObject({ id: 1, offset: 0, flags: 0, status: 904 });
    expect(rig.guest.memory.u8.slice(pages[0], pages[0] + 4096)).toEqual(plain(5000).slice(0, 4096));
    expect(rig.guest.memory.u8.slice(pages[1], pages[1] + 904)).toEqual(plain(5000).slice(4096));
    expect(rig.guest.events.get(rig.rxPort)).toBe(1);
    expect(rig.guest.stored).toEqual([
      [pages[0], 4096],
      [pages[1], 904],
    ]);
    expect(rig.guest.mappings).toBe(2);
  });

  test('a GSO frame says so in the slot after the first', async () => {
    const rig = await setUp();
    await rig.connect();
    post(rig, 8);
    const packet = tcpFrame({ payload: plain(6000) });
    const head = packet.slice(0, 54);
    send(rig, head, (f) => {
      f.setTail(packet, 54, packet.length - 54);
      f.checksum = CHECKSUM_PARTIAL;
      f.gsoType = GSO_TCPV4;
      f.gsoSize = 1460;
    });
    const slots = received(rig);
    expect(slots).toHaveLength(3);
    expect(slots[0].flags).toBe(
      netif.XEN_NETRXF_csum_blank |
        netif.XEN_NETRXF_data_validated |
        netif.XEN_NETRXF_extra_info |
        netif.XEN_NETRXF_more_data,
    );
    expect([...slots[1].bytes]).toEqual([netif.XEN_NETIF_EXTRA_TYPE_GSO, 0, 1460 & 255, 1460 >> 8, 1, 0, 0, 0]);
    expect(slots[2]).toMatchObject({ id: 2, flags: 0, status: packet.length - 4096 });
  });

  test('a frame without enough pages is refused whole, and the network hears when there are', async () => {
    const rig = await setUp();
    await rig.connect();
    rig.guest.dispatch();
    post(rig, 1);
    expect(send(rig, plain(9000))).toBe(false);
    expect(received(rig)).toEqual([]);
    // The guest looks at req_event to see whether to send an event: with the third page.
    expect(rig.rx.word(SRING.req_event)).toBe(3);
    post(rig, 1, 1);
    rig.guest.send(rig.rxPort);
    rig.guest.dispatch();
    expect(rig.network.rooms).toBe(0);
    post(rig, 1, 2);
    rig.guest.send(rig.rxPort);
    rig.guest.dispatch();
    expect(rig.network.rooms).toBe(1);
    expect(send(rig, plain(9000))).toBe(true);
    expect(received(rig)).toHaveLength(3);
  });

  test('a frontend that does not send events for its pages is asked from time to time', async () => {
    const rig = await setUp({ nodes: { 'feature-rx-notify': '0' } });
    await rig.connect();
    rig.guest.dispatch();
    expect(send(rig, plain(60))).toBe(false);
    post(rig, 1);
    rig.advance(30);
    expect(rig.network.rooms).toBe(1);
  });

  test('a page that is not granted fails its slot only', async () => {
    const rig = await setUp();
    await rig.connect();
    post(rig, 3);
    rig.guest.revoke(101);
    send(rig, plain(9000));
    expect(received(rig).map((s) => s.status)).toEqual([4096, netif.XEN_NETIF_RSP_ERROR, 808]);
  });

  test('without feature-gso-tcpv4 segments come one by one, with their checksums', async () => {
    const rig = await setUp({ nodes: { 'feature-gso-tcpv4': '0', 'feature-no-csum-offload': '1' } });
    await rig.connect();
    const pages = post(rig, 8);
    const packet = tcpFrame({ payload: plain(3000) });
    send(rig, packet, (f) => {
      f.checksum = CHECKSUM_PARTIAL;
      f.gsoType = GSO_TCPV4;
      f.gsoSize = 1460;
    });
    const slots = received(rig);
    expect(slots.map((s) => [s.flags, s.status])).toEqual([
      [0, 1514],
      [0, 1514],
      [0, 54 + 80],
    ]);
    for (const [i, slot] of slots.entries()) {
      const bytes = rig.guest.memory.u8.slice(pages[i], pages[i] + slot.status);
      const pseudo = sumBytes(bytes, 26, 8) + 6 + slot.status - 34;
      expect((sumBytes(bytes, 34, slot.status - 34) + pseudo) % 0xffff).toBe(0);
    }
  });

  test('without feature-sg what is larger than a page is lost', async () => {
    const rig = await setUp({ nodes: { 'feature-sg': '0' } });
    await rig.connect();
    post(rig, 8);
    expect(send(rig, plain(5000))).toBe(true);
    expect(send(rig, plain(4096))).toBe(true);
    expect(received(rig).map((s) => s.status)).toEqual([4096]);
  });
});
