/**
 * Plugs a device into a running domain and unplugs it, as any toolstack can: by the nodes alone. The domain's own process, or the
 * driver domain, sees them and runs the backend; how far it has come stands in `state`.
 *
 * Source: tools/libs/light/libxl_device.c, libxl__wait_device_connection and libxl__initiate_device_generic_remove (behaviour).
 */

import { XenbusStateClosed, XenbusStateClosing, XenbusStateConnected, XenbusStateInitWait } from '../abi/io/xenbus.ts';
import type { XenstoreClient } from '../xenstore/client.ts';
import { addDeviceNodes, backendPath, type DeviceNodes, removeDeviceNodes, unplugDevice } from './device-nodes.ts';

/** The device cannot be plugged. One line. */
export class DevicePlugError extends Error {
  override readonly name = 'DevicePlugError';
}

/** Source: libxl_internal.h, LIBXL_INIT_TIMEOUT and LIBXL_DESTROY_TIMEOUT. */
const LIMIT_MS = 10_000;

/** Waits for a state; the last one that was there, 0 for none. */
async function waitForState(
  store: XenstoreClient,
  path: string,
  wanted: readonly number[],
  limitMs: number,
): Promise<number> {
  const node = `${path}/state`;
  const token = `wait ${Math.random()}`;
  let look = (): void => {};
  let timer: ReturnType<typeof setTimeout> | undefined;
  let late = false;
  await store.watch(node, token, () => look());
  try {
    timer = setTimeout(() => {
      late = true;
      look();
    }, limitMs);
    for (;;) {
      const changed = new Promise<void>((resolve) => {
        look = resolve;
      });
      const state = Number((await store.read(node)) ?? 0);
      if (wanted.includes(state) || late) return state;
      await changed;
    }
  } finally {
    clearTimeout(timer);
    await store.unwatch(node, token);
  }
}

/**
 * Makes the device's nodes and waits until its backend is ready for the guest; the guest connects when it likes.
 * @throws DevicePlugError, with nothing left behind
 */
export async function plugDevice(
  store: XenstoreClient,
  domid: number,
  nodes: DeviceNodes,
  limitMs = LIMIT_MS,
): Promise<void> {
  if (!(await addDeviceNodes(store, domid, nodes)))
    throw new DevicePlugError(`Domain ${domid}: device ${nodes.kind} ${nodes.id} is there already`);
  const path = backendPath(domid, nodes);
  const ready = [XenbusStateInitWait, XenbusStateConnected];
  const over = [XenbusStateClosing, XenbusStateClosed, 0];
  const state = await waitForState(store, path, [...ready, ...over], limitMs);
  if (ready.includes(state)) {
    // In a driver domain it is for the script there to say so.
    if ((nodes.backendDomid ?? 0) === 0) await store.write(`${path}/hotplug-status`, 'connected');
    return;
  }
  // A driver domain may have written anything.
  const error = (await store.read(errorNode(path)))?.replace(/[^ -~]/g, '?').slice(0, 1024);
  await removeDeviceNodes(store, domid, nodes);
  const reason = over.includes(state) ? (error ?? 'its backend has closed') : `its backend is in state ${state} still`;
  throw new DevicePlugError(`Domain ${domid}: unable to add device ${nodes.kind} ${nodes.id}: ${reason}`);
}

/** Where a backend says what was wrong: Dom0's `error/backend/...`. */
export function errorNode(path: string): string {
  return `${path.replace(/^(\/local\/domain\/\d+)\//, '$1/error/')}/error`;
}

/** Asks for the device back; takes it away by force when the guest does not let go of it in time. True: it let go. */
export async function unplugAndRemove(
  store: XenstoreClient,
  domid: number,
  nodes: DeviceNodes,
  limitMs = LIMIT_MS,
): Promise<boolean> {
  await unplugDevice(store, domid, nodes);
  const state = await waitForState(store, backendPath(domid, nodes), [XenbusStateClosed, 0], limitMs);
  await removeDeviceNodes(store, domid, nodes);
  return state === XenbusStateClosed || state === 0;
}
