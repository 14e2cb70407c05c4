import { mkdtempSync, rmSync, statSync } from 'node:fs';
import type { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { type ControlState, LINE_BYTES_MAX, LineReader } from './control-protocol.ts';
import { ControlError, type ControlServer, openControlServer } from './control-server.ts';
import { connectLocally } from './local-socket.ts';

const STATE: ControlState = {
  ...{ paused: false, shutdownReason: -1, pages: 256, weight: 256, cap: 0, vcpus: [], pid: 7 },
  ...{ promisedPages: 256, backendTimeNs: 1, residentBytes: 2 },
};

let folder = '';
let server: ControlServer;
let called: unknown[] = [];
let shutDown: (reason: number) => void = () => {};
const sockets: Socket[] = [];
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'domus-control-'));
  called = [];
  const note = (what: string) => (params: unknown) => {
    called.push([what, params]);
    return null;
  };
  server = await openControlServer(join(folder, 'control'), {
    state: () => STATE,
    pause: note('pause'),
    unpause: note('unpause'),
    nmi: (params) => {
      if (params['vcpu'] !== 0) throw new ControlError('No such vCPU');
      return note('nmi')(params);
    },
    wait: () =>
      new Promise((resolve) => {
        shutDown = resolve;
      }),
    destroy: note('destroy'),
    resume: note('resume'),
    save: note('save'),
    'dump-core': note('dump-core'),
    outline: note('outline'),
    fork: note('fork'),
    'fork-early': note('fork-early'),
    'fork-start': note('fork-start'),
    'fork-memory': note('fork-memory'),
    'fork-end': note('fork-end'),
    snapshot: note('snapshot'),
    schedule: note('schedule'),
    pin: note('pin'),
    memory: note('memory'),
    devices: note('devices'),
  });
});
afterEach(() => {
  for (const socket of sockets.splice(0)) socket.destroy();
  server.close();
  rmSync(folder, { recursive: true });
});

class Client {
  readonly socket: Socket;
  readonly closed: Promise<void>;
  readonly #lines: string[] = [];
  #wake: () => void = () => {};

  constructor(socket: Socket) {
    this.socket = socket;
    sockets.push(socket);
    const reader = new LineReader();
    socket.on('data', (bytes) => {
      this.#lines.push(...(reader.take(bytes) ?? []));
      this.#wake();
    });
    this.closed = new Promise((resolve) => socket.on('close', () => resolve()));
  }

  async answer(): Promise<unknown> {
    while (this.#lines.length === 0)
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    return JSON.parse(this.#lines.shift() ?? '');
  }

  async ask(request: unknown): Promise<unknown> {
    this.socket.write(`${typeof request === 'string' ? request : JSON.stringify(request)}\n`);
    return await this.answer();
  }
}

async function client(): Promise<Client> {
  const socket = await connectLocally(join(folder, 'control'));
  if (socket === null) throw new Error('nobody listens');
  return new Client(socket);
}

test('requests are answered in turn, with the id that they have', async () => {
  const one = await client();
  expect(await one.ask({ jsonrpc: '2.0', id: 1, method: 'state' })).toEqual({ jsonrpc: '2.0', id: 1, result: STATE });
  one.socket.write('{"id":"a","method":"pause"}\n\n{"id":"b","meth');
  expect(await one.answer()).toEqual({ jsonrpc: '2.0', id: 'a', result: null });
  expect(await one.ask('od":"nmi","params":{"vcpu":0}}')).toEqual({ jsonrpc: '2.0', id: 'b', result: null });
  expect(called).toEqual([
    ['pause', {}],
    ['nmi', { vcpu: 0 }],
  ]);
  expect(statSync(join(folder, 'control')).mode & 0o077).toBe(0);
});

test('what cannot be done is an error, and the connection goes on', async () => {
  const one = await client();
  const failed = (id: unknown, code: number): unknown => ({
    jsonrpc: '2.0',
    id,
    error: { code, message: expect.any(String) },
  });
  expect(await one.ask('{')).toEqual(failed(null, -32700));
  expect(await one.ask('7')).toEqual(failed(null, -32600));
  expect(await one.ask({ method: 'state' })).toEqual(failed(null, -32600));
  expect(await one.ask({ id: 1, method: 'constructor' })).toEqual(failed(1, -32601));
  expect(await one.ask({ id: 2, method: 'nmi', params: { vcpu: 9 } })).toEqual({
    jsonrpc: '2.0',
    id: 2,
    error: { code: 1, message: 'No such vCPU' },
  });
  expect(await one.ask({ id: 4, method: 'nmi', params: 7 })).toEqual(failed(4, -32602));
  expect(await one.ask({ id: 3, method: 'state' })).toMatchObject({ id: 3, result: STATE });
  expect(called).toEqual([]);
});

test('a wait is answered when there is something to tell, and others go before it', async () => {
  const one = await client();
  one.socket.write('{"id":1,"method":"wait"}\n');
  expect(await one.ask({ id: 2, method: 'state' })).toMatchObject({ id: 2 });
  shutDown(3);
  expect(await one.answer()).toEqual({ jsonrpc: '2.0', id: 1, result: 3 });
});

test('a line without end ends its connection only', async () => {
  const [one, other] = [await client(), await client()];
  one.socket.write('x'.repeat(LINE_BYTES_MAX + 2));
  await one.closed;
  expect(await other.ask({ id: 1, method: 'state' })).toMatchObject({ id: 1 });
});

test('when the domain is gone, so are the connections', async () => {
  const one = await client();
  await one.ask({ id: 1, method: 'state' });
  server.close();
  one.socket.resume();
  await one.closed;
  expect(await connectLocally(join(folder, 'control'))).toBeNull();
});

test('a line is read whatever pieces it comes in, and its characters too', () => {
  const reader = new LineReader();
  const bytes = Buffer.from('é\nzwei\ndr');
  const lines: string[] = [];
  for (const byte of bytes) lines.push(...(reader.take(Uint8Array.of(byte)) ?? ['too long']));
  expect(lines).toEqual(['é', 'zwei']);
  expect(reader.take(Buffer.from('ei\n'))).toEqual(['drei']);
  expect(reader.take(Buffer.alloc(LINE_BYTES_MAX + 1, 'x'))).toBeNull();
});
