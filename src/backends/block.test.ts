/** How a disk comes, changes and goes. */
import { expect, test } from 'vitest';
import { Frontend, OKAY, READ, request, WRITE } from './test-disk.ts';
import { waitForValue } from './testing.ts';

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

test('a disk grows while it is in use: the new size is told by the state', async () => {
  const f = await Frontend.make();
  await f.connect();
  const { dom0, backend } = f.device;
  let told = 0;
  await f.device.guest.watch(`${backend}/state`, 't', () => told++);
  await dom0.write(`${backend}/resize`, String(128 * 512));
  await waitForValue(f.device.guest, `${backend}/sectors`, '128');
  await waitForValue(dom0, `${backend}/resize`, null);
  expect(await dom0.read(`${backend}/resize-error`)).toBe('');
  expect(told).toBe(2);
  expect(f.image.calls).toContain(`resize ${128 * 512}`);
  const { gref } = f.page(1);
  expect(await f.ask(request(READ, 120, [{ gref }]))).toBe(OKAY);
});

test('a device of the host that has grown is found so; a disk that would shrink, or no size at all, is refused', async () => {
  const f = await Frontend.make();
  await f.connect();
  const { dom0, backend } = f.device;
  const ask = async (value: string): Promise<string | null> => {
    await dom0.write(`${backend}/resize`, value);
    await waitForValue(dom0, `${backend}/resize`, null);
    return await dom0.read(`${backend}/resize-error`);
  };
  f.image.bytes = new Uint8Array(96 * 512);
  expect(await ask('measure')).toBe('');
  expect(await dom0.read(`${backend}/sectors`)).toBe('96');
  expect(await ask(String(64 * 512))).toMatch(/^cannot shrink from 49152 to 32768 bytes/);
  for (const value of ['', '-1', '100', '1e9', '99999999999999999', 'half'])
    expect(await ask(value)).toMatch(/^a size in bytes, whole sectors of 512, is expected, found /);
  f.image.error = new Error('no space');
  expect(await ask(String(128 * 512))).toBe('no space');
  expect(await dom0.read(`${backend}/sectors`)).toBe('96');
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
