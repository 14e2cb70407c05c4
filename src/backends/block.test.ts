import { expect, test } from 'vitest';
import * as blkif from '../abi/io/blkif.ts';
import { ringSlots, SRING } from '../abi/io/ring.ts';
import type { DiskImage } from '../storage/disk-image.ts';
import { BlockDevice, type BlockOptions } from './block.ts';
import { FakeGuest, FrontRing, makeDevice, type TestDevice, waitForValue } from './testing.ts';
import { XenbusBackend } from './xenbus.ts';

const { BLKIF_REQUEST, BLKIF_RESPONSE } = blkif;

/** A disk in memory that can be told to wait or to fail, and keeps a record. */
class MemoryImage implements DiskImage {
  readonly format = 'raw';
  readonly readOnly = false;
  readonly bytes: Uint8Array;
  readonly calls: string[] = [];
  /** Requests wait here while it is set. */
  gate: Promise<void> | null = null;
  error: Error | null = null;
  sizeBytes: number;

  constructor(sectors: number) {
    this.bytes = Uint8Array.from({ length: sectors * 512 }, (_, i) => (i >> 9) + 1);
    this.sizeBytes = this.bytes.length;
  }

  async #call(call: string): Promise<void> {
    this.calls.push(call);
    if (this.gate !== null) await this.gate;
    await Promise.resolve();
    if (this.error !== null) throw this.error;
    this.calls.push(`${call} done`);
  }
  async read(offset: number, buffers: readonly Uint8Array[]): Promise<void> {
    await this.#call(`read ${offset} ${buffers.map((b) => b.length).join('+')}`);
    for (let at = offset, i = 0; i < buffers.length; at += buffers[i++].length)
      buffers[i].set(this.bytes.subarray(at, at + buffers[i].length));
  }
  async write(offset: number, buffers: readonly Uint8Array[]): Promise<void> {
    await this.#call(`write ${offset} ${buffers.map((b) => b.length).join('+')}`);
    for (let at = offset, i = 0; i < buffers.length; at += buffers[i++].length) this.bytes.set(buffers[i], at);
  }
  async flush(): Promise<void> {
    await this.#call('flush');
  }
  async discard(offset: number, lengthBytes: number): Promise<void> {
    await this.#call(`discard ${offset} ${lengthBytes}`);
  }
  async writeZeroes(): Promise<void> {}
  async resize(): Promise<void> {}
  async close(): Promise<void> {
    this.calls.push('close');
  }
}

interface Queue {
  readonly ring: FrontRing;
  readonly port: number;
}

interface Response {
  readonly id: number;
  readonly operation: number;
  readonly status: number;
}

class Frontend {
  readonly guest: FakeGuest;
  readonly image: MemoryImage;
  readonly device: TestDevice;
  readonly backend: XenbusBackend;
  readonly log: string[] = [];
  block!: BlockDevice;
  queues: Queue[] = [];

  static async make(options: Partial<BlockOptions> = {}, guest = new FakeGuest()): Promise<Frontend> {
    const frontend = new Frontend(guest, await makeDevice('vbd', 51712), options);
    await frontend.backend.start();
    return frontend;
  }

  private constructor(guest: FakeGuest, device: TestDevice, options: Partial<BlockOptions>) {
    this.guest = guest;
    this.device = device;
    this.image = new MemoryImage(64);
    this.backend = new XenbusBackend({
      store: device.dom0,
      path: device.backend,
      log: (line) => this.log.push(line),
      device: (bus) =>
        (this.block = new BlockDevice(guest, bus, {
          image: this.image,
          readOnly: false,
          cdrom: false,
          discards: true,
          sectorBytes: 512,
          ...options,
        })),
    });
  }

  async write(nodes: Record<string, string | number>): Promise<void> {
    for (const [name, value] of Object.entries(nodes))
      await this.device.guest.write(`${this.device.frontend}/${name}`, String(value));
  }

