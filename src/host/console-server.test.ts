import { mkdtempSync, rmSync, statSync } from 'node:fs';
import type { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { ConsoleServer } from './console-server.ts';
import { connectLocally } from './local-socket.ts';

let folder = '';
let logged = '';
let server: ConsoleServer;
const sockets: Socket[] = [];
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'domus-console-'));
  logged = '';
  server = new ConsoleServer({ add: (bytes) => void (logged += Buffer.from(bytes as Uint8Array).toString()) });
  await server.listen(join(folder, '1', 'console'));
});
afterEach(() => {
  for (const socket of sockets.splice(0)) socket.destroy();
  server.close();
  rmSync(folder, { recursive: true });
});

class Viewer {
  shown = '';
  ended = false;
  readonly socket: Socket;

  constructor(socket: Socket) {
    this.socket = socket;
    sockets.push(socket);
    socket.on('data', (bytes) => {
      this.shown += bytes.toString('latin1');
    });
    socket.on('close', () => {
      this.ended = true;
    });
  }

  async until(isSo: (viewer: Viewer) => boolean): Promise<void> {
    while (!isSo(this)) await sleep(2);
  }
}

async function view(name = '1'): Promise<Viewer> {
  const socket = await connectLocally(join(folder, name, 'console'));
  if (socket === null) throw new Error('nobody listens');
  return new Viewer(socket);
}

const write = (text: string): void => server.write(Buffer.from(text, 'latin1'));

test('who comes later sees what was before, all see the same, and it is in the log', async () => {
  write('before ');
  const one = await view();
  await one.until(({ shown }) => shown === 'before ');
  write('then ');
  const two = await view();
  await two.until(({ shown }) => shown === 'before then ');
  write('now');
  for (const viewer of [one, two]) await viewer.until(({ shown }) => shown === 'before then now');
  expect(logged).toBe('before then now');
});

test('the socket is its owner`s only', () => {
  expect(statSync(join(folder, '1', 'console')).mode & 0o077).toBe(0);
});

test('what any of them types goes to the guest', async () => {
  const input: string[] = [];
  server.onInput((bytes) => void input.push(Buffer.from(bytes).toString()));
  const typed = (): string => input.join('');
  const [one, two] = [await view(), await view()];
  one.socket.write('a');
  while (typed() !== 'a') await sleep(2);
  two.socket.write('b');
  while (typed() !== 'ab') await sleep(2);
});

test('of what was before, the last 256 KiB are shown', async () => {
  const line = `${'x'.repeat(1023)}\n`;
  write('first\n');
  for (let i = 0; i < 400; i++) write(line);
  write('last\n');
  const viewer = await view();
  await viewer.until(({ shown }) => shown.endsWith('last\n'));
  expect(viewer.shown).not.toContain('first');
  expect(viewer.shown.length).toBeGreaterThanOrEqual(256 << 10);
  expect(viewer.shown.length).toBeLessThan((256 << 10) + 2048);
});

test('a viewer that does not read loses output, is told how much, and holds nobody up', async () => {
  const [slow, quick] = [await view(), await view()];
  slow.socket.pause();
  const line = Buffer.alloc(64 << 10, 'y');
  const total = 128;
  for (let i = 0; i < total; i++) {
    server.write(line);
    await sleep(0);
  }
  await quick.until(({ shown }) => shown.length === total * line.length);
  slow.socket.resume();
  await slow.until(({ shown }) => shown.length > 4 << 20);
  await sleep(50);
  write('end');
  await slow.until(({ shown }) => shown.endsWith('end'));
  const lost = Number(/\[domus: (\d+) bytes of output are not shown\]/.exec(slow.shown)?.[1]);
  expect((slow.shown.match(/y/g)?.length ?? 0) - 1 + lost).toBe(total * line.length);
});

test('a restart gives the console another path; viewers stay', async () => {
  const one = await view('1');
  await server.listen(join(folder, '2', 'console'));
  expect(await connectLocally(join(folder, '1', 'console'))).toBeNull();
  const two = await view('2');
  write('on');
  for (const viewer of [one, two]) await viewer.until(({ shown }) => shown === 'on');
});

test('at the end each is given what it is owed, and one that takes nothing is cut off', async () => {
  const [one, stuck] = [await view(), await view()];
  stuck.socket.pause();
  for (let i = 0; i < 40; i++) server.write(Buffer.alloc(64 << 10, 'z'));
  write('bye');
  await server.finish(200);
  await one.until(({ ended }) => ended);
  expect(one.shown.endsWith('bye')).toBe(true);
  expect(await connectLocally(join(folder, '1', 'console'))).toBeNull();
});

test('no more than 64 look at a time', async () => {
  const viewers = await Promise.all(Array.from({ length: 64 }, () => view()));
  write('x');
  for (const viewer of viewers) await viewer.until(({ shown }) => shown === 'x');
  const one = await view();
  await one.until(({ ended }) => ended);
  expect(one.shown).toBe('');
});
