/**
 * What a toolstack asks of a running PV guest through xenstore: to shut down, to press a SysRq key, to use more or less memory, to
 * bring vCPUs up or down. All of it is a request: the guest's kernel does it when it likes.
 *
 * Source: docs/misc/xenstore-paths.pandoc (control/*, memory/*, cpu/*); tools/libs/light/libxl_domain.c, libxl_mem.c (behaviour).
 */

import type { XenstoreClient } from '../xenstore/client.ts';

/** The request makes no sense for this domain. One line, as libxl says it. */
export class DomainControlError extends Error {
  override readonly name = 'DomainControlError';
}

/** What a guest can be asked to do. Source: xenstore-paths.pandoc, control/shutdown. */
export type ShutdownRequest = 'poweroff' | 'reboot' | 'suspend' | 'halt';

const domainPath = (domid: number): string => `/local/domain/${domid}`;

async function mustExist(store: XenstoreClient, domid: number): Promise<void> {
  if ((await store.read(`${domainPath(domid)}/domid`)) === null)
    throw new DomainControlError(`Domain ${domid}:Non-existant domain`);
}

/** Asks the guest to shut down in some way. It empties the node when it has taken the request. */
export async function requestShutdown(store: XenstoreClient, domid: number, request: ShutdownRequest): Promise<void> {
  await mustExist(store, domid);
  await store.write(`${domainPath(domid)}/control/shutdown`, request);
}

/** Does the guest's kernel say that it can be asked to suspend? */
export async function offersSuspend(store: XenstoreClient, domid: number): Promise<boolean> {
  return (await store.read(`${domainPath(domid)}/control/feature-suspend`)) === '1';
}

/** Asks the guest to suspend, and gives null; or gives what it was asked for before and has not taken. */
export async function asksForSuspend(store: XenstoreClient, domid: number): Promise<string | null> {
  const node = `${domainPath(domid)}/control/shutdown`;
  return await store.transaction(async (t) => {
    const before = (await t.read(node)) ?? '';
    if (before !== '') return before;
    await t.write(node, 'suspend');
    return null;
  });
}

/** Takes a request back that the guest has not taken. What was found there: empty if it has. */
export async function takeBackShutdown(
  store: XenstoreClient,
  domid: number,
  request: ShutdownRequest,
): Promise<string> {
  const node = `${domainPath(domid)}/control/shutdown`;
  return await store.transaction(async (t) => {
    const found = (await t.read(node)) ?? '';
    if (found === request) await t.write(node, '');
    return found;
  });
}

/** Has the guest taken the last request? */
export async function isShutdownTaken(store: XenstoreClient, domid: number): Promise<boolean> {
  return ((await store.read(`${domainPath(domid)}/control/shutdown`)) ?? '') === '';
}

/** Presses a magic SysRq key in the guest: one character. */
export async function sendSysrq(store: XenstoreClient, domid: number, key: string): Promise<void> {
  if (!/^[\x21-\x7e]$/.test(key)) throw new DomainControlError(`Domain ${domid}:sysrq is one letter, not \`${key}'`);
  await mustExist(store, domid);
  await store.write(`${domainPath(domid)}/control/sysrq`, key);
}

/** Sets what the guest's balloon aims at, in KiB: at most what the domain was given at most. */
export async function setMemoryTarget(store: XenstoreClient, domid: number, targetKiB: number): Promise<void> {
  const memory = `${domainPath(domid)}/memory`;
  await store.transaction(async (t) => {
    const maximum = Number((await t.read(`${memory}/static-max`)) ?? Number.NaN);
    if (Number.isNaN(maximum)) throw new DomainControlError(`Domain ${domid}:Non-existant domain`);
    if (!(Number.isSafeInteger(targetKiB) && targetKiB >= 0 && targetKiB <= maximum))
      throw new DomainControlError(
        `Domain ${domid}:memory_dynamic_max must be less than or equal to memory_static_max`,
      );
    await t.write(`${memory}/target`, String(targetKiB));
  });
}

/** Makes the first `count` of the domain's vCPUs online and the others offline. */
export async function setOnlineVcpus(store: XenstoreClient, domid: number, count: number): Promise<void> {
  const folder = `${domainPath(domid)}/cpu`;
  await store.transaction(async (t) => {
    const vcpus = (await t.directory(folder))?.map(Number);
    if (vcpus === undefined) throw new DomainControlError(`Domain ${domid}:Non-existant domain`);
    if (!Number.isInteger(count) || count < 1 || count > vcpus.length)
      throw new DomainControlError(
        `Domain ${domid}:Requested ${count} VCPUs, however maxcpus is ${vcpus.length}!: Function not implemented`,
      );
    for (const vcpu of vcpus) {
      const node = `${folder}/${vcpu}/availability`;
      const wanted = vcpu < count ? 'online' : 'offline';
      // Each write wakes the guest.
      if ((await t.read(node)) !== wanted) await t.write(node, wanted);
    }
  });
}

/** Sets what the guest's balloon may aim at, in KiB: at most `ceilingKiB`, what the domain's memory was made for. */
export async function setMemoryMaximum(
  store: XenstoreClient,
  domid: number,
  maximumKiB: number,
  ceilingKiB: number,
): Promise<void> {
  const memory = `${domainPath(domid)}/memory`;
  await mustExist(store, domid);
  const target = Number((await store.read(`${memory}/target`)) ?? 0);
  if (maximumKiB < target)
    throw new DomainControlError(
      `Domain ${domid}:memory_static_max must be greater than or or equal to memory_dynamic_max`,
    );
  if (maximumKiB > ceilingKiB)
    throw new DomainControlError(
      `Domain ${domid}:its memory was made for ${ceilingKiB / 1024} MiB; say more with maxmem= when it is created`,
    );
  await store.write(`${memory}/static-max`, String(maximumKiB));
}
