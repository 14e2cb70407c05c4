/** The daemon as a process, killed at bad moments. */
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { XS } from '../abi/io/xs-wire.ts';
import { XenstoreClient } from '../xenstore/client.ts';
import { LinkConnection } from '../xenstore/link-connection.ts';
import { createRingServer } from '../xenstore/ring-server.ts';
import { TestGuest } from '../xenstore/test-guest.ts';
import { bytesToText, encodeMessage, textToBytes } from '../xenstore/wire.ts';
import { stopDaemon } from './domusd.ts';
import { pidIn } from './state-dir.ts';
import { openXenstored, openXenstoreSession } from './xenstored.ts';

let root = '';
const children: ChildProcess[] = [];
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'domus-daemon-'));
});
afterEach(async () => {
  for (const child of children.splice(0)) child.kill('SIGKILL');
  await stopDaemon(root);
  rmSync(root, { recursive: true });
});

const journal = (): string => join(root, 'xenstored', 'journal');
const daemonPid = (): number => pidIn(root) ?? NaN;
const client = async (): Promise<XenstoreClient> => new XenstoreClient(await openXenstored(root));

function startDaemon(): Promise<{ code: number | null; err: string; pid: number | undefined }> {
  const program = fileURLToPath(new URL('./domusd.ts', import.meta.url));
  const child = spawn(process.execPath, [program, root], { stdio: ['ignore', 'ignore', 'pipe'] });
  children.push(child);
  let err = '';
  return new Promise((resolve) => {
    child.stderr.on('data', (bytes: Buffer) => {
      err += bytes.toString();
      if (err.includes('serves')) resolve({ code: null, err, pid: child.pid });
    });
    child.on('close', (code) => resolve({ code, err, pid: child.pid }));
  });
}

/** Kills the daemon as hard as it goes, and waits until it has let go of its socket. False if there is none. */
async function killDaemon(): Promise<boolean> {
  try {
    const pid = pidIn(root);
    if (pid === null) return false;
    process.kill(pid, 'SIGKILL');
  } catch {
    return false;
  }
  while (await answers(join(root, 'xenstored', 'socket'))) await sleep(2);
  return true;
}

function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path, () => {
      socket.destroy();
      resolve(true);
    });
    socket.on('error', () => resolve(false));
  });
}

test('the first client starts the daemon, many at once start one, and its files are its owner`s only', async () => {
  const clients = await Promise.all(Array.from({ length: 5 }, client));
  const pids = new Set<number>();
  for (const [i, one] of clients.entries()) {
    await one.write(`/by/${i}`, 'x');
    pids.add(daemonPid());
  }
  expect(pids.size).toBe(1);
  expect((await clients[0].directory('/by'))?.length).toBe(5);
  for (const one of clients) one.close();
  for (const path of ['xenstored/socket', 'xenstored/journal', 'xenstored', 'domusd.log'])
    expect(statSync(join(root, path)).mode & 0o077, path).toBe(0);
  const second = await startDaemon();
  expect(second.code).toBe(3);
  expect(second.err).toMatch(`domusd: a daemon runs for ${root}`);
});

test('every write that was acknowledged is there after kill -9 in the middle of a storm of them', async () => {
  await startDaemon();
  const acknowledged = new Map<string, string>();
  const storm = async (name: string): Promise<void> => {
    const one = await client();
    for (let i = 0; ; i++) {
      const path = `/storm/${name}-${i % 100}`;
      try {
        if (i % 10 === 0) {
          await one.transaction(async (t) => {
            await t.write(path, `${i}`);
            await t.write(`${path}/pair`, `${i}`);
          });
        } else await one.write(path, `${i}`.padEnd(2000));
      } catch {
        return;
      }
      acknowledged.set(path, `${i}`);
    }
  };
  const storms = ['a', 'b', 'c'].map(storm);
  // Until the journal has been replaced by a shorter one.
  for (let last = 0, size = 0; size >= last; last = size, size = statSync(journal()).size) await sleep(1);
  await sleep(100);
  await killDaemon();
  await Promise.all(storms);
  expect(acknowledged.size).toBeGreaterThan(100);
  const one = await client();
  for (const [path, value] of acknowledged) {
    // The one that was under way may have been done as well.
    const found = Number(await one.read(path));
    const expected = [Number(value), Number(value) + 100];
    expect(expected, path).toContain(found);
    if (expected[0] % 10 === 0) expect(Number(await one.read(`${path}/pair`)), path).toBe(found);
  }
  one.close();
});

