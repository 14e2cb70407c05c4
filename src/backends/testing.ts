/** For tests: a guest that does whatever a test wants, as backends see it, and the toolstack's part of its devices. */

import { SRING } from '../abi/io/ring.ts';
import { XenstoreClient } from '../xenstore/client.ts';
import { linkToStore } from '../xenstore/link.ts';
import { createStore, type Store } from '../xenstore/store.ts';
import type { GuestChannel, GuestPort } from './guest-port.ts';

const PAGE_SIZE = 4096;

interface Grant {
  readonly page: number;
  readonly readOnly: boolean;
  mappings: number;
}

/** Memory, grants and event channels of a guest. Handlers run in `dispatch`. */
export class FakeGuest implements GuestPort {
  readonly domid = 7;
  readonly memory: { u8: Uint8Array<SharedArrayBuffer>; i32: Int32Array<SharedArrayBuffer> };
  /** What backends said they had stored: [offset, size]. */
  readonly stored: [number, number][] = [];
  /** Events that the guest has got, by port. */
  readonly events = new Map<number, number>();
  readonly #grants = new Map<number, Grant>();
  readonly #handlers = new Map<number, () => boolean>();
  readonly #unbound = new Set<number>();
  readonly #signalled = new Set<number>();
  #nextPage = 0;
  #nextPort = 1;

  constructor(pages = 512) {
    const buffer = new SharedArrayBuffer(pages * PAGE_SIZE);
    this.memory = { u8: new Uint8Array(buffer), i32: new Int32Array(buffer) };
  }