  /** Connects as a good frontend does. */
  async connect({ order = -1, queues = 1 } = {}): Promise<void> {
    this.queues = [];
    if (order >= 0) await this.write({ 'ring-page-order': order });
    if (queues > 1) await this.write({ 'multi-queue-num-queues': queues });
    for (let queue = 0; queue < queues; queue++) {
      const folder = queues === 1 ? '' : `queue-${queue}/`;
      const count = 1 << Math.max(order, 0);
      // Not side by side.
      const pages = Array.from({ length: count }, () => this.guest.allocatePage()).reverse();
      const port = this.guest.allocatePort();
      for (const [i, page] of pages.entries()) {
        this.guest.grant(1000 + queue * 16 + i, page);
        await this.write({ [order < 0 ? `${folder}ring-ref` : `${folder}ring-ref${i}`]: 1000 + queue * 16 + i });
      }
      await this.write({ [`${folder}event-channel`]: port });
      const slots = ringSlots(count * 4096, BLKIF_REQUEST.SIZE);
      this.queues.push({ ring: new FrontRing(this.guest, pages, BLKIF_REQUEST.SIZE, slots), port });
    }
    await this.write({ protocol: 'x86_64-abi', state: 3 });
    await waitForValue(this.device.dom0, `${this.device.backend}/state`, '4');
    await this.write({ state: 4 });
  }

  /** A page with a grant of the same number as it has. */
  page(fill: number, readOnly = false): { gref: number; bytes: Uint8Array } {
    const at = this.guest.allocatePage();
    const bytes = this.guest.memory.u8.subarray(at, at + 4096);
    bytes.fill(fill);
    return { gref: this.guest.grant(at / 4096, at, readOnly), bytes };
  }

  kick(queue = 0): void {
    this.queues[queue].ring.push();
    this.guest.send(this.queues[queue].port);
    this.guest.dispatch();
  }

  /** Waits for so many responses. */
  async responses(count: number, queue = 0): Promise<Response[]> {
    const found: Response[] = [];
    for (let turn = 0; found.length < count && turn < 200; turn++) {
      for (const bytes of this.queues[queue].ring.take(BLKIF_RESPONSE.SIZE)) {
        const view = new DataView(bytes.buffer);
        found.push({ id: Number(view.getBigUint64(0, true)), operation: bytes[8], status: view.getInt16(10, true) });
      }
      await new Promise((resolve) => setTimeout(resolve, 1));
      this.guest.dispatch();
    }
    return found;
  }

  /** One request alone: its status. */
  async ask(bytes: Uint8Array): Promise<number> {
    this.queues[0].ring.put(bytes);
    this.kick();
    const [response] = await this.responses(1);
    return response.status;
  }
}

interface Segment {
  readonly gref: number;
  readonly first?: number;
  readonly last?: number;
}

function putSegments(view: DataView, at: number, segments: readonly Segment[]): void {
  for (const { gref, first = 0, last = 7 } of segments) {
    if (at + 8 > view.byteLength) break;
    view.setUint32(at, gref, true);
    view.setUint8(at + 4, first);
    view.setUint8(at + 5, last);
    at += 8;
  }
}

function request(
  operation: number,
  sector: number | bigint,
  segments: readonly Segment[],
  { id = 1, count = segments.length } = {},
): Uint8Array {
  const bytes = new Uint8Array(BLKIF_REQUEST.SIZE);
  const view = new DataView(bytes.buffer);
  bytes[BLKIF_REQUEST.operation] = operation;
  bytes[BLKIF_REQUEST.nr_segments] = count;
  view.setBigUint64(BLKIF_REQUEST.id, BigInt(id), true);
  view.setBigUint64(BLKIF_REQUEST.sector_number, BigInt(sector), true);
  putSegments(view, BLKIF_REQUEST.seg, segments);
  return bytes;
}

function discard(sector: number | bigint, sectors: number | bigint, flag = 0): Uint8Array {
  const bytes = request(blkif.BLKIF_OP_DISCARD, sector, []);
  bytes[1] = flag;
  new DataView(bytes.buffer).setBigUint64(24, BigInt(sectors), true);
  return bytes;
}

function indirect(operation: number, sector: number, gref: number, count: number): Uint8Array {
  const bytes = request(blkif.BLKIF_OP_INDIRECT, sector, []);
  const view = new DataView(bytes.buffer);
  bytes[1] = operation;
  view.setUint16(2, count, true);
  view.setUint32(28, gref, true);
  return bytes;
}

const { BLKIF_OP_READ: READ, BLKIF_OP_WRITE: WRITE, BLKIF_OP_FLUSH_DISKCACHE: FLUSH } = blkif;
const { BLKIF_OP_WRITE_BARRIER: BARRIER, BLKIF_RSP_OKAY: OKAY, BLKIF_RSP_ERROR: ERROR } = blkif;
const UNSUPPORTED = blkif.BLKIF_RSP_EOPNOTSUPP;

