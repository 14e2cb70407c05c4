/** What block-list and network-list show of a domain's devices, from the toolstack's own copy of their nodes. */

import type { XenstoreClient } from '../../xenstore/client.ts';

export interface DeviceReport {
  readonly id: number;
  /** The backend's folder in xenstore. */
  readonly backendPath: string;
  readonly backendId: number;
  /** XenbusState* of the frontend. */
  readonly state: number;
  /** A node of the frontend or of the backend; null if it is not there. */
  readonly frontend: (name: string) => string | null;
  readonly backend: (name: string) => string | null;
}

/** All devices of a kind (`vbd`, `vif`), by number. */
export async function devicesOf(store: XenstoreClient, domid: number, kind: string): Promise<DeviceReport[]> {
  const folder = `/libxl/${domid}/device/${kind}`;
  const ids = ((await store.directory(folder)) ?? []).map(Number).sort((a, b) => a - b);
  const reports: DeviceReport[] = [];
  for (const id of ids) {
    const backendPath = await store.read(`${folder}/${id}/backend`);
    const frontendPath = await store.read(`${folder}/${id}/frontend`);
    if (backendPath === null || frontendPath === null) continue;
    const [backend, frontend] = [await nodesOf(store, backendPath), await nodesOf(store, frontendPath)];
    reports.push({
      id,
      backendPath,
      backendId: Number(frontend.get('backend-id') ?? 0),
      state: Number(frontend.get('state') ?? 0),
      frontend: (name) => frontend.get(name) ?? null,
      backend: (name) => backend.get(name) ?? null,
    });
  }
  return reports;
}

async function nodesOf(store: XenstoreClient, path: string): Promise<Map<string, string>> {
  const nodes = new Map<string, string>();
  for (const name of (await store.directory(path)) ?? []) {
    const value = await store.read(`${path}/${name}`);
    if (value !== null) nodes.set(name, value);
  }
  return nodes;
}

/** A number for a column; -1 where there is none. */
export function numberIn(text: string | null): number {
  return text === null || !/^\d{1,10}$/.test(text) ? -1 : Number(text);
}
