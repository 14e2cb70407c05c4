/** The server with its viewers: over TCP, and over WebSockets with the client that Node has. */

import { once } from 'node:events';
import { connect, createServer } from 'node:net';
import { expect, onTestFinished, test } from 'vitest';
import { WebSocket as AnyWebSocket } from 'ws';
import { RfbServer, type RfbServerOptions } from './server.ts';
import { vncResponse } from './vnc-auth.ts';
import { isOwnOrigin } from './web-door.ts';

const WIDTH = 40;
const HEIGHT = 30;
const VERSION = 'RFB 003.008\n';
const KEY_A = 30;
const KEY_LEFTSHIFT = 42;
const BTN_LEFT = 0x110;

/** Some display that is free, out of the way of guests'. */
async function openServer(options: Partial<RfbServerOptions> = {}) {
  const keys: string[] = [];
  let wake = (): void => {};
  const framebuffer: RfbServerOptions['framebuffer'] = {
    width: WIDTH,
    height: HEIGHT,
    viewer: null,
    readLine: (x, y, count, into, at) => {
      for (let i = 0; i < count; i++) into[at + i] = (y << 8) | (x + i);
    },
  };
  const keyboard = {
    key: (keycode: number, pressed: boolean) => {
      keys.push(`${keycode} ${pressed ? 'down' : 'up'}`);
      wake();
    },
    pointer: () => {},
  };
  const server = await RfbServer.open({
    ...{ framebuffer, keyboard, name: 'Xen-x', listen: '127.0.0.1', display: 700, findUnused: true },
    ...{ password: null, websocket: true, ...options },
  });
  onTestFinished(() => server.close());
  /** So many keys and buttons that have gone down or up since the last call. */
  const next = async (count: number): Promise<string[]> => {
    while (keys.length < count)
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    return keys.splice(0, count);
  };
  return { server, next };
}

/** A viewer's end of any stream. */
class Viewer {
  readonly #say: (bytes: Uint8Array<ArrayBuffer>) => void;
  #received = Buffer.alloc(0);
  #wake = (): void => {};

  constructor(say: (bytes: Uint8Array<ArrayBuffer>) => void) {
    this.#say = say;
  }

  hear(bytes: Uint8Array): void {
    this.#received = Buffer.concat([this.#received, bytes]);
    this.#wake();
  }

  say(...bytes: number[]): void {
    this.#say(Uint8Array.from(bytes));
  }