test('a disk is announced, connected and described', async () => {
  const f = await Frontend.make();
  const { dom0, backend } = f.device;
  expect(await dom0.read(`${backend}/state`)).toBe('2');
  expect(await dom0.read(`${backend}/feature-max-indirect-segments`)).toBe('256');
  await f.connect();
  expect(await dom0.read(`${backend}/sectors`)).toBe('64');
  expect(await dom0.read(`${backend}/info`)).toBe('0');
  expect(await dom0.read(`${backend}/sector-size`)).toBe('512');
  expect(await f.device.guest.read(`${backend}/feature-discard`)).toBe('1');
});

test('reads and writes move the sectors of each segment, in order', async () => {
  const f = await Frontend.make();
  await f.connect();
  const a = f.page(0xee);
  const b = f.page(0xee);
  expect(
    await f.ask(
      request(READ, 3, [
        { gref: b.gref, first: 2, last: 3 },
        { gref: a.gref, first: 7, last: 7 },
      ]),
    ),
  ).toBe(OKAY);
  expect([b.bytes[1023], b.bytes[1024], b.bytes[1536], b.bytes[2048]]).toEqual([0xee, 4, 5, 0xee]);
  expect([a.bytes[3583], a.bytes[3584], a.bytes[4095]]).toEqual([0xee, 6, 6]);
  expect(f.guest.stored.reduce((sum, [, size]) => sum + size, 0)).toBe(3 * 512);
  a.bytes.fill(0x77);
  expect(await f.ask(request(WRITE, 8, [{ gref: a.gref, first: 0, last: 1 }]))).toBe(OKAY);
  expect([
    f.image.bytes[8 * 512 - 1],
    f.image.bytes[8 * 512],
    f.image.bytes[10 * 512 - 1],
    f.image.bytes[10 * 512],
  ]).toEqual([8, 0x77, 0x77, 11]);
  expect(f.guest.mappings).toBe(1);
});

test('pages that lie side by side are one transfer', async () => {
  const f = await Frontend.make();
  await f.connect();
  const [a, b, c] = [f.page(0), f.page(0), f.page(0)];
  expect(await f.ask(request(READ, 0, [{ gref: a.gref }, { gref: b.gref }, { gref: c.gref, last: 3 }]))).toBe(OKAY);
  expect(f.image.calls[0]).toBe('read 0 10240');
  expect(await f.ask(request(READ, 0, [{ gref: a.gref, last: 6 }, { gref: b.gref }]))).toBe(OKAY);
  expect(f.image.calls[2]).toBe('read 0 3584+4096');
});

test('a read-only grant is good for a write to disk only', async () => {
  const f = await Frontend.make();
  await f.connect();
  const { gref } = f.page(1, true);
  expect(await f.ask(request(WRITE, 0, [{ gref }]))).toBe(OKAY);
  expect(await f.ask(request(READ, 0, [{ gref }]))).toBe(ERROR);
});

test('indirect requests carry 256 segments, and the response names the operation', async () => {
  const f = await Frontend.make();
  await f.connect();
  const page = f.page(0);
  const list = f.page(0);
  const segments = Array.from({ length: 64 }, (_, i): Segment => ({ gref: page.gref, first: i & 7, last: i & 7 }));
  putSegments(new DataView(list.bytes.buffer, list.bytes.byteOffset, 4096), 0, segments);
  f.queues[0].ring.put(indirect(READ, 0, list.gref, 64));
  f.kick();
  expect(await f.responses(1)).toEqual([{ id: 1, operation: READ, status: OKAY }]);
  expect(page.bytes[0]).toBe(57);
  expect(await f.ask(indirect(READ, 0, list.gref, 257))).toBe(ERROR);
  expect(await f.ask(indirect(READ, 0, list.gref, 0))).toBe(ERROR);
  expect(await f.ask(indirect(READ, 0, 77777, 1))).toBe(ERROR);
  expect(await f.ask(indirect(FLUSH, 0, list.gref, 1))).toBe(ERROR);
  expect(await f.ask(indirect(blkif.BLKIF_OP_INDIRECT, 0, list.gref, 1))).toBe(ERROR);
  expect(f.guest.mappings).toBe(1);
});

