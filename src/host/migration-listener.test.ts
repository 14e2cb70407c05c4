/** Who may send a domain here by TLS, what the others hear, and that none of them is in the way of another. */

import { generateKeyPairSync, type X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { connect as connectPlainly, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { connect } from 'node:tls';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { selfSigned } from './keys/certificate.ts';
import { createKeys, forget, readKeys, trust } from './keys/host-keys.ts';
import { type Carrier, CarrierError, tlsCarrier } from './migration-carrier.ts';
import {
  type Arrival,
  type ListenerOptions,
  listenForMigrations,
  type MigrationListener,
} from './migration-listener.ts';
import { contextOptions, TLS_OPTIONS } from './migration-tls.ts';

let folder = '';
let here = '';
let there = '';
let log: string[] = [];
const open: (Carrier | Socket)[] = [];
const listeners: MigrationListener[] = [];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'domus-tls-'));
  [here, there] = ['here', 'there'].map((name) => join(folder, name));
  log = [];
  createKeys(here, ['here.example'], 30, false);
  createKeys(there, ['127.0.0.1', 'localhost'], 30, false);
  trust(here, readKeys(there).certificate.toString(), 'there');
  trust(there, readKeys(here).certificate.toString(), 'here');
});
afterEach(async () => {
  for (const one of open.splice(0)) 'close' in one ? one.close() : one.destroy();
  for (const one of listeners.splice(0)) await one.close();
  rmSync(folder, { recursive: true });
});

/** The domain's process of these tests: says back what comes, in capitals. */
async function echo({ join: joinWire, tell, request }: Arrival): Promise<void> {
  tell(`wanted: ${JSON.stringify(request)}`);
  const [input, output] = [new PassThrough(), new PassThrough()];
  input.on('data', (bytes: Buffer) => output.write(bytes.toString().toUpperCase()));
  input.on('close', () => output.destroy());
  input.on('end', () => output.end('end'));
  joinWire({ input, output });
}

async function listen(options: Partial<ListenerOptions> = {}): Promise<MigrationListener> {
  const listener = await listenForMigrations({
    ...{ host: '127.0.0.1', port: 0, keys: () => readKeys(there), receive: echo },
    log: (line) => log.push(line),
    ...options,
  });
  listeners.push(listener);
  return listener;
}

interface Source {
  readonly carrier: Carrier;
  readonly lines: string[];
  readonly answered: () => string;
}

async function send(port: number, host = '127.0.0.1', root = here): Promise<Source> {
  const lines: string[] = [];
  const tell = (line: string): void => void lines.push(line);
  const carrier = await tlsCarrier({ address: { host, port }, root, paused: true, preserve: false }, tell);
  open.push(carrier);
  let answered = '';
  carrier.answers.on('data', (bytes: Buffer) => {
    answered += bytes.toString();
  });
  return { carrier, lines, answered: () => answered };
}

const ends = async ({ carrier }: Source): Promise<void> => void (await once(carrier.answers, 'end'));
const until = async (condition: () => boolean): Promise<void> => {
  for (let i = 0; i < 1000 && !condition(); i++) await sleep(5);
  expect(condition(), log.join('\n')).toBe(true);
};
const plain = async (port: number): Promise<Socket> => {
  const socket = connectPlainly(port, '127.0.0.1');
  socket.on('error', () => {});
  open.push(socket);
  await once(socket, 'connect');
  return socket;
};
const closed = (socket: Socket): Promise<void> => new Promise((resolve) => socket.on('close', () => resolve()));
const never = (): never => {
  throw new Error('this was lost');
};

test('a domain comes from a host that is trusted, and is answered', async () => {
  const listener = await listen();
  const source = await send(listener.port);
  source.carrier.send(Buffer.from('a domain'), never);
  await until(() => source.answered() === 'A DOMAIN');
  expect(source.lines).toEqual(['wanted: {"protocol":1,"paused":true,"preserve":false}']);
  expect(listener.arrivals).toBe(1);
  await source.carrier.hangUp();
  await until(() => listener.arrivals === 0);
  expect(log).toEqual([expect.stringMatching(/^migrations: 127\.0\.0\.1 port \d+ \(here\.example\): a domain comes$/)]);
});

test('much more than fits into the pipes waits, and comes whole', async () => {
  let come = 0;
  let goOn: () => void = () => {};
  const mayGoOn = new Promise<void>((resolve) => {
    goOn = resolve;
  });
  const receive = async ({ join: joinWire }: Arrival): Promise<void> => {
    const [input, output] = [new PassThrough(), new PassThrough()];
    joinWire({ input, output });
    await mayGoOn;
    input.on('data', (bytes: Buffer) => {
      come += bytes.length;
    });
    input.on('end', () => output.end(String(come)));
  };
  const source = await send((await listen({ receive })).port);
  const piece = Buffer.alloc(1 << 20, 7);
  let isFull = false;
  for (let i = 0; i < 24; i++) isFull = !source.carrier.send(piece, never) || isFull;
  expect(isFull).toBe(true);
  const ended = ends(source);
  void source.carrier.hangUp();
  goOn();
  await ended;
  expect(source.answered()).toBe(String(24 << 20));
});