test('the tree, permissions, domains and domids are there after kill -9; watches are not', async () => {
  await startDaemon();
  const before = await client();
  await before.write('/a/b', Uint8Array.of(0, 1, 255));
  await before.setPermissions('/a', ['n7', 'r8']);
  await before.introduce(7, 1234, 1);
  const first = Number(await before.control(['allocate-domid']));
  await before.watch('/a', 'token', () => {});
  await killDaemon();
  await before.closed;
  const after = await client();
  expect(await after.readBytes('/a/b')).toEqual(Uint8Array.of(0, 1, 255));
  expect(await after.getPermissions('/a')).toEqual(['n7', 'r8']);
  expect(await after.isDomainIntroduced(7)).toBe(true);
  expect(Number(await after.control(['allocate-domid']))).toBe(first + 1);
  expect(await after.read('/local/domain/0/name')).toBe('Domain-0');
  after.close();
});

test('a damaged store is left alone, and the error that a client gets names file and place', async () => {
  const one = await client();
  await one.write('/a', '1');
  one.close();
  await killDaemon();
  const bytes = readFileSync(journal());
  bytes[100] ^= 0xff;
  writeFileSync(journal(), bytes);
  await expect(client()).rejects.toThrow(
    new RegExp(`^the daemon could not be started: ${journal()}: damaged at byte \\d+: `),
  );
  expect(readFileSync(journal()).equals(bytes)).toBe(true);
  expect(existsSync(join(root, 'xenstored', 'journal.new'))).toBe(false);
});

test('a daemon whose folder is taken away ends, and the next one starts with nothing', async () => {
  const before = await client();
  await before.write('/a', '1');
  const pid = daemonPid();
  rmSync(root, { recursive: true });
  await before.closed;
  const after = await client();
  expect(await after.read('/a')).toBe(null);
  expect(daemonPid()).not.toBe(pid);
  after.close();
});

test('a state folder whose name is too long for a socket is an error that says so', async () => {
  const long = join(root, 'x'.repeat(120));
  await expect(openXenstored(long)).rejects.toThrow(/too long for a unix socket; set DOMUS_STATE_DIR/);
});

test('bad lengths, partial messages and floods of other programs leave a client alone', async () => {
  const one = await client();
  const path = join(root, 'xenstored', 'socket');
  const hostile = Array.from({ length: 30 }, (_, i) => {
    const socket = connect(path);
    socket.on('error', () => {});
    const header = new Uint32Array([XS.READ, 1, 0, i % 3 === 0 ? 0xffffffff : i % 3 === 1 ? 100 : 8]);
    const bytes = Buffer.concat([Buffer.from(header.buffer), Buffer.from('/nosuch\0')]);
    socket.write(bytes.subarray(0, i % 3 === 1 ? 20 : 24));
    if (i % 3 === 2) for (let n = 0; n < 2000; n++) socket.write(bytes);
    return socket;
  });
  for (let i = 0; i < 50; i++) {
    await one.write('/a', String(i));
    expect(await one.read('/a')).toBe(String(i));
  }
  for (const socket of hostile) socket.destroy();
  expect(await one.read('/a')).toBe('49');
  one.close();
});