test('a flush is asked of the image after the writes that were answered, and its own data follows it', async () => {
  const f = await Frontend.make();
  await f.connect();
  const { gref } = f.page(9);
  expect(await f.ask(request(WRITE, 0, [{ gref }]))).toBe(OKAY);
  expect(await f.ask(request(FLUSH, 0, []))).toBe(OKAY);
  expect(await f.ask(request(FLUSH, 8, [{ gref }]))).toBe(OKAY);
  expect(f.image.calls.filter((call) => !call.endsWith('done'))).toEqual([
    'write 0 4096',
    'flush',
    'flush',
    'write 4096 4096',
  ]);
});

test('a barrier waits for all before it, and all after it wait for the barrier', async () => {
  const f = await Frontend.make();
  await f.connect();
  const { gref } = f.page(9);
  let open = () => {};
  f.image.gate = new Promise((resolve) => {
    open = resolve;
  });
  const { ring } = f.queues[0];
  ring.put(request(WRITE, 0, [{ gref }], { id: 1 }));
  ring.put(request(WRITE, 8, [{ gref }], { id: 2 }));
  ring.put(request(BARRIER, 16, [{ gref }], { id: 3 }));
  ring.put(request(WRITE, 24, [{ gref }], { id: 4 }));
  f.kick();
  expect(f.image.calls).toEqual(['write 0 4096', 'write 4096 4096']);
  open();
  expect((await f.responses(4)).map(({ id }) => id)).toEqual([1, 2, 3, 4]);
  expect(f.image.calls.slice(4)).toEqual([
    'flush',
    'flush done',
    'write 8192 4096',
    'write 8192 4096 done',
    'flush',
    'flush done',
    'write 12288 4096',
    'write 12288 4096 done',
  ]);
});

test('a discard gives sectors back; a secure one is refused, and so is any where none is offered', async () => {
  const f = await Frontend.make();
  await f.connect();
  expect(await f.ask(discard(8, 16))).toBe(OKAY);
  expect(f.image.calls[0]).toBe('discard 4096 8192');
  expect(await f.ask(discard(8, 16, blkif.BLKIF_DISCARD_SECURE))).toBe(UNSUPPORTED);
  const without = await Frontend.make({ discards: false });
  await without.connect();
  expect(await without.device.dom0.read(`${without.device.backend}/feature-discard`)).toBeNull();
  expect(await without.ask(discard(8, 16))).toBe(UNSUPPORTED);
});

test('a read-only disk says so and is not written', async () => {
  const f = await Frontend.make({ readOnly: true, cdrom: true });
  await f.connect();
  expect(await f.device.dom0.read(`${f.device.backend}/info`)).toBe('7');
  const { gref } = f.page(0xff);
  expect(await f.ask(request(WRITE, 0, [{ gref }]))).toBe(ERROR);
  expect(await f.ask(request(BARRIER, 0, [{ gref }]))).toBe(ERROR);
  expect(await f.ask(discard(0, 1))).toBe(ERROR);
  expect(await f.ask(request(READ, 0, [{ gref }]))).toBe(OKAY);
  expect(f.image.calls.filter((call) => !call.startsWith('read'))).toEqual([]);
});

test('sectors of 4096 bytes are asked for whole', async () => {
  const f = await Frontend.make({ sectorBytes: 4096 });
  await f.connect();
  expect(await f.device.dom0.read(`${f.device.backend}/sector-size`)).toBe('4096');
  const { gref } = f.page(0);
  expect(await f.ask(request(READ, 8, [{ gref }]))).toBe(OKAY);
  expect(await f.ask(request(READ, 4, [{ gref }]))).toBe(ERROR);
  expect(await f.ask(request(READ, 8, [{ gref, last: 3 }]))).toBe(ERROR);
});

test('several queues, each with a ring of several pages, serve at once', async () => {
  const f = await Frontend.make();
  await f.connect({ order: 2, queues: 3 });
  expect(f.queues[0].ring.slots).toBe(128);
  const pages = f.queues.map(() => f.page(0));
  // Slots that begin in one page and end in the next are among them.
  for (let id = 0; id < 300; id++) {
    for (const [queue, { ring }] of f.queues.entries()) {
      ring.put(request(READ, queue, [{ gref: pages[queue].gref, last: 0 }], { id: id + 1 }));
      f.kick(queue);
    }
    for (const queue of f.queues.keys())
      expect(await f.responses(1, queue)).toEqual([{ id: id + 1, operation: READ, status: OKAY }]);
  }
  expect(pages.map(({ bytes }) => bytes[0])).toEqual([1, 2, 3]);
});

