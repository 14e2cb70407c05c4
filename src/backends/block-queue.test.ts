/** What a good frontend asks of a disk. */
import { expect, test } from 'vitest';
import * as blkif from '../abi/io/blkif.ts';
import { SRING } from '../abi/io/ring.ts';
import {
  BARRIER,
  discard,
  ERROR,
  FLUSH,
  Frontend,
  indirect,
  OKAY,
  putSegments,
  READ,
  request,
  type Segment,
  UNSUPPORTED,
  WRITE,
} from './test-disk.ts';

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
  // What makes no sense is answered, and not counted.
  expect(await f.ask(request(READ, 1e6, [{ gref: a.gref, first: 0, last: 0 }]))).toBe(ERROR);
  const traffic = { reads: 1, readSectors: 3, writes: 1, writtenSectors: 2, outOfRequests: 0 };
  expect({ ...f.backend.traffic }).toEqual(traffic);
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

test('what the image can do at once is answered within the call, and all else goes on beside it', async () => {
  const f = await Frontend.make();
  await f.connect();
  const [data, target] = [f.page(9), f.page(0)];
  const { ring, port } = f.queues[0];
  ring.put(request(WRITE, 8, [{ gref: data.gref }], { id: 1 }));
  ring.push();
  f.image.gate = new Promise((resolve) => setTimeout(resolve, 20));
  f.kick();
  f.image.isQuick = true;
  for (let id = 2; id < 6; id++) ring.put(request(id % 2 ? READ : WRITE, 0, [{ gref: target.gref, last: 3 }], { id }));
  const before = f.guest.events.get(port) ?? 0;
  f.kick();
  expect(ring.word(SRING.rsp_prod)).toBe(4);
  expect(f.guest.events.get(port)).toBe(before + 1);
  expect((await f.responses(5)).map(({ id, status }) => [id, status])).toEqual([
    [2, OKAY],
    [3, OKAY],
    [4, OKAY],
    [5, OKAY],
    [1, OKAY],
  ]);
  expect(f.image.calls).toEqual([
    'write 4096 4096',
    'write now 0 2048',
    'read now 0 2048',
    'write now 0 2048',
    'read now 0 2048',
    'write 4096 4096 done',
  ]);
  expect(f.guest.mappings).toBe(1);
});

test('a flush covers what was written at once before it, and nothing overtakes a barrier', async () => {
  const f = await Frontend.make();
  await f.connect();
  f.image.isQuick = true;
  const { gref } = f.page(5);
  const { ring } = f.queues[0];
  ring.put(request(WRITE, 0, [{ gref }], { id: 1 }));
  ring.put(request(FLUSH, 0, [], { id: 2 }));
  ring.put(request(BARRIER, 8, [{ gref }], { id: 3 }));
  ring.put(request(WRITE, 16, [{ gref }], { id: 4 }));
  f.kick();
  expect((await f.responses(4)).map(({ id }) => id)).toEqual([1, 2, 3, 4]);
  expect(f.image.calls.map((call) => call.replace(/ 4096$/, ''))).toEqual([
    'write now 0',
    'flush',
    'flush done',
    'flush',
    'flush done',
    'write 4096',
    'write 4096 4096 done',
    'flush',
    'flush done',
    'write now 8192',
  ]);
});

test('large requests that are done at once leave room for others', async () => {
  const f = await Frontend.make();
  await f.connect({ order: 4 });
  f.image.isQuick = true;
  const [pages, list] = [f.page(1), f.page(0)];
  const view = new DataView(list.bytes.buffer, list.bytes.byteOffset, 4096);
  putSegments(
    view,
    0,
    Array.from({ length: 8 }, () => ({ gref: pages.gref })),
  );
  const { ring, port } = f.queues[0];
  for (let id = 0; id < 512; id++) ring.put(indirect(READ, 0, list.gref, 8));
  ring.push();
  f.guest.send(port);
  f.guest.dispatch(1);
  // 32 KiB each: no more than 4 MiB in a call.
  expect(ring.word(SRING.rsp_prod)).toBeLessThanOrEqual(128);
  expect((await f.responses(512)).length).toBe(512);
});
