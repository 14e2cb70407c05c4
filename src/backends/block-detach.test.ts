/** A disk lets go of its guest and goes on, here or elsewhere. */
import { expect, test } from 'vitest';
import { SRING } from '../abi/io/ring.ts';
import { BlockDevice } from './block.ts';
import { Frontend, MemoryImage, OKAY, READ, request, WRITE } from './test-disk.ts';
import { XenbusBackend } from './xenbus.ts';

test('detached, it answers what is under way and lets go; attached again, it goes on with the rest, and each is done once', async () => {
  const f = await Frontend.make();
  await f.connect({ order: 4 });
  const { gref } = f.page(0);
  const { ring } = f.queues[0];
  let open = (): void => {};
  f.image.gate = new Promise((resolve) => {
    open = resolve;
  });
  for (let id = 0; id < 100; id++) ring.put(request(WRITE, id % 50, [{ gref, last: 0 }], { id }));
  f.kick();
  // It first ends what it is doing in xenstore.
  const detached = f.backend.detach();
  await new Promise((resolve) => setTimeout(resolve, 50));
  f.image.gate = null;
  open();
  await detached;
  // Nobody uses the guest's memory now, whoever asks.
  expect(f.guest.mappings).toBe(0);
  const shown = ring.word(SRING.rsp_prod);
  expect(shown).toBe(64);
  f.kick();
  await new Promise((resolve) => setTimeout(resolve, 5));
  expect(ring.word(SRING.rsp_prod)).toBe(shown);
  expect(f.image.calls.at(-1)).toBe('flush done');
  expect(await f.device.dom0.read(`${f.device.backend}/state`)).toBe('4');

  await f.backend.attach();
  const responses = await f.responses(100);
  expect(responses.map(({ id }) => id).sort((a, b) => a - b)).toEqual(Array.from({ length: 100 }, (_, id) => id));
  expect(f.image.calls.filter((call) => /^write .* done$/.test(call)).length).toBe(100);
  expect(f.log).toEqual([]);
});

test('another backend goes on with the frontend of a domain that was saved', async () => {
  const f = await Frontend.make();
  await f.connect();
  const { gref, bytes } = f.page(0);
  expect(await f.ask(request(READ, 0, [{ gref }]))).toBe(OKAY);
  await f.backend.detach();
  await f.backend.stop();
  let block: BlockDevice | null = null;
  const image = new MemoryImage(64);
  image.bytes.fill(0x77);
  const states: string[] = [];
  await f.device.guest.watch(`${f.device.backend}/state`, 'w', () => states.push('changed'));
  const next = new XenbusBackend({
    store: f.device.dom0,
    path: f.device.backend,
    log: (line) => f.log.push(line),
    device: (bus) =>
      (block = new BlockDevice(f.guest, bus, {
        image,
        readOnly: false,
        cdrom: false,
        discards: true,
        sectorBytes: 512,
      })),
  });
  await next.start(true);
  expect(block).not.toBeNull();
  expect(await f.ask(request(READ, 0, [{ gref }]))).toBe(OKAY);
  expect(bytes[0]).toBe(0x77);
  // The frontend has been told nothing; a new watch fires once.
  expect(states).toEqual(['changed']);
  await next.stop();
});