test('a full ring is served with more requests than are under way at a time, and one event for many responses', async () => {
  const f = await Frontend.make();
  await f.connect({ order: 4 });
  const { gref } = f.page(0);
  const { ring, port } = f.queues[0];
  expect(ring.slots).toBe(512);
  for (let id = 0; id < 512; id++) ring.put(request(READ, 0, [{ gref, last: 0 }], { id }));
  ring.word(SRING.rsp_event, 512);
  const before = f.guest.events.get(port) ?? 0;
  f.kick();
  for (let turn = 0; turn < 100 && ring.word(SRING.rsp_prod) !== 512; turn++)
    await new Promise((resolve) => setTimeout(resolve, 1));
  expect(f.guest.events.get(port)).toBe(before + 1);
  const responses = await f.responses(512);
  expect(new Set(responses.map(({ id }) => id)).size).toBe(512);
  expect(ring.word(SRING.req_event)).toBe(513);
});

test('an error of the image is an error of the request, and a line in the log', async () => {
  const f = await Frontend.make();
  await f.connect();
  f.image.error = new Error('disk.img: No space left on device');
  const { gref } = f.page(0);
  expect(await f.ask(request(WRITE, 0, [{ gref }]))).toBe(ERROR);
  expect(await f.ask(request(FLUSH, 0, []))).toBe(ERROR);
  expect(f.log[0]).toContain('disk.img: No space left on device');
  expect(f.guest.mappings).toBe(1);
});

test('a new size is told by the state', async () => {
  const f = await Frontend.make();
  await f.connect();
  let told = 0;
  await f.device.guest.watch(`${f.device.backend}/state`, 't', () => told++);
  f.image.sizeBytes = 128 * 512;
  await f.block.resized();
  await waitForValue(f.device.guest, `${f.device.backend}/sectors`, '128');
  expect(told).toBe(2);
});

test('a frontend that closes may come back with other rings; requests under way end first', async () => {
  const f = await Frontend.make();
  const { dom0, backend } = f.device;
  await f.connect();
  const { gref } = f.page(3);
  let open = () => {};
  f.image.gate = new Promise((resolve) => {
    open = resolve;
  });
  f.queues[0].ring.put(request(WRITE, 0, [{ gref }]));
  f.kick();
  await f.write({ state: 5 });
  await waitForValue(dom0, `${backend}/state`, '5');
  await f.write({ state: 6 });
  await new Promise((resolve) => setTimeout(resolve, 10));
  expect(await dom0.read(`${backend}/state`)).toBe('5');
  open();
  await waitForValue(dom0, `${backend}/state`, '6');
  expect(f.guest.mappings).toBe(0);
  await f.write({ state: 1 });
  await waitForValue(dom0, `${backend}/state`, '2');
  await f.connect();
  expect(await f.ask(request(READ, 0, [{ gref }]))).toBe(OKAY);
});

test('a device is unplugged when its frontend has closed', async () => {
  const f = await Frontend.make();
  const { dom0, backend } = f.device;
  await f.connect();
  await dom0.write(`${backend}/online`, '0');
  await dom0.write(`${backend}/state`, '5');
  await f.write({ state: 6 });
  await f.backend.gone;
  expect(await dom0.read(`${backend}/state`)).toBe('6');
  expect(f.image.calls).toContain('close');
  expect(f.guest.mappings).toBe(0);
});

test('a device that no driver has looked at is unplugged at once', async () => {
  const f = await Frontend.make();
  await f.device.dom0.write(`${f.device.backend}/online`, '0');
  await f.device.dom0.write(`${f.device.backend}/state`, '5');
  await f.backend.gone;
  expect(await f.device.dom0.read(`${f.device.backend}/state`)).toBe('6');
});

test('a device whose nodes are removed is gone', async () => {
  const f = await Frontend.make();
  await f.connect();
  await f.device.dom0.remove(f.device.frontend);
  await f.device.dom0.remove(f.device.backend);
  await f.backend.gone;
  expect(f.guest.mappings).toBe(0);
});

test('a device waits for its script', async () => {
  const f = await Frontend.make();
  await f.device.dom0.write(`${f.device.backend}/hotplug-status`, '');
  const connected = f.connect();
  await new Promise((resolve) => setTimeout(resolve, 20));
  expect(await f.device.dom0.read(`${f.device.backend}/state`)).toBe('2');
  await f.device.dom0.write(`${f.device.backend}/hotplug-status`, 'connected');
  await connected;
});

