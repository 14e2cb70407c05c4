import { fork } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import type { Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { readDomainConfig } from '../toolstack/config/domain-config.ts';
import type { XenstoreClient } from '../xenstore/client.ts';
import { LineReader } from './control-protocol.ts';
import { forgetRecord, recordOf, writeRecord } from './domain-record.ts';
import { copyFolder, type Forked, forkCopies } from './fork-domain.ts';
import { listenLocally } from './local-socket.ts';
import { formatProcessId, thisProcess } from './process-id.ts';
import type { EarlyProcess } from './start-domain.ts';
import { controlPath, domainFolder } from './state-dir.ts';

/**
 * What processes of copies do that the test wants to see, by their names. `taken` is there when the domain's process has told them what they go on from; what
 * they do in their folders shows whether that is theirs still.
 */
const COPY = `
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
const [TAKEN, FAILED] = process.argv.slice(2);
const say = (message) => new Promise((resolve) => (process.connected ? process.send(message, resolve) : resolve()));
process.once('message', async ({ config: { name }, fork: { folder } }) => {
  const write = () => {
    mkdirSync(folder, { recursive: true });
    writeFileSync(folder + '/overlay', '');
  };
  while (name === 'late' && !existsSync(FAILED)) await sleep(5);
  if (name === 'late') await sleep(100);
  await say({ kind: 'ready' });
  if (name === 'early') {
    await say({ kind: 'failed', message: 'no memory', isExpected: true });
    writeFileSync(FAILED, '');
  }
  while (name !== 'early' && !existsSync(TAKEN)) {
    if (!process.connected) process.exit(1);
    await sleep(5);
  }
  await sleep(300);
  write();
  if (name === 'runs') await say({ kind: 'started', domid: 7 });
  if (name === 'fails') {
    await say({ kind: 'failed', message: 'gone', isExpected: true });
    await sleep(300);
    write();
  }
  process.exit(1);
});
`;

let root = '';
function startProcess(): EarlyProcess {
  const files = [join(root, 'taken'), join(root, 'failed')];
  const child = fork(join(root, 'copy.mjs'), files, { execArgv: [], serialization: 'advanced' });
  return { child, logPath: join(root, 'log'), hasFailed: false, isTaken: false };
}

let server: Server;
/** Asked of the domain's process. */
let asked: string[] = [];
/** What it answers when it has told the copies; null: it is killed. */
let answer: object | null = null;
beforeEach(async () => {
  root = mkdtempSync(join(tmpdir(), 'domus-fork-'));
  asked = [];
  writeFileSync(join(root, 'copy.mjs'), COPY);
  mkdirSync(domainFolder(root, 1), { recursive: true });
  const text = 'name="web"\nkernel="k"\nmemory=64\n';
  const config = readDomainConfig('c', text, { warn: () => {} });
  writeRecord(root, 1, recordOf({ config, configText: text, quiet: true, preserve: false }));
  server = await listenLocally(controlPath(root, 1), (socket) => {
    const reader = new LineReader();
    socket.on('data', (bytes) => {
      for (const line of reader.take(bytes) ?? []) {
        const { id, method } = JSON.parse(line) as { id: number; method: string };
        asked.push(method);
        if (method === 'fork') writeFileSync(join(root, 'taken'), '');
        if (method === 'fork' && answer === null) socket.destroy();
        else socket.write(`${JSON.stringify({ id, ...(method === 'fork' ? answer : { result: {} }) })}\n`);
      }
    });
  });
});
afterEach(() => {
  server.close();
  rmSync(root, { recursive: true });
});

function copies(...names: string[]): Promise<Forked> {
  const store = { directory: async () => [] } as Partial<XenstoreClient> as XenstoreClient;
  return forkCopies({ root, store, domid: 1, names, paused: false, log: () => {}, startProcess });
}

for (const [what, said, trouble] of [
  ['is killed', null, 'Domain 1: its process is gone'],
  ['cannot go on', { error: { message: ' no disk' } }, 'Domain 1: no disk'],
] as const)
  test(`a copy that runs keeps its folder when the domain ${what}`, async () => {
    answer = said;
    expect(await copies('runs', 'fails')).toEqual({
      copies: [
        { kind: 'runs', name: 'runs', domid: 7, folder: copyFolder(root, 'runs') },
        { kind: 'failed', name: 'fails', message: 'gone' },
      ],
      disks: [],
      trouble,
    });
    expect(existsSync(join(copyFolder(root, 'runs'), 'overlay'))).toBe(true);
    // Not before its process has written to it for the last time.
    expect(existsSync(copyFolder(root, 'fails'))).toBe(false);
    expect(asked).toEqual(['outline', 'fork']);
  });

test('nothing is copied when one fails that was ready, before the last one is', async () => {
  await expect(copies('early', 'late')).rejects.toThrow('no memory');
  expect(asked).toEqual(['outline']);
  expect(existsSync(copyFolder(root, 'early'))).toBe(false);
  expect(existsSync(copyFolder(root, 'late'))).toBe(false);
});

test('nothing is copied, and nothing left, when all copies fail', async () => {
  answer = null;
  await expect(copies('fails')).rejects.toThrow('its process is gone');
  expect(existsSync(copyFolder(root, 'fails'))).toBe(false);
});

test('a domain that may run at another host by now is not copied, and that is said', async () => {
  writeFileSync(join(domainFolder(root, 1), 'pid'), formatProcessId(thisProcess()));
  forgetRecord(root, 1);
  await expect(copies('runs')).rejects.toThrow('Domain 1: it has been handed over to another host, and may run there');
  expect(existsSync(copyFolder(root, 'runs'))).toBe(false);
});
