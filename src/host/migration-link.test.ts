import { mkdtempSync, rmSync } from 'node:fs';
import type { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { connectLocally, listenLocally } from './local-socket.ts';
import {
  FRAME_BEGIN,
  FRAME_BYTES,
  FRAME_ENDED,
  FRAME_GO,
  FRAME_LINE,
  FRAME_LOST,
  FRAME_RESULT,
  FrameReader,
  frame,
  migrationOptions,
  textFrame,
} from './migration-frames.ts';
import { LinkError, SocketLink } from './migration-link.ts';
import { BANNER, bannerVersion, PROTOCOL_VERSION } from './migration-protocol.ts';

let folder: string;
let link: SocketLink;
/** The end of `xl migrate`. */
let xl: Socket;
let close: () => void;

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'domus-link-'));
  const path = join(folder, 's');
  let take: (socket: Socket) => void = () => {};
  const taken = new Promise<Socket>((resolve) => {
    take = resolve;
  });
  const server = await listenLocally(path, (socket) => take(socket));
  const client = await connectLocally(path);
  if (client === null) throw new Error('nobody listens');
  xl = client;
  const socket = await taken;
  socket.on('error', () => {});
  link = new SocketLink(socket, 200);
  const reader = new FrameReader((kind, bytes) => link.receive(kind, bytes));
  socket.on('data', (bytes) => void reader.push(bytes));
  close = () => {
    server.close();
    socket.destroy();
    xl.destroy();
  };
});
afterEach(() => {
  close();
  rmSync(folder, { recursive: true });
});

