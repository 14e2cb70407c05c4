import { expect, test } from 'vitest';
import { XENFB_PAGE } from '../abi/io/fbif.ts';
import { FramebufferDevice } from './framebuffer.ts';
import { KeyboardDevice } from './keyboard.ts';
import { FakeGuest, makeDevice, type TestDevice, waitForValue } from './testing.ts';
import { XenbusBackend } from './xenbus.ts';

const MFN_BASE = 0x100000;

class Screen {
  readonly guest = new FakeGuest();
  readonly device: TestDevice;
  readonly seen: string[] = [];
  readonly log: string[] = [];
  readonly page = this.guest.allocatePage();
  readonly directory = this.guest.allocatePage();
  readonly port = this.guest.allocatePort();
  framebuffer!: FramebufferDevice;

  static async make(): Promise<Screen> {
    const screen = new Screen(await makeDevice('vfb', 0));
    const backend = new XenbusBackend({
      store: screen.device.dom0,
      path: screen.device.backend,
      log: (line) => screen.log.push(line),
      device: (bus) => (screen.framebuffer = new FramebufferDevice(screen.guest, bus)),
    });
    screen.framebuffer.viewer = {
      onDamage: (...area) => screen.seen.push(area.join()),
      onResize: () => screen.seen.push('resize'),
    };
    await backend.start();
    return screen;
  }

  private constructor(device: TestDevice) {
    this.device = device;
  }

  word(offset: number, value: number): void {
    this.guest.memory.i32[(this.page + offset) >> 2] = value;
  }

  /** 64x32 pixels of 32 bits: two pages, the second in front of the first. */
  fill(): void {
    const last = this.guest.allocatePage();
    const first = this.guest.allocatePage();
    this.word(XENFB_PAGE.width, 64);
    this.word(XENFB_PAGE.height, 32);
    this.word(XENFB_PAGE.line_length, 256);
    this.word(XENFB_PAGE.mem_length, 8192);
    this.word(XENFB_PAGE.depth, 32);
    this.word(XENFB_PAGE.pd, this.directory / 4096 + MFN_BASE);
    const entries = this.guest.memory.i32;
    entries[this.directory >> 2] = first / 4096 + MFN_BASE;
    entries[(this.directory >> 2) + 2] = last / 4096 + MFN_BASE;
    entries[(first >> 2) + 64 + 5] = 0x7f112233;
    entries[(last >> 2) + 1023] = 0x445566;
  }

  async connect(wanted: string): Promise<void> {
    const { guest, frontend, dom0, backend } = this.device;
    await guest.write(`${frontend}/page-ref`, String(this.page / 4096 + MFN_BASE));
    await guest.write(`${frontend}/event-channel`, String(this.port));
    await guest.write(`${frontend}/state`, '3');
    await waitForValue(dom0, `${backend}/state`, wanted);
  }

  event(slot: number, ...words: number[]): void {
    this.guest.memory.i32.set(words, (this.page + 2048 + (slot % 51) * 40) >> 2);
    this.word(XENFB_PAGE.out_prod, slot + 1);
    this.guest.send(this.port);
    this.guest.dispatch();
  }
}

test('the screen is the guest’s pages, in the order of its directory', async () => {
  const screen = await Screen.make();
  screen.fill();
  await screen.connect('4');
  const { framebuffer } = screen;
  expect([framebuffer.width, framebuffer.height]).toEqual([64, 32]);
  const line = new Uint32Array(64);
  framebuffer.readLine(5, 1, 2, line, 3);
  expect([line[3], line[4]]).toEqual([0x112233, 0]);
  framebuffer.readLine(0, 31, 64, line, 0);
  expect(line[63]).toBe(0x445566);
});

test('what has changed is told, within the screen', async () => {
  const screen = await Screen.make();
  screen.fill();
  await screen.connect('4');
  screen.seen.length = 0;
  screen.event(0, 2, 8, 4, 16, 8);
  screen.event(1, 2, -5, -5, 1000, 0x7fffffff);
  screen.event(2, 2, 64, 0, 1, 1);
  screen.event(3, 2, 0, 0, -1, 1);
  screen.event(4, 99, 0, 0, 1, 1);
  for (let slot = 5; slot < 120; slot++) screen.event(slot, 2, 1, 1, 1, 1);
  expect(screen.seen.slice(0, 3)).toEqual(['8,4,16,8', '0,0,64,32', '1,1,1,1']);
  expect(screen.seen).toHaveLength(2 + 115);
});

