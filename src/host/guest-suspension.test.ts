import { beforeEach, expect, test } from 'vitest';
import { createDomain, DOMAIN, type Domain } from '../hypervisor/domain.ts';
import { createMachineMemory } from '../machine/memory.ts';
import { introduceDomain } from '../toolstack/xenstore-nodes.ts';
import { XenstoreClient } from '../xenstore/client.ts';
import { linkToStore } from '../xenstore/link.ts';
import { createStore } from '../xenstore/store.ts';
import { GuestSuspension } from './guest-suspension.ts';

const NODE = '/local/domain/2/control/shutdown';
let domain: Domain;
let dom0: XenstoreClient;
let guest: XenstoreClient;

beforeEach(async () => {
  const store = createStore();
  dom0 = new XenstoreClient(linkToStore(store));
  const rings = { storePort: 1, storeMfn: 1, consolePort: 2, consoleMfn: 2 };
  const identity = { domid: 2, uuid: 'e29e0040-db4b-4e86-9413-deddcaa5c837', name: 'u2' };
  await introduceDomain(dom0, { ...identity, ...rings, memoryKiB: 4096, maxMemKiB: 4096, vcpus: 1 });
  guest = new XenstoreClient(linkToStore(store, 2));
  domain = createDomain(createMachineMemory(64, 64), 2, 1, new Uint8Array(16));
});

const suspensionOf = (limits: { takeLimitMs?: number; suspendLimitMs?: number } = {}): GuestSuspension =>
  new GuestSuspension({ domain, store: dom0, isEnding: () => false, ...limits });
const offer = (): Promise<void> => guest.write('control/feature-suspend', '1');

/** Calls `act` with what the guest is asked for, whenever that changes. */
async function listen(act: (request: string) => Promise<void>): Promise<void> {
  await guest.watch('control/shutdown', '', () => {
    void guest.read('control/shutdown').then((request) => act(request ?? ''));
  });
}

const suspend = (): void => void Atomics.store(domain.i32, DOMAIN.suspended >> 2, 1);

test('a guest that offers it is asked, and suspends itself', async () => {
  await offer();
  await listen(async (request) => {
    if (request !== 'suspend') return;
    await guest.write('control/shutdown', '');
    suspend();
  });
  const suspension = suspensionOf();
  expect(await suspension.ask(() => false)).toBe(true);
  expect(suspension.remark).toBe(null);
});

test('one that does not offer it is not asked', async () => {
  const requests: string[] = [];
  await listen(async (request) => void requests.push(request));
  const suspension = suspensionOf();
  expect(await suspension.ask(() => false)).toBe(false);
  expect(suspension.remark).toBe(null);
  expect(requests.join('')).toBe('');
});

test('one that does not answer is asked no more, and that is told', async () => {
  await offer();
  const suspension = suspensionOf({ takeLimitMs: 1 });
  expect(await suspension.ask(() => false)).toBe(false);
  expect(suspension.remark).toMatch(/^saved without the guest's help, .*: it did not answer within 0.001 s$/);
  expect(await dom0.read(NODE)).toBe('');
});

test('one that takes it and does nothing is waited for longer, and not saved', async () => {
  await offer();
  await listen(async (request) => {
    if (request === 'suspend') await guest.write('control/shutdown', '');
  });
  const suspension = suspensionOf({ takeLimitMs: 1, suspendLimitMs: 200 });
  await expect(suspension.ask(() => false)).rejects.toThrow(
    'the guest has begun to suspend itself, and has not done so within 0.2 s; when it has, xl resume ',
  );
});

test('one that is paused is left alone', async () => {
  await offer();
  const suspension = suspensionOf();
  expect(await suspension.ask(() => true)).toBe(false);
  expect(suspension.remark).toBe(null);
  expect(await dom0.read(NODE)).toBe('');
});

test('what somebody else asks for stays, whether it came before or after', async () => {
  await offer();
  await dom0.write(NODE, 'poweroff');
  const before = suspensionOf();
  expect(await before.ask(() => false)).toBe(false);
  expect(before.remark).toContain('it has not taken an earlier request: poweroff');
  expect(await dom0.read(NODE)).toBe('poweroff');

  await dom0.write(NODE, '');
  await listen(async (request) => {
    if (request === 'suspend') await dom0.write(NODE, 'reboot');
  });
  const after = suspensionOf({ takeLimitMs: 1 });
  expect(await after.ask(() => false)).toBe(false);
  expect(after.remark).toContain('it was asked for something else meanwhile: reboot');
  expect(await dom0.read(NODE)).toBe('reboot');
});

test('one that shuts down instead, or is destroyed, is not saved', async () => {
  await offer();
  await listen(async (request) => {
    if (request === 'suspend') domain.shutdown(1);
  });
  await expect(suspensionOf().ask(() => false)).rejects.toThrow('the domain has shut down meanwhile');
  const destroyed = new GuestSuspension({ domain, store: dom0, isEnding: () => true });
  await dom0.write(NODE, '');
  await expect(destroyed.ask(() => false)).rejects.toThrow('the domain has shut down meanwhile');
});