test('a guest`s transactions and watches go on over its ring while the daemon is killed again and again', async () => {
  const toolstack = new XenstoreClient(await openXenstoreSession(0, () => {}, root));
  const domid = Number(await toolstack.control(['allocate-domid']));
  await toolstack.introduce(domid, 1, 1);
  await toolstack.write(`/local/domain/${domid}/data`, '');
  await toolstack.setPermissions(`/local/domain/${domid}/data`, [`n${domid}`]);

  const guest = new TestGuest();
  const connection = new LinkConnection(await openXenstoreSession(domid, () => {}, root));
  const ring = createRingServer({ page: guest.page, connection, notify: () => guest.notified++ });
  const events: string[] = [];
  let reqId = 0;
  const ask = async (type: number, text: string, txId = 0): Promise<string> => {
    reqId++;
    const bytes = encodeMessage({ type, reqId, txId, payload: textToBytes(text) });
    for (let sent = guest.write(bytes); sent < bytes.length; sent += guest.write(bytes.subarray(sent))) ring.service();
    ring.service();
    for (;;) {
      for (const message of guest.read()) {
        if (message.type === XS.WATCH_EVENT) events.push(bytesToText(message.payload).split('\0')[0]);
        else {
          expect([message.reqId, message.txId]).toEqual([reqId, txId]);
          return message.type === XS.ERROR ? `!${bytesToText(message.payload)}` : bytesToText(message.payload);
        }
      }
      ring.service();
      await sleep(1);
    }
  };

  expect(await ask(XS.WATCH, 'data/x\0token\0')).toBe('OK\0');
  let conflicts = 0;
  let done = 0;
  let kills = 0;
  let running = true;
  const killing = (async () => {
    while (running && (kills < 4 || conflicts === 0)) {
      await sleep(120 + kills * 37);
      if (await killDaemon()) kills++;
    }
  })();
  // On a busy machine a daemon may be killed before the guest has come back to it.
  for (let i = 0; i < 60 || kills < 4 || conflicts === 0; i++) {
    done++;
    for (;;) {
      const id = Number((await ask(XS.TRANSACTION_START, '\0')).replace('\0', ''));
      expect(id).toBeGreaterThan(0);
      const old = await ask(XS.READ, 'data/count\0', id);
      const count = old.startsWith('!') ? 0 : Number(old);
      expect(await ask(XS.WRITE, `data/count\0${count + 1}`, id)).toBe('OK\0');
      await sleep(4);
      expect(await ask(XS.WRITE, `data/x/${i}\0${i}`, id)).toBe('OK\0');
      const end = await ask(XS.TRANSACTION_END, 'T\0', id);
      if (end === 'OK\0') break;
      expect(end).toBe('!EAGAIN\0');
      conflicts++;
    }
    expect(await ask(XS.WRITE, `data/plain\0${i}`)).toBe('OK\0');
    // Its rights are the guest's, before and after.
    if (i % 10 === 0) expect(await ask(XS.WRITE, `/local/domain/${domid}/name\0x`)).toBe('!EACCES\0');
  }
  running = false;
  await killing;
  expect(await ask(XS.READ, 'data/count\0')).toBe(String(done));
  expect(conflicts).toBeGreaterThan(0);
  // Of each change there is an event, or one of the watch set anew after it.
  expect(events.length).toBeGreaterThan(40);
  expect((await toolstack.directory(`/local/domain/${domid}/data/x`))?.length).toBe(done);
  connection.close();
  toolstack.close();
});

