import { mkdtempSync, rmSync } from 'node:fs';
import { connect, createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { Frame, type FramePort } from '../frame.ts';
import { DOMUS_FORM } from '../frame-stream.ts';
import { SocketPort } from './socket-port.ts';
import type { StreamSocket } from './stream-socket.ts';
import { connectSwitch, SwitchServer } from './switch-socket.ts';

let folder: string;
let path: string;
let served: { server: Server; switches: SwitchServer } | null = null;
const ports: SocketPort[] = [];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'domus-switch-'));
  path = process.platform === 'win32' ? `\\\\.\\pipe\\${folder.replaceAll('\\', '-')}` : join(folder, 'socket');
});
afterEach(async () => {
  for (const port of ports.splice(0)) port.close();
  await stop();
  rmSync(folder, { recursive: true });
});

async function serve(): Promise<SwitchServer> {
  const switches = new SwitchServer();
  const server = createServer();
  switches.attachTo(server);
  await new Promise<void>((resolve) => server.listen(path, resolve));
  served = { server, switches };
  return switches;
}

async function stop(): Promise<void> {
  const { server, switches } = served ?? {};
  served = null;
  switches?.close();
  await new Promise((resolve) => (server === undefined ? resolve(null) : server.close(resolve)));
}

class Device implements FramePort {
  readonly got: number[] = [];
  full = false;
  port!: SocketPort;
  send(frame: Frame): boolean {
    if (this.full) return false;
    this.got.push(frame.length);
    return true;
  }
  flush(): void {}
  room(): void {}
  say(length: number): void {
    const bytes = new Uint8Array(length).fill(0xff, 0, 6);
    this.port.send(new Frame().set(bytes, length));
    this.port.flush();
  }
}

async function plug(name: string): Promise<Device> {
  const open = (): Promise<StreamSocket> => connectSwitch(path, name);
  const device = new Device();
  device.port = new SocketPort({ form: DOMUS_FORM, open, first: await open() });
  ports.push(device.port);
  device.port.connect(device);
  return device;
}

async function until(condition: () => boolean): Promise<void> {
  for (let i = 0; i < 1000 && !condition(); i++) await new Promise((resolve) => setTimeout(resolve, 5));
  expect(condition()).toBe(true);
}

test('ports of one name reach each other, and nobody else', async () => {
  const switches = await serve();
  const [a, b, c] = [await plug('lan0'), await plug('lan0'), await plug('lan1')];
  await until(() => switches.switches.get('lan0') === 2 && switches.switches.get('lan1') === 1);
  a.say(100);
  a.say(60_000);
  await until(() => b.got.length === 2);
  expect([a.got, b.got, c.got]).toEqual([[], [100, 60_000], []]);
  for (const port of ports.splice(0)) port.close();
  await until(() => switches.switches.size === 0);
});

test('a port is plugged in again when the next server answers', async () => {
  await serve();
  const [a, b] = [await plug('lan0'), await plug('lan0')];
  await stop();
  rmSync(path, { force: true });
  a.say(99);
  const switches = await serve();
  await until(() => switches.switches.get('lan0') === 2);
  await until(() => {
    a.say(100);
    return b.got.length > 0;
  });
  expect(b.got[0]).toBe(100);
});

test('a client that takes nothing holds up nobody, and gets what was kept when it does', async () => {
  const switches = await serve();
  const [a, slow, quick] = [await plug('lan0'), await plug('lan0'), await plug('lan0')];
  await until(() => switches.switches.get('lan0') === 3);
  slow.full = true;
  for (let i = 0; i < 400; i++) {
    a.say(60_000);
    // No more than a port keeps for its device, however slow this machine is.
    if (i % 10 === 9) await until(() => quick.got.length === i + 1);
  }
  await until(() => quick.got.length === 400);
  expect(slow.got).toEqual([]);
  slow.full = false;
  slow.port.room();
  await until(() => slow.got.length > 10);
  expect(slow.got.length).toBeLessThan(400);
});

test.each([
  ['another greeting', 'GET / HTTP/1.0\r\n\r\n'],
  ['a name that is none', 'domus-switch 1 ../x\n'],
  ['no end of the greeting', 'domus-switch 1 '.padEnd(200, 'x')],
  ['a frame that is none', 'domus-switch 1 lan0\n\xff\xff\xff\xff\xff\xff\xff\xff\xff'],
])('%s loses the connection, and that only', async (_name, text) => {
  const switches = await serve();
  const a = await plug('lan0');
  const b = await plug('lan0');
  const socket = connect(path);
  socket.end(Buffer.from(text, 'latin1'));
  await new Promise((resolve) =>
    socket
      .on('close', resolve)
      .on('error', () => {})
      .resume(),
  );
  await until(() => switches.switches.get('lan0') === 2);
  a.say(100);
  await until(() => b.got.length === 1);
});