  /** Mappings that no backend has released. */
  get mappings(): number {
    return [...this.#grants.values()].reduce((sum, grant) => sum + grant.mappings, 0);
  }

  /** Byte offset of a page that nothing has used yet. */
  allocatePage(): number {
    return this.#nextPage++ * PAGE_SIZE;
  }

  grant(gref: number, page: number, readOnly = false): number {
    this.#grants.set(gref, { page, readOnly, mappings: 0 });
    return gref;
  }

  /** Takes a grant away, whoever uses it. */
  revoke(gref: number): void {
    this.#grants.delete(gref);
  }

  allocatePort(): number {
    const port = this.#nextPort++;
    this.#unbound.add(port);
    return port;
  }

  /** The guest sends an event. */
  send(port: number): void {
    if (this.#handlers.has(port)) this.#signalled.add(port);
  }

  /** Runs what was signalled, until nothing is or `turnsMax` is over. */
  dispatch(turnsMax = 1000): void {
    for (let turn = 0; turn < turnsMax && this.#signalled.size > 0; turn++)
      for (const port of [...this.#signalled]) {
        this.#signalled.delete(port);
        if (this.#handlers.get(port)?.()) this.#signalled.add(port);
      }
  }

  mapGrant(gref: number, writable: boolean): number {
    const grant = this.#grants.get(gref);
    if (grant === undefined) return -3;
    if (writable && grant.readOnly) return -1;
    grant.mappings++;
    return grant.page;
  }

  unmapGrant(gref: number, _writable: boolean): void {
    const grant = this.#grants.get(gref);
    if (grant !== undefined) grant.mappings--;
  }

  /** MFNs are page numbers here, from 0x100000 on. */
  mapFrame(mfn: number): number {
    const page = (mfn - 0x100000) * PAGE_SIZE;
    return Number.isInteger(page) && page >= 0 && page < this.memory.u8.length ? page : -1;
  }

  memoryStored(offset: number, sizeBytes: number): void {
    this.stored.push([offset, sizeBytes]);
  }

  bindEventChannel(port: number, onEvent: () => boolean): GuestChannel | null {
    if (!this.#unbound.delete(port)) return null;
    this.#handlers.set(port, onEvent);
    this.#signalled.add(port);
    return {
      notify: () => void this.events.set(port, (this.events.get(port) ?? 0) + 1),
      signalSelf: () => void this.#signalled.add(port),
      close: () => {
        this.#handlers.delete(port);
        this.#unbound.add(port);
      },
    };
  }
}

/** The guest's side of a ring of one or more pages. */
export class FrontRing {
  readonly pages: readonly number[];
  readonly slots: number;
  readonly #guest: FakeGuest;
  readonly #slotBytes: number;
  reqProd = 0;
  rspCons = 0;

  constructor(guest: FakeGuest, pages: readonly number[], slotBytes: number, slots: number) {
    this.#guest = guest;
    this.pages = pages;
    this.#slotBytes = slotBytes;
    this.slots = slots;
    this.word(SRING.req_event, 1);
    this.word(SRING.rsp_event, 1);
  }

  /** Reads a word of the header, or sets it. */
  word(offset: number, value?: number): number {
    const { i32 } = this.#guest.memory;
    const index = (this.pages[0] + offset) >> 2;
    if (value !== undefined) i32[index] = value;
    return i32[index] >>> 0;
  }

  #at(index: number, byte: number): number {
    const at = SRING.ring + (index & (this.slots - 1)) * this.#slotBytes + byte;
    return this.pages[at >>> 12] + (at & (PAGE_SIZE - 1));
  }

  /** Puts a request without showing it. */
  put(bytes: Uint8Array): void {
    bytes.forEach((byte, i) => {
      this.#guest.memory.u8[this.#at(this.reqProd, i)] = byte;
    });
    this.reqProd = (this.reqProd + 1) | 0;
  }

  /** Shows what was put. */
  push(): void {
    this.word(SRING.req_prod, this.reqProd);
  }

  /** The responses since the last call, of so many bytes each; asks for an event with the next one. */
  take(length: number): Uint8Array[] {
    const responses: Uint8Array[] = [];
    for (; this.rspCons !== (this.word(SRING.rsp_prod) | 0); this.rspCons = (this.rspCons + 1) | 0)
      responses.push(Uint8Array.from({ length }, (_, i) => this.#guest.memory.u8[this.#at(this.rspCons, i)]));
    this.word(SRING.rsp_event, this.rspCons + 1);
    return responses;
  }
}

/** A store with the nodes of one device, both ends Initialising, and a client for each end. */
export interface TestDevice {
  readonly store: Store;
  readonly dom0: XenstoreClient;
  readonly guest: XenstoreClient;
  readonly backend: string;
  readonly frontend: string;
}

export async function makeDevice(kind: string, id: number, domid = 7): Promise<TestDevice> {
  const store = createStore();
  store.introduceDomain(domid, { gfn: 1, port: 1 });
  const dom0 = new XenstoreClient(linkToStore(store));
  const guest = new XenstoreClient(linkToStore(store, domid));
  const backend = `/local/domain/0/backend/${kind}/${domid}/${id}`;
  const frontend = `/local/domain/${domid}/device/${kind}/${id}`;
  const make = async (path: string, permissions: string[], nodes: Record<string, string>): Promise<void> => {
    await dom0.mkdir(path);
    await dom0.setPermissions(path, permissions);
    for (const [name, value] of Object.entries(nodes)) await dom0.write(`${path}/${name}`, value);
  };
  await make(`/local/domain/${domid}`, ['n0', `r${domid}`], {});
  await make(backend, ['n0', `r${domid}`], {
    frontend,
    'frontend-id': String(domid),
    online: '1',
    'hotplug-status': 'connected',
    state: '1',
  });
  await make(frontend, [`n${domid}`, 'r0'], { backend, 'backend-id': '0', state: '1' });
  return { store, dom0, guest, backend, frontend };
}

/** Waits until a node has a value; fails after two seconds with what it has. */
export async function waitForValue(client: XenstoreClient, path: string, wanted: string | null): Promise<void> {
  const endMs = performance.now() + 2000;
  for (;;) {
    const value = await client.read(path);
    if (value === wanted) return;
    if (performance.now() > endMs) throw new Error(`${path}: ${wanted} is expected, found ${value}`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}