test('what a domain leaves is removed when its process is killed, and its end is told', async () => {
  const toolstack = await client();
  const domid = Number(await toolstack.control(['allocate-domid']));
  await toolstack.introduce(domid, 1, 1);
  await toolstack.write(`/local/domain/${domid}/name`, 'victim');
  await toolstack.write(`/libxl/${domid}/type`, 'pv');
  await toolstack.write(`/local/domain/0/backend/vif/${domid}/0/state`, '4');
  const released: string[] = [];
  await toolstack.watch('@releaseDomain', 'token', (path) => void released.push(path));
  // As any watch does when it is set.
  while (released.length === 0) await sleep(5);
  released.length = 0;
  const program = `
    const { openXenstoreSession } = await import(${JSON.stringify(new URL('./xenstored.ts', import.meta.url).href)});
    const { LinkConnection } = await import(${JSON.stringify(new URL('../xenstore/link-connection.ts', import.meta.url).href)});
    const connection = new LinkConnection(await openXenstoreSession(${domid}, () => {}, ${JSON.stringify(root)}));
    connection.onEvent = () => console.log('answered');
    connection.submit({ type: ${XS.READ}, reqId: 1, txId: 0, payload: new Uint8Array([97, 0]) });
    setInterval(() => {}, 1000);`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  children.push(child);
  await new Promise((resolve) => child.stdout.once('data', resolve));
  child.kill('SIGKILL');
  for (let i = 0; i < 500 && released.length === 0; i++) await sleep(10);
  expect(released).toEqual(['@releaseDomain']);
  expect(await toolstack.directory('/local/domain')).toEqual(['0']);
  expect(await toolstack.directory('/libxl')).toEqual([]);
  expect(await toolstack.directory('/local/domain/0/backend/vif')).toEqual([]);
  expect(await toolstack.isDomainIntroduced(domid)).toBe(false);
  toolstack.close();
});

test('domains are held to their quotas and their rights, each for itself, before and after a restart', async () => {
  const toolstack = new XenstoreClient(await openXenstoreSession(0, () => {}, root));
  const guests: XenstoreClient[] = [];
  for (const domid of [1, 2]) {
    await toolstack.introduce(domid, 1, 1);
    await toolstack.write(`/local/domain/${domid}/data`, '');
    await toolstack.setPermissions(`/local/domain/${domid}/data`, [`n${domid}`]);
    guests.push(new XenstoreClient(await openXenstoreSession(domid, () => {}, root)));
  }
  const [one, two] = guests;
  // Its own folder is one of the 1000.
  await one.transaction(async (t) => {
    await Promise.all(Array.from({ length: 999 }, (_, i) => t.write(`data/${i}`, 'x')));
  });
  const checkLimits = async (): Promise<void> => {
    await expect(one.write('data/one-too-many', '')).rejects.toMatchObject({ code: 'ENOSPC' });
    await expect(one.write('data/0', 'x'.repeat(2049))).rejects.toMatchObject({ code: 'E2BIG' });
    await expect(one.setPermissions('data/0', ['n1', 'r2', 'r3', 'r4', 'r5', 'r6'])).rejects.toMatchObject({
      code: 'ENOSPC',
    });
    await expect(one.setPermissions('data/0', ['n2'])).rejects.toMatchObject({ code: 'EACCES' });
    await two.write('data/a', 'mine');
    await expect(two.read('/local/domain/1/data/0')).rejects.toMatchObject({ code: 'EACCES' });
    await expect(two.write('/local/domain/1/data/1', '')).rejects.toMatchObject({ code: 'EACCES' });
    await expect(two.remove('/local/domain/1/data')).rejects.toMatchObject({ code: 'EACCES' });
    await expect(two.introduce(3, 1, 1)).rejects.toMatchObject({ code: 'EACCES' });
    await expect(two.release(1)).rejects.toMatchObject({ code: 'EACCES' });
  };
  await checkLimits();
  await one.setPermissions('data/1', ['n1', 'r2']);
  await one.setPermissions('data/2', ['n1', 'b2']);
  await killDaemon();
  await checkLimits();
  expect(await two.read('/local/domain/1/data/1')).toBe('x');
  await expect(two.write('/local/domain/1/data/1', 'y')).rejects.toMatchObject({ code: 'EACCES' });
  await two.write('/local/domain/1/data/2', 'y');
  expect(await one.read('data/2')).toBe('y');
  let watches = 0;
  try {
    for (; watches < 200; watches++) await two.watch('data', `${watches}`, () => {});
  } catch (error) {
    expect(error).toMatchObject({ code: 'ENOSPC' });
  }
  expect(watches).toBe(128);
  for (const one of [toolstack, ...guests]) one.close();
});
