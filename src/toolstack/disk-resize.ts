/**
 * Asks the backend of a running domain's disk for another size, by a node beside those of the device (backends/block.ts). The guest
 * hears of it as under Xen: `sectors` changes, and `state` is written once more.
 */

import { RESIZE_AS_IT_IS, RESIZE_NODE } from '../backends/block.ts';
import type { XenstoreClient } from '../xenstore/client.ts';

/** The disk stays as it is. One line. */
export class DiskResizeError extends Error {
  override readonly name = 'DiskResizeError';
}

const LIMIT_MS = 60_000;

/**
 * @param id number of the virtual device
 * @param sizeBytes null: the size that the file or device of the host has by now
 * @returns the size that the disk has then, in bytes
 * @throws DiskResizeError
 */
export async function resizeDisk(
  store: XenstoreClient,
  domid: number,
  id: number,
  sizeBytes: number | null,
  limitMs = LIMIT_MS,
): Promise<number> {
  const path = await store.read(`/libxl/${domid}/device/vbd/${id}/backend`);
  if (path === null) throw new DiskResizeError('the domain has no such disk');
  const node = `${path}/${RESIZE_NODE}`;
  const token = `resize ${Math.random()}`;
  let look = (): void => {};
  await store.write(node, sizeBytes === null ? RESIZE_AS_IT_IS : String(sizeBytes));
  await store.watch(node, token, () => look());
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    look();
  }, limitMs);
  try {
    for (;;) {
      const changed = new Promise<void>((resolve) => {
        look = resolve;
      });
      if ((await store.read(node)) === null) break;
      if (late) {
        await store.remove(node);
        throw new DiskResizeError(`its backend has not answered within ${limitMs / 1000} s`);
      }
      await changed;
    }
  } finally {
    clearTimeout(timer);
    await store.unwatch(node, token);
  }
  const error = await store.read(`${node}-error`);
  if (error === null) throw new DiskResizeError('it is gone');
  if (error !== '') throw new DiskResizeError(error);
  return Number((await store.read(`${path}/sectors`)) ?? 0) * 512;
}
