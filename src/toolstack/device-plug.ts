/**
 * Plugs a device into a running domain and unplugs it, as any toolstack can: by the nodes alone. The domain's own process, or the
 * driver domain, sees them and runs the backend; how far it has come stands in `state`.
 *
 * Source: tools/libs/light/libxl_device.c, libxl__wait_device_connection and libxl__initiate_device_generic_remove (behaviour).
 */

import { XenbusStateClosed, XenbusStateClosing, XenbusStateConnected, XenbusStateInitWait } from '../abi/io/xenbus.ts';
import type { XenstoreClient } from '../xenstore/client.ts';
import {
  addDeviceNodes,
  backendPath,
  type DeviceNodes,
  frontendPath,
  removeDeviceNodes,
  scriptPath,
  unplugDevice,
} from './device-nodes.ts';

/** The device cannot be plugged. One line. */
export class DevicePlugError extends Error {
  override readonly name = 'DevicePlugError';
}

/** Source: libxl_internal.h, LIBXL_INIT_TIMEOUT and LIBXL_DESTROY_TIMEOUT. */
const LIMIT_MS = 10_000;
/** After which a device's script is killed. Source: libxl_internal.h, LIBXL_HOTPLUG_TIMEOUT. */
export const HOTPLUG_LIMIT_MS = 40_000;
/** Those that nodes name without anybody having asked for a script. */
const USUAL_SCRIPTS: readonly (string | null | undefined)[] = [
  null,
  undefined,
  scriptPath('block'),
  scriptPath('vif-bridge'),
];
/** A script has this long beside what the device takes: its nodes must not go while it runs. */
const scriptLimitMs = (script: string | null | undefined): number =>
  USUAL_SCRIPTS.includes(script) ? 0 : HOTPLUG_LIMIT_MS;

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
 * Makes the device's nodes and waits until its backend is ready for the guest; the guest connects when it likes. `limitMs` is without the
 * time that a script of the device may take.
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
  const state = await waitForState(store, path, [...ready, ...over], limitMs + scriptLimitMs(nodes.backend['script']));
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

/**
 * Asks for the device back; takes it away by force when the guest does not let go of it in time. True: it let go. A script of the device has
 * its own time to end in, before its nodes go.
 */
export async function unplugAndRemove(
  store: XenstoreClient,
  domid: number,
  nodes: DeviceNodes,
  limitMs = LIMIT_MS,
): Promise<boolean> {
  await unplugDevice(store, domid, nodes);
  const [path, frontend] = [backendPath(domid, nodes), frontendPath(domid, nodes)];
  const scriptMs = scriptLimitMs(await store.read(`${path}/script`));
  const closed = [XenbusStateClosed, 0];
  const state = await waitForState(store, path, closed, limitMs);
  let hasLetGo = closed.includes(state);
  if (!hasLetGo && scriptMs > 0) {
    hasLetGo = closed.includes(Number((await store.read(`${frontend}/state`)) ?? 0));
    // For the backend the guest is gone then.
    if (!hasLetGo) await store.remove(frontend);
    await waitForState(store, path, closed, scriptMs);
  }
  await removeDeviceNodes(store, domid, nodes);
  return hasLetGo;
}
