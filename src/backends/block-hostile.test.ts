/** Frontends that mean no good. */
import { expect, test } from 'vitest';
import { discard, ERROR, Frontend, OKAY, READ, request, UNSUPPORTED, WRITE } from './test-disk.ts';
import { waitForValue } from './testing.ts';

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
