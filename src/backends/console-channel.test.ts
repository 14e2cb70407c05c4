import { expect, test } from 'vitest';
import { XENCONS, XENCONS_IN_SIZE, XENCONS_OUT_SIZE } from '../abi/io/console.ts';
import { type ChannelEnd, ConsoleChannelDevice } from './console-channel.ts';
import { FakeGuest, makeDevice, type TestDevice, waitForValue } from './testing.ts';
import { XenbusBackend } from './xenbus.ts';

class FakeEnd implements ChannelEnd {
  text = '';
  room = true;
  paused = false;
  closed = false;
  guest: Parameters<ChannelEnd['attach']>[0] = null;

  write(bytes: Uint8Array): void {
    this.text += new TextDecoder().decode(bytes);
  }
  hasRoom(): boolean {
    return this.room;
  }
  attach(guest: Parameters<ChannelEnd['attach']>[0]): void {
    this.guest = guest;
  }
  setPaused(paused: boolean): void {
    this.paused = paused;
  }
  close(): void {
    this.closed = true;
  }
}

class Frontend {
  readonly guest = new FakeGuest();
  readonly end = new FakeEnd();
  readonly page = this.guest.allocatePage();
  readonly port = this.guest.allocatePort();
  readonly device: TestDevice;

  constructor(device: TestDevice) {
    this.device = device;
  }

  static async connect(ref: string | null = null): Promise<Frontend> {
    const frontend = new Frontend(await makeDevice('console', 1));
    const { guest, end, device, page, port } = frontend;
    const backend = new XenbusBackend({
      store: device.dom0,
      path: device.backend,
      log: () => {},
      device: () => new ConsoleChannelDevice(guest, end),
    });
    await backend.start();
    await device.guest.write(`${device.frontend}/ring-ref`, ref ?? String(guest.grant(9, page)));
    await device.guest.write(`${device.frontend}/port`, String(port));
    await device.guest.write(`${device.frontend}/state`, '3');
    await waitForValue(device.dom0, `${device.backend}/state`, ref === null ? '4' : '5');
    return frontend;
  }

  word(offset: number, value?: number): number {
    const index = (this.page + offset) >> 2;
    if (value !== undefined) this.guest.memory.i32[index] = value;
    return this.guest.memory.i32[index];
  }

  write(text: string): void {
    let prod = this.word(XENCONS.out_prod);
    for (const byte of new TextEncoder().encode(text))
      this.guest.memory.u8[this.page + XENCONS.out + (prod++ & (XENCONS_OUT_SIZE - 1))] = byte;
    this.word(XENCONS.out_prod, prod);
    this.guest.send(this.port);
    this.guest.dispatch();
  }

  /** Takes all input. */
  read(): string {
    let text = '';
    let cons = this.word(XENCONS.in_cons);
    for (; cons !== this.word(XENCONS.in_prod); cons++)
      text += String.fromCharCode(this.guest.memory.u8[this.page + XENCONS.in + (cons & (XENCONS_IN_SIZE - 1))]);
    this.word(XENCONS.in_cons, cons);
    this.guest.send(this.port);
    this.guest.dispatch();
    return text;
  }
}

test('bytes go both ways, and wait for whoever is slow', async () => {
  const frontend = await Frontend.connect();
  const { end } = frontend;
  frontend.write('hello');
  expect(end.text).toBe('hello');

  end.room = false;
  frontend.write(', world');
  expect(end.text).toBe('hello');
  end.room = true;
  end.guest?.onRoom();
  frontend.guest.dispatch();
  expect(end.text).toBe('hello, world');

  const sent = 'x'.repeat(70_000);
  end.guest?.input(new TextEncoder().encode(sent));
  expect(end.paused).toBe(true);
  let got = '';
  for (let turn = 0; turn < 100 && got.length < sent.length; turn++) got += frontend.read();
  expect(got).toBe(sent);
  expect(end.paused).toBe(false);
});

test('when the guest lets go, its page is released and the end waits for the next one', async () => {
  const frontend = await Frontend.connect();
  const { device, guest, end } = frontend;
  expect(guest.mappings).toBe(1);
  await device.guest.write(`${device.frontend}/state`, '6');
  await waitForValue(device.dom0, `${device.backend}/state`, '6');
  expect(guest.mappings).toBe(0);
  expect(end.guest).toBe(null);
  expect(end.closed).toBe(false);
  await device.dom0.remove(device.backend);
});

test('a ring that was not granted closes the device', async () => {
  const { guest, device } = await Frontend.connect('77');
  expect(guest.mappings).toBe(0);
  expect(await device.dom0.read('/local/domain/0/error/backend/console/7/1/error')).toMatch(
    /^22 .*ring-ref: 77 grants/,
  );
});