test('who is not trusted, has no certificate, one that has expired or the wrong name is refused, and both sides say why', async () => {
  const listener = await listen();
  const { port } = listener;
  const refusals = async (root = here): Promise<string[]> => {
    const source = await send(port, '127.0.0.1', root);
    if (!source.carrier.answers.readableEnded) await ends(source);
    expect(source.answered()).toBe('');
    return source.lines;
  };
  const said = (pattern: RegExp): Promise<void> => until(() => log.some((line) => pattern.test(line)));

  // A key that the target does not know.
  const stranger = join(folder, 'stranger');
  createKeys(stranger, ['here.example'], 30, false);
  trust(stranger, readKeys(there).certificate.toString(), 'there');
  expect(await refusals(stranger)).toEqual([
    expect.stringMatching(
      /^libxl: error: the target refuses this host: its certificate \(here\.example, SHA256 \w{32}\) is not trusted here: domus keys trust$/,
    ),
  ]);
  await said(
    /\(here\.example\): its certificate \(here\.example, SHA256 \w{32}\) is not trusted here: domus keys trust$/,
  );

  // One that it has trusted until now.
  forget(there, 'here.example');
  expect(await refusals()).toEqual([expect.stringContaining('is not trusted here')]);
  trust(there, readKeys(here).certificate.toString(), 'here');

  // A target that the source does not know.
  forget(here, 'localhost');
  await expect(send(port)).rejects.toThrow(
    /^127\.0\.0\.1:\d+: its certificate \(127\.0\.0\.1, localhost, SHA256 \w{32}\) is not trusted here: domus keys trust$/,
  );
  await said(/\(here\.example\): does not trust this host: its certificate \(127\.0\.0\.1, localhost, /);
  trust(here, readKeys(there).certificate.toString(), 'there');

  // No certificate.
  const nobody = connect({ ...TLS_OPTIONS, host: '127.0.0.1', port, ca: [] });
  open.push(nobody);
  nobody.on('error', () => {});
  nobody.write('{}\n');
  nobody.resume();
  await closed(nobody);
  await said(/^migrations: 127\.0\.0\.1 port \d+: it has no certificate$/);

  // Certificates of another time, on either side.
  writePair(here, ['here.example'], -2, -1);
  await expect(send(port)).rejects.toThrow('the certificate of this host has expired: domus keys create --replace');
  const old = readKeys(here).certificate;
  forget(there, 'here.example');
  trust(there, old.toString(), 'old');
  const late = connect({ ...TLS_OPTIONS, ...contextOptions(readKeys(here)), host: '127.0.0.1', port });
  open.push(late);
  late.on('error', () => {});
  late.write('{"protocol":1,"paused":false,"preserve":false}\n');
  let heard = '';
  late.on('data', (bytes: Buffer) => {
    heard += bytes.toString();
  });
  await closed(late);
  expect(heard).toMatch(
    /the target refuses this host: its certificate \(here\.example, SHA256 \w{32}\) has expired on /,
  );
  await said(/has expired on \d{4}-\d\d-\d\d$/);
  expect(listener.arrivals).toBe(0);
});

test('a target of another name, or with an old certificate, gets no domain', async () => {
  const { port } = await listen();
  createKeys(there, ['other.example'], 30, true);
  forget(here, 'localhost');
  trust(here, readKeys(there).certificate.toString(), 'there');
  await expect(send(port)).rejects.toThrow(/other\.example, SHA256 \w{32}\) is not for the name 127\.0\.0\.1$/);
  await expect(send(port, 'localhost')).rejects.toThrow(/is not for the name localhost$/);
  writePair(there, ['127.0.0.1'], -2, -1);
  trust(here, readKeys(there).certificate.toString(), 'there');
  await expect(send(port)).rejects.toThrow(/\(127\.0\.0\.1, SHA256 \w{32}\) has expired on /);
  // Keys that are gone.
  rmSync(join(there, 'keys'), { recursive: true });
  await expect(send(port)).rejects.toBeInstanceOf(CarrierError);
  await until(() => log.some((line) => /this host has no key for migrations/.test(line)));
});