  async take(count: number): Promise<Buffer> {
    while (this.#received.length < count)
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    const taken = this.#received.subarray(0, count);
    this.#received = this.#received.subarray(count);
    return taken;
  }

  async open(password: string | null = null): Promise<void> {
    expect((await this.take(12)).toString()).toBe(VERSION);
    this.say(...Buffer.from(VERSION));
    const type = password === null ? 1 : 2;
    expect([...(await this.take(2))]).toEqual([1, type]);
    this.say(type);
    if (password !== null) this.say(...vncResponse(password, await this.take(16)));
    expect((await this.take(4)).readUInt32BE(0)).toBe(0);
    this.say(1);
    const init = await this.take(24);
    expect([init.readUInt16BE(0), init.readUInt16BE(2)]).toEqual([WIDTH, HEIGHT]);
    expect((await this.take(init.readUInt32BE(20))).toString()).toBe('Xen-x');
  }

  /** The first picture, as it is. */
  async picture(): Promise<Uint32Array> {
    this.say(3, 0, 0, 0, 0, 0, 0, WIDTH, 0, HEIGHT);
    expect((await this.take(4)).readUInt16BE(2)).toBe(1);
    expect((await this.take(12)).readUInt16BE(4)).toBe(WIDTH);
    const pixels = await this.take(WIDTH * HEIGHT * 4);
    return Uint32Array.from({ length: WIDTH * HEIGHT }, (_, i) => pixels.readUInt32LE(i * 4));
  }
}

const PICTURE = Uint32Array.from({ length: WIDTH * HEIGHT }, (_, i) => (Math.floor(i / WIDTH) << 8) | (i % WIDTH));

async function byWeb(port: number | null, protocols: string[] = []): Promise<{ socket: WebSocket; viewer: Viewer }> {
  const socket = new WebSocket(`ws://127.0.0.1:${port}/`, protocols);
  socket.binaryType = 'arraybuffer';
  const viewer = new Viewer((bytes) => socket.send(bytes));
  socket.addEventListener('message', ({ data }) => viewer.hear(new Uint8Array(data as ArrayBuffer)));
  await new Promise<void>((resolve, reject) => {
    socket.addEventListener('open', () => resolve());
    socket.addEventListener('error', () => reject(new Error('no connection')));
  });
  return { socket, viewer };
}

test.each<[string | null, string[]]>([
  [null, []],
  ['secret', ['binary', 'base64']],
])('a viewer by WebSocket sees the picture, with password %j and subprotocols %j', async (password, protocols) => {
  const { server } = await openServer({ password });
  expect(server.webPort).toBe(server.port - 200);
  const { socket, viewer } = await byWeb(server.webPort, protocols);
  expect(socket.protocol).toBe(protocols[0] ?? '');
  await viewer.open(password);
  expect(await viewer.picture()).toEqual(PICTURE);
  socket.close();
});

test('there is no port for WebSockets unless it is asked for', async () => {
  const { server } = await openServer({ websocket: false });
  expect(server.webPort).toBeNull();
  await expect(byWeb(server.port - 200)).rejects.toThrow('no connection');
});

test('keys and buttons that a viewer held are released when it goes away, by TCP and by WebSocket', async () => {
  const { server, next } = await openServer();
  const press = (viewer: Viewer): void => {
    viewer.say(4, 1, 0, 0, 0, 0, 0xff, 0xe1);
    viewer.say(4, 1, 0, 0, 0, 0, 0, 0x61);
    viewer.say(4, 0, 0, 0, 0, 0, 0, 0x61);
    viewer.say(5, 1, 0, 1, 0, 1);
  };
  const pressed = [`${KEY_LEFTSHIFT} down`, `${KEY_A} down`, `${KEY_A} up`, `${BTN_LEFT} down`];
  const released = [`${KEY_LEFTSHIFT} up`, `${BTN_LEFT} up`];
  const socket = connect(server.port, '127.0.0.1');
  const byTcp = new Viewer((bytes) => socket.write(bytes));
  socket.on('data', (bytes) => byTcp.hear(bytes));
  await byTcp.open();
  const web = await byWeb(server.webPort);
  await web.viewer.open();
  press(byTcp);
  expect(await next(4)).toEqual(pressed);
  socket.destroy();
  expect(await next(2)).toEqual(released);
  press(web.viewer);
  expect(await next(4)).toEqual(pressed);
  web.socket.close();
  expect(await next(2)).toEqual(released);
});

/** What comes of a browser's connection from a page of that origin: 101, or why not. */
async function statusFrom(port: number | null, origin: string): Promise<number> {
  const socket = new AnyWebSocket(`ws://127.0.0.1:${port}/`, { origin });
  return await new Promise((resolve) => {
    socket.on('open', () => {
      socket.terminate();
      resolve(101);
    });
    socket.on('unexpected-response', (request, response) => {
      request.destroy();
      resolve(response.statusCode ?? 0);
    });
    socket.on('error', () => {});
  });
}

test('a page from elsewhere may connect where a password is asked for, and else not', async () => {
  const open = await openServer();
  expect(await statusFrom(open.server.webPort, 'https://evil.example')).toBe(403);
  expect(await statusFrom(open.server.webPort, 'null')).toBe(403);
  expect(await statusFrom(open.server.webPort, 'http://localhost:6080')).toBe(101);
  const locked = await openServer({ password: 'secret' });
  expect(await statusFrom(locked.server.webPort, 'https://novnc.example')).toBe(101);
});

test.each<[string | null, string, boolean]>([
  [null, '127.0.0.1', true],
  ['http://127.0.0.1:8000', '127.0.0.1', true],
  ['http://[::1]:8000', '127.0.0.1', true],
  ['https://192.0.2.7', '192.0.2.7', true],
  ['https://192.0.2.7', '::ffff:192.0.2.7', true],
  ['https://192.0.2.8', '192.0.2.7', false],
  ['http://localhost.evil.example', '127.0.0.1', false],
  ['http://127.0.0.1.evil.example', '127.0.0.1', false],
  ['null', '127.0.0.1', false],
  ['file://', '', false],
  ['', '', false],
])('origin %j at %s: %s', (origin, local, expected) => {
  expect(isOwnOrigin(origin, local)).toBe(expected);
});

test('a display is free when both of its ports are', async () => {
  const { server } = await openServer();
  const display = server.port - 5900 + 1;
  const other = createServer().listen(5700 + display, '127.0.0.1');
  onTestFinished(() => void other.close());
  await once(other, 'listening');
  await expect(openServer({ display, findUnused: false })).rejects.toThrow(
    `VNC display 127.0.0.1:${display}: EADDRINUSE`,
  );
  const next = await openServer({ display });
  expect(next.server.port).toBeGreaterThan(5900 + display);
  expect(next.server.webPort).toBe(next.server.port - 200);
});
