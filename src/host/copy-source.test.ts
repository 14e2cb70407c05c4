import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { CONTROL_METHODS } from './control-protocol.ts';
import { ControlError, type ControlHandlers, type ControlServer, openControlServer } from './control-server.ts';
import type { FrozenMemory } from './copied-memory.ts';
import { DomainSource } from './copy-source.ts';
import type { ForkStart } from './domain-copies.ts';
import { controlPath } from './state-dir.ts';

let root = '';
let server: ControlServer;
let start = Promise.withResolvers<ForkStart>();
let memory = Promise.withResolvers<FrozenMemory | null>();
let asked: unknown[] = [];
beforeEach(async () => {
  root = mkdtempSync(join(tmpdir(), 'domus-source-'));
  start = Promise.withResolvers();
  memory = Promise.withResolvers();
  asked = [];
  const handlers = Object.fromEntries(CONTROL_METHODS.map((name) => [name, () => null])) as unknown as ControlHandlers;
  const note = (what: unknown): void => void asked.push(what);
  mkdirSync(dirname(controlPath(root, 5)), { recursive: true });
  server = await openControlServer(controlPath(root, 5), {
    ...handlers,
    'fork-early': () => ({ base: '/b', changes: null }),
    'fork-start': ({ ticket }) => {
      note(ticket);
      return start.promise;
    },
    'fork-memory': ({ ticket }) => {
      note(ticket);
      return memory.promise;
    },
  });
});
afterEach(() => {
  server.close();
  rmSync(root, { recursive: true });
});

const request = (folder: string) => {
  const ring = { pfn: 1, port: 1 };
  const facts = { engine: 'wasm', knownDomid: 5, tscKhz: 1, store: ring, console: ring, cmdline: '' } as const;
  const identity = { name: 'copy', uuid: new Uint8Array(16), macs: {}, generation: [1n, 2n] } as const;
  const outline = { shape: { ramPages: 1, maxPages: 1, vcpus: 1 }, ...facts };
  return { outline, domid: 5, ticket: 'abc', folder, identity };
};

test('a copy hears of the state first, makes its disks, and hears of the memory', async () => {
  const raw = join(root, 'raw');
  writeFileSync(raw, Buffer.alloc(1 << 16));
  const ready = Promise.withResolvers<void>();
  const source = await DomainSource.open(request(root), root, async () => ready.resolve());
  await expect(source.early()).resolves.toEqual({ base: '/b', changes: null });
  const taken = source.take();
  await ready.promise;
  const base = { path: raw, format: 'raw', sizeBytes: 1 << 16 } as const;
  const disks = [{ id: 51712, vdev: 'xvda', top: '/t', base }];
  start.resolve({ state: '/s', hasPages: false, askedNs: 1, stoppedNs: 2, describedNs: 3, disks });
  const { memory: frozen, ...state } = await taken;
  const overlay = join(root, 'xvda.qcow2');
  expect(state).toEqual({
    state: '/s',
    hasPages: false,
    askedNs: 1,
    stoppedNs: 2,
    describedNs: 3,
    disks: { 51712: overlay },
  });
  expect(existsSync(overlay)).toBe(true);
  expect(asked).toEqual(['abc', 'abc']);
  memory.resolve({ base: '/b', changes: '/c' });
  await expect(frozen).resolves.toEqual({ base: '/b', changes: '/c' });
});

test('what the domain cannot do, and that it is gone, is told', async () => {
  const source = await DomainSource.open(request(root), root, async () => {});
  start.promise.catch(() => undefined);
  start.reject(new ControlError('another domain has pages of it mapped'));
  await expect(source.take()).rejects.toThrow('Domain 5:another domain has pages of it mapped');
  const late = await DomainSource.open(request(root), root, async () => server.close());
  start = Promise.withResolvers();
  await expect(late.take()).rejects.toThrow('Domain 5: its process is gone');
  await expect(DomainSource.open(request(root), root, async () => {})).rejects.toThrow('its process is gone');
});