test('who sends no TLS, an old one, or nothing is cut off, and in nobody`s way', async () => {
  const { port } = await listen({ requestLimitMs: 300, pendingMax: 8 });
  const garbage = await plain(port);
  garbage.write('GET / HTTP/1.1\r\n\r\n'.repeat(1000));
  await closed(garbage);
  expect(log).toEqual([expect.stringMatching(/^migrations: 127\.0\.0\.1 port \d+: no TLS 1\.3 \(http request\)$/)]);
  const old = connect({ host: '127.0.0.1', port, maxVersion: 'TLSv1.2', rejectUnauthorized: false });
  open.push(old);
  old.on('error', () => {});
  await closed(old);
  expect(log[1]).toMatch(/: no TLS 1\.3 \(unsupported protocol\)$/);

  // More that say nothing than there is room for: the one that is trusted comes through.
  const silent = await Promise.all(Array.from({ length: 30 }, () => plain(port)));
  const source = await send(port);
  source.carrier.send(Buffer.from('x'), never);
  await until(() => source.answered() === 'X');
  await until(() => silent.every((socket) => socket.destroyed));
  expect(
    log.some((line) => line.endsWith('makes room: more than 8 connections that have not said what they want')),
  ).toBe(true);
  expect(log.filter((line) => line === 'migrations: no more of this in this minute')).toHaveLength(1);
  expect(log.length).toBeLessThan(25);

  // One who has done the handshake and says nothing, or too much.
  const { key, certificate } = readKeys(here);
  for (const words of ['', 'x'.repeat(100_000)]) {
    const slow = connect({ ...TLS_OPTIONS, host: '127.0.0.1', port, key, cert: certificate.toString() });
    open.push(slow);
    slow.on('error', () => {});
    slow.write(words);
    slow.resume();
    await closed(slow);
  }
});

test('only so many domains come at a time; a request that makes no sense is refused', async () => {
  const { port } = await listen({ arrivalsMax: 1 });
  const first = await send(port);
  first.carrier.send(Buffer.from('x'), never);
  await until(() => first.answered() === 'X');
  const second = await send(port);
  await ends(second);
  expect(second.lines).toEqual(['libxl: error: the target refuses this host: 1 domains come at the same time']);
  const { key, certificate } = readKeys(here);
  for (const [words, why] of [
    ['{"protocol":2}', 'it speaks version 2 of this, and this Domus 1'],
    ['{"protocol":1,"paused":1}', 'what it wants lacks paused or preserve'],
    ['null', 'what it wants is no object'],
    ['migrate!', 'what it wants is no JSON'],
  ]) {
    const odd = connect({ ...TLS_OPTIONS, host: '127.0.0.1', port, key, cert: certificate.toString() });
    open.push(odd);
    let heard = '';
    odd.on('data', (bytes: Buffer) => {
      heard += bytes.toString();
    });
    odd.write(`${words}\n`);
    await closed(odd);
    expect(heard).toContain(why);
  }
});

test('a way that is cut ends the domain`s stream, and the other way round; what comes too late is known to be lost', async () => {
  let cut: Socket | null = null;
  const streams: string[] = [];
  const receive = async ({ join: joinWire }: Arrival): Promise<void> => {
    const [input, output] = [new PassThrough(), new PassThrough()];
    input.on('close', () => {
      streams.push('closed');
      output.destroy();
    });
    cut = output as unknown as Socket;
    input.resume();
    joinWire({ input, output });
  };
  const { port } = await listen({ receive });
  const first = await send(port);
  await until(() => cut !== null);
  first.carrier.close();
  await until(() => streams.length === 1);

  cut = null;
  const second = await send(port);
  await until(() => cut !== null);
  const ended = ends(second);
  (cut as unknown as Socket).destroy();
  await ended;
  // It ends for good a little later.
  let lost = 0;
  for (let i = 0; i < 1000 && lost === 0; i++) {
    second.carrier.send(Buffer.from('x'), () => lost++);
    await sleep(5);
  }
  expect(lost).toBe(1);
});

test('nobody listens: one line', async () => {
  const listener = await listen();
  await listeners.splice(0)[0].close();
  await expect(send(listener.port)).rejects.toThrow(/^127\.0\.0\.1:\d+: connect ECONNREFUSED /);
});

/** Keys with a certificate of another time. */
function writePair(root: string, names: readonly string[], fromDay: number, untilDay: number): X509Certificate {
  const at = (day: number): Date => new Date(Date.now() + day * 86_400_000);
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'prime256v1' });
  const certificate = selfSigned(privateKey, { names, from: at(fromDay), until: at(untilDay) });
  mkdirSync(join(root, 'keys'), { recursive: true });
  writeFileSync(join(root, 'keys', 'certificate.pem'), certificate.toString());
  writeFileSync(join(root, 'keys', 'key.pem'), privateKey.export({ type: 'pkcs8', format: 'pem' }));
  return certificate;
}