test('a device without a script waits for none', async () => {
  const f = await Frontend.make();
  await f.device.dom0.remove(`${f.device.backend}/hotplug-status`);
  await f.connect();
  const g = await Frontend.make();
  await g.device.dom0.remove(`${g.device.backend}/hotplug-status`);
  await g.device.dom0.write(`${g.device.backend}/script`, '/etc/xen/scripts/block');
  const connected = g.connect();
  await new Promise((resolve) => setTimeout(resolve, 20));
  expect(await g.device.dom0.read(`${g.device.backend}/state`)).toBe('2');
  await g.device.dom0.write(`${g.device.backend}/hotplug-status`, 'connected');
  await connected;
});

// --- frontends that mean no good

test('a request that makes no sense is answered with an error, and the device lives on', async () => {
  const f = await Frontend.make();
  await f.connect();
  const { gref } = f.page(5);
  const readOnly = f.page(5, true).gref;
  const bad: [string, Uint8Array, number][] = [
    ['no segments', request(READ, 0, []), ERROR],
    ['12 segments', request(READ, 0, [{ gref }], { count: 12 }), ERROR],
    ['255 segments', request(WRITE, 0, [{ gref }], { count: 255 }), ERROR],
    ['sectors that run backwards', request(READ, 0, [{ gref, first: 3, last: 2 }]), ERROR],
    ['sector 8 of a page', request(READ, 0, [{ gref, first: 0, last: 8 }]), ERROR],
    ['sector 255 of a page', request(READ, 0, [{ gref, first: 255, last: 255 }]), ERROR],
    ['a grant of nothing', request(READ, 0, [{ gref }, { gref: 4000 }]), ERROR],
    ['grant 2^32-1', request(READ, 0, [{ gref: 0xffffffff }]), ERROR],
    ['a grant that may not be written', request(READ, 0, [{ gref: readOnly }]), ERROR],
    ['behind the end', request(READ, 64, [{ gref, last: 0 }]), ERROR],
    ['over the end', request(WRITE, 57, [{ gref }]), ERROR],
    ['sector 2^32', request(READ, 1n << 32n, [{ gref }]), ERROR],
    ['sector 2^55', request(READ, 1n << 55n, [{ gref }]), ERROR],
    ['sector 2^64-1', request(WRITE, (1n << 64n) - 1n, [{ gref }]), ERROR],
    ['a discard over the end', discard(60, 5), ERROR],
    ['a discard of 2^63 sectors', discard(0, 1n << 63n), ERROR],
    ['a discard of 2^64-1 sectors', discard((1n << 64n) - 1n, (1n << 64n) - 1n), ERROR],
    ['operation 4', request(4, 0, [{ gref }]), UNSUPPORTED],
    ['operation 7', request(7, 0, [{ gref }]), UNSUPPORTED],
    ['operation 255', request(255, 0, [{ gref }]), UNSUPPORTED],
  ];
  for (const [name, bytes, status] of bad) {
    expect(await f.ask(bytes), name).toBe(status);
    expect(f.guest.mappings, name).toBe(1);
  }
  expect(f.image.calls).toEqual([]);
  expect(await f.ask(request(READ, 0, [{ gref }]))).toBe(OKAY);
});

test('one page may be used many times in a request', async () => {
  const f = await Frontend.make();
  await f.connect();
  const { gref } = f.page(5);
  expect(
    await f.ask(
      request(
        READ,
        0,
        Array.from({ length: 11 }, () => ({ gref, first: 1, last: 5 })),
      ),
    ),
  ).toBe(OKAY);
  expect(f.guest.mappings).toBe(1);
});

test('indices that jump close the device, with a word in xenstore and in the log', async () => {
  for (const jump of [33, 0x7fffffff, 0x80000000, 0xffffffff]) {
    const f = await Frontend.make();
    await f.connect();
    f.queues[0].ring.reqProd = jump | 0;
    f.kick();
    await waitForValue(f.device.dom0, `${f.device.backend}/state`, '5');
    expect(await f.device.dom0.read('/local/domain/0/error/backend/vbd/7/51712/error')).toMatch(
      /^22 the ring holds more/,
    );
    expect(f.log).toHaveLength(1);
    expect(f.guest.mappings).toBe(0);
    // A frontend that closes now can start over.
    await f.write({ state: 6 });
    await waitForValue(f.device.dom0, `${f.device.backend}/state`, '6');
    await f.write({ state: 1 });
    await waitForValue(f.device.dom0, `${f.device.backend}/state`, '2');
    await f.connect();
  }
});