const mustNotCommit = (): void => expect.unreachable();
const text = (line: string): Uint8Array => new TextEncoder().encode(line);
const errorOf = async (done: Promise<unknown>): Promise<LinkError> => {
  const error = await done.then(
    () => null,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(LinkError);
  return error as LinkError;
};

test('frames come whole, whatever the pieces; those of bytes as they come', () => {
  const stream = Buffer.concat([
    textFrame(FRAME_LINE, 'a line'),
    frame(
      FRAME_BYTES,
      Uint8Array.from({ length: 1000 }, (_, i) => i),
    ),
    frame(FRAME_RESULT, Uint8Array.of(3)),
    textFrame(FRAME_LINE, ''),
  ]);
  for (const size of [1, 2, 7, 600, stream.length]) {
    const seen: [number, number][] = [];
    let bytes = 0;
    const reader = new FrameReader((kind, payload) => {
      if (kind === FRAME_BYTES) bytes += payload.length;
      else seen.push([kind, payload.length]);
    });
    for (let at = 0; at < stream.length; at += size) expect(reader.push(stream.subarray(at, at + size))).toBe(true);
    expect([seen, bytes]).toEqual([
      [
        [FRAME_LINE, 6],
        [FRAME_RESULT, 1],
        [FRAME_LINE, 0],
      ],
      1000,
    ]);
  }
});

test('what is no frame, or too long, is none', () => {
  for (const bad of [
    [0, 0, 0, 0, 0],
    [99, 0, 0, 0, 0],
    [FRAME_LINE, 1, 0, 0x10, 0],
    [FRAME_BEGIN, 255, 255, 255, 255],
  ])
    expect(new FrameReader(() => {}).push(Uint8Array.from(bad))).toBe(false);
});

test('options that make no sense are none', () => {
  const good = { command: 'ssh b', config: null, debug: false };
  expect(migrationOptions(text(JSON.stringify(good)))).toEqual(good);
  for (const bad of ['', '[]', 'null', '{}', '{"command":1,"config":null,"debug":false}', '{"command":"","config":3}'])
    expect(migrationOptions(text(bad))).toBe(null);
});

test('a banner tells its version', () => {
  expect(bannerVersion(BANNER)).toBe(PROTOCOL_VERSION);
  expect(bannerVersion('domus migration receiver, version 12: send the domain')).toBe(12);
  for (const none of ['', 'xl migration receiver', 'domus migration receiver, version x: y', `x${BANNER}`])
    expect(bannerVersion(none)).toBe(null);
});

test('lines come one at a time', async () => {
  xl.write(frame(FRAME_BYTES, text('one\ntw')));
  expect(await link.line('first', 5000)).toBe('one');
  const second = link.line('second', 5000);
  xl.write(frame(FRAME_BYTES, text('o\n')));
  expect(await second).toBe('two');
});

test('a target that says nothing is waited for as long as that may take, and no longer', async () => {
  expect((await errorOf(link.line('answer', 50))).message).toBe('no answer from the migration receiver for 0 s');
});

test('a target that takes nothing is given up', async () => {
  xl.pause();
  // More than a socket holds; nobody reads.
  const sending = (async () => {
    for (let i = 0; i < 20; i++) await link.send(new Uint8Array(1 << 20));
  })();
  expect((await errorOf(sending)).message).toBe('the target has taken nothing for 0 s');
});

test('what was said before the end can be read, and then the end', async () => {
  xl.write(frame(FRAME_BYTES, text('last\n')));
  xl.write(frame(FRAME_ENDED, new Uint8Array(0)));
  expect(await link.line('last', 5000)).toBe('last');
  const error = await errorOf(link.line('more', 5000));
  expect(error.message).toBe('file/stream truncated reading more from migration receiver stream');
  // It may have had all that was sent.
  expect(error.isUnsent).toBe(false);
  expect((await errorOf(link.sendFinal(text('go\n'), 'gives', mustNotCommit))).isUnsent).toBe(true);
});

test('what was lost on the way is known to be', async () => {
  await link.sendFinal(text('go\n'), 'gives', () => {});
  xl.write(frame(FRAME_LOST, new Uint8Array(0)));
  expect((await errorOf(link.line('report', 5000))).isUnsent).toBe(true);
});

test('an xl that has ended is an end', async () => {
  const line = link.line('report', 5000);
  xl.destroy();
  const error = await errorOf(line);
  expect(error.message).toBe('xl migrate has ended, reading report from migration receiver stream');
  expect(error.isUnsent).toBe(false);
});

/** What xl reads until it has the bytes that are the last. */
async function readUntilGo(): Promise<string[]> {
  const seen: string[] = [];
  await new Promise<void>((resolve) => {
    const reader = new FrameReader((kind, bytes) => {
      seen.push(`${kind} ${new TextDecoder().decode(bytes)}`);
      if (kind === FRAME_GO) resolve();
    });
    xl.on('data', (bytes) => void reader.push(bytes));
  });
  return seen;
}

test('the last bytes leave this process in the turn in which it commits itself, with what is told of them', async () => {
  link.tell('before');
  let committed = 0;
  const sending = link.sendFinal(text('go\n'), 'gives', () => committed++);
  expect(await readUntilGo()).toEqual([`${FRAME_LINE} before`, `${FRAME_LINE} gives`, `${FRAME_GO} go\n`]);
  await sending;
  expect(committed).toBe(1);
});

test('who cannot commit itself has sent nothing', async () => {
  const cannot = (): void => {
    throw new Error('the disk is full');
  };
  const error = await errorOf(link.sendFinal(text('go\n'), 'gives', cannot));
  expect([error.message, error.isUnsent]).toEqual(['the disk is full', true]);
  link.tell('after');
  link.sendFinal(text('go\n'), 'gives', () => {}).catch(() => undefined);
  expect((await readUntilGo())[0]).toBe(`${FRAME_LINE} after`);
});

test('nobody commits itself behind what xl does not take', async () => {
  xl.pause();
  link.patienceMs = 50;
  await errorOf(link.send(new Uint8Array(4 << 20)));
  expect((await errorOf(link.sendFinal(text('go\n'), 'gives', mustNotCommit))).isUnsent).toBe(true);
});

test('of an xl that has ended, it is known whether it had read the last bytes', async (context) => {
  if (process.platform !== 'linux') return context.skip('only Linux tells');
  xl.pause();
  await link.sendFinal(text('go\n'), 'gives', () => {});
  const line = link.line('report', 5000);
  xl.destroy();
  const error = await errorOf(line);
  expect([error.message, error.isUnsent]).toEqual([
    'xl migrate has ended, reading report from migration receiver stream',
    true,
  ]);
});

test('an xl that has read the last bytes may have passed them on', async () => {
  await Promise.all([link.sendFinal(text('go\n'), 'gives', () => {}), readUntilGo()]);
  const line = link.line('report', 5000);
  xl.destroy();
  expect((await errorOf(line)).isUnsent).toBe(false);
});

test('a line without end is an end', async () => {
  for (let i = 0; i < 3; i++) xl.write(frame(FRAME_BYTES, new Uint8Array(60_000).fill(0x61)));
  expect((await errorOf(link.line('banner', 5000))).message).toContain('lines without end');
});