test('a screen may get another size; one that does not fit its memory is refused', async () => {
  const screen = await Screen.make();
  screen.fill();
  await screen.connect('4');
  screen.seen.length = 0;
  screen.event(0, 3, 32, 16, 128, 32, 4096);
  expect([screen.framebuffer.width, screen.framebuffer.height]).toEqual([32, 16]);
  expect(screen.seen).toEqual(['resize']);
  for (const bad of [
    [0, 16, 128, 32, 0],
    [32, -1, 128, 32, 0],
    [32, 16, 64, 32, 0],
    [32, 16, 128, 16, 0],
    [32, 65, 128, 32, 0],
    [32, 16, 128, 32, -4],
    [32, 16, 128, 32, 8188],
    [0x7fffffff, 0x7fffffff, 0x7ffffffc, 32, 0],
  ])
    screen.event(1, 3, ...bad);
  expect([screen.framebuffer.width, screen.framebuffer.height]).toEqual([32, 16]);
});

test('frontends that make no sense are refused', async () => {
  const bad: ((screen: Screen) => void)[] = [
    (screen) => screen.word(XENFB_PAGE.mem_length, 0),
    (screen) => screen.word(XENFB_PAGE.mem_length, -1),
    (screen) => screen.word(XENFB_PAGE.mem_length, 3 * 4096),
    (screen) => screen.word(XENFB_PAGE.pd, 5),
    (screen) => screen.word(XENFB_PAGE.pd + 4, -1),
    (screen) => screen.word(XENFB_PAGE.depth, 8),
    (screen) => screen.word(XENFB_PAGE.width, 100000),
    (screen) => screen.word(XENFB_PAGE.line_length, 255),
    (screen) => screen.word(XENFB_PAGE.height, 33),
  ];
  for (const spoil of bad) {
    const screen = await Screen.make();
    screen.fill();
    spoil(screen);
    await screen.connect('5');
    expect(screen.log).toHaveLength(1);
    const line = new Uint32Array(640);
    screen.framebuffer.readLine(0, 0, screen.framebuffer.width, line, 0);
  }
  const screen = await Screen.make();
  screen.fill();
  await screen.connect('4');
  screen.event(1000, 2, 0, 0, 1, 1);
  await waitForValue(screen.device.dom0, `${screen.device.backend}/state`, '5');
});

test('keys and places are put into the ring while there is room', async () => {
  const guest = new FakeGuest();
  const device = await makeDevice('vkbd', 0);
  const keyboard = new KeyboardDevice(guest);
  const backend = new XenbusBackend({
    store: device.dom0,
    path: device.backend,
    log: () => {},
    device: () => keyboard,
  });
  await backend.start();
  keyboard.key(30, true);
  const page = guest.allocatePage();
  const port = guest.allocatePort();
  await device.guest.write(`${device.frontend}/page-ref`, String(page / 4096 + MFN_BASE));
  await device.guest.write(`${device.frontend}/event-channel`, String(port));
  await device.guest.write(`${device.frontend}/request-abs-pointer`, '1');
  await device.guest.write(`${device.frontend}/state`, '3');
  await waitForValue(device.dom0, `${device.backend}/state`, '4');
  keyboard.key(30, true);
  keyboard.pointer(100, 200, 1);
  const words = guest.memory.i32;
  const event = (slot: number): number[] => [...words.subarray((page + 1024 + slot * 40) >> 2).subarray(0, 4)];
  expect(words[(page >> 2) + 1]).toBe(2);
  expect(event(0)).toEqual([0x103, 30, 0, 0]);
  expect(event(1)).toEqual([4, 100, 200, -1]);
  for (let i = 0; i < 100; i++) keyboard.key(31, false);
  expect(words[(page >> 2) + 1]).toBe(51);
  expect(guest.events.get(port)).toBe(51);
});