test('a ring torn away while requests are under way hurts nobody', async () => {
  const f = await Frontend.make();
  await f.connect();
  const { gref } = f.page(5);
  let open = () => {};
  f.image.gate = new Promise((resolve) => {
    open = resolve;
  });
  f.queues[0].ring.put(request(READ, 0, [{ gref }]));
  f.kick();
  f.guest.revoke(1000);
  f.guest.revoke(gref);
  f.guest.memory.u8.fill(0xff, f.queues[0].ring.pages[0], f.queues[0].ring.pages[0] + 64);
  open();
  await new Promise((resolve) => setTimeout(resolve, 5));
  f.guest.send(f.queues[0].port);
  f.guest.dispatch();
  await waitForValue(f.device.dom0, `${f.device.backend}/state`, '5');
});

test('a guest that never stops asking wrongly leaves room for others and does not flood the log', async () => {
  const f = await Frontend.make();
  await f.connect();
  const { ring, port } = f.queues[0];
  for (let round = 0; round < 100; round++) {
    for (let i = 0; i < ring.slots; i++) ring.put(request(READ, 1 << 20, [{ gref: 99999 }], { id: i }));
    ring.push();
    f.guest.send(port);
    f.guest.dispatch(1);
    expect(ring.take(16)).toHaveLength(32);
  }
  expect(f.log).toHaveLength(20);
  expect(f.log[19]).toContain('nothing more is said');
});

test('nodes that make no sense close the device before it is connected', async () => {
  const page = 1000;
  const good = { 'ring-ref': page, 'event-channel': 1, protocol: 'x86_64-abi' };
  const bad: [Record<string, string | number>, RegExp][] = [
    [{ ...good, protocol: 'x86_32-abi' }, /x86_64-abi is expected, found "x86_32-abi"/],
    [{ ...good, 'ring-ref': 1001 }, /ring-ref: 1001 grant no ring/],
    [{ ...good, 'ring-ref': 4294967296 }, /from 0 to 4294967295 is expected/],
    [{ ...good, 'ring-ref': '-1' }, /found "-1"/],
    [{ ...good, 'ring-ref': '0x10' }, /found "0x10"/],
    [{ ...good, 'ring-ref': 'a'.repeat(300) }, /at most 256 characters/],
    [{ 'event-channel': 1 }, /ring-ref: a number is expected, found nothing/],
    [{ 'ring-ref': page }, /event-channel: a number is expected, found nothing/],
    [{ ...good, 'event-channel': 9 }, /event-channel: 9 is no port/],
    [{ ...good, 'ring-page-order': 5 }, /from 0 to 4 is expected/],
    [{ ...good, 'ring-page-order': 1 }, /ring-ref0: a number is expected/],
    [{ ...good, 'multi-queue-num-queues': 0 }, /from 1 to 4 is expected/],
    [{ ...good, 'multi-queue-num-queues': 5 }, /from 1 to 4 is expected/],
    [{ ...good, 'multi-queue-num-queues': 2 }, /queue-0\/event-channel: a number is expected/],
    [{ state: 8.5 }, /saw state NaN at frontend/],
    [{ state: 9 }, /saw state 9 at frontend/],
  ];
  for (const [nodes, message] of bad) {
    const f = await Frontend.make();
    f.guest.grant(page, f.guest.allocatePage());
    f.guest.allocatePort();
    await f.write({ state: 3, ...nodes, ...('state' in nodes ? {} : { state: 3 }) });
    await waitForValue(f.device.dom0, `${f.device.backend}/state`, '5');
    expect(await f.device.dom0.read('/local/domain/0/error/backend/vbd/7/51712/error')).toMatch(message);
    expect(f.log.join()).toMatch(message);
    expect(f.guest.mappings).toBe(0);
  }
});

test('a ring whose indices make no sense is not connected to', async () => {
  const f = await Frontend.make();
  const page = f.guest.allocatePage();
  f.guest.grant(1000, page);
  f.guest.memory.i32[page / 4] = 40;
  await f.write({ 'ring-ref': 1000, 'event-channel': f.guest.allocatePort(), state: 3 });
  await waitForValue(f.device.dom0, `${f.device.backend}/state`, '5');
});
