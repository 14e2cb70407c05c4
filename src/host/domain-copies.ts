/**
 * What a domain's process does for copies of its domain, and for snapshots: all disks get a layer (disk-layers.ts) at the moment at which
 * memory and registers are taken, and the domain goes on.
 */

import { closeSync, ftruncateSync, openSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { setImmediate, setTimeout as sleep } from 'node:timers/promises';
import { DOMAIN, type Domain } from '../hypervisor/domain.ts';
import type { MovedDisk } from '../toolstack/config/device-specs.ts';
import type { Sink } from '../toolstack/saved/save-file.ts';
import { encodeM2p, encodePages } from '../toolstack/saved/saved-memory.ts';
import { encodeDomain, NotSavable } from '../toolstack/saved/saved-state.ts';
import { monotonicNs } from './clock.ts';
import type { ControlSnapshot } from './control-protocol.ts';
import { type CopiedMemory, type FrozenMemory, frozenDomain, type LookedAt, type Release } from './copied-memory.ts';
import { DiskLayers, type FrozenDisk } from './disk-layers.ts';
import type { DomainWriterOptions } from './domain-writer.ts';
import { ForkTickets } from './fork-tickets.ts';
import type { ForkState, Outline } from './forked-domain.ts';
import { GuestSuspension } from './guest-suspension.ts';
import { HostError } from './host-error.ts';
import { KnownNodes } from './known-nodes.ts';
import { hostCalls } from './libc.ts';
import { type SavableDomain, type Suspend, type WriteOptions, writeDomain } from './save-domain.ts';
import { PLAIN_CODEC, writeWhole } from './save-stream.ts';
import { disksFolder, domainFolder } from './state-dir.ts';

/** How long the sources of a copy are kept for one who never says that it has them. */
const KEPT_MS = 120_000;
/** Behind a copy, before what was kept for it is given up. */
const QUIET_MS = 500;
/** When copies are nearly ready, so many pages more may be written until they are. */
const EARLY_PAGES = 512;
/** What the guest has written since there is a base is looked at first after so long, and then each time after twice as long. */
const ROOM_FIRST_MS = 50;

export interface DomainCopiesOptions extends DomainWriterOptions {
  readonly root: string;
  /** Of the state that a domain was restored from, or is built for. */
  readonly shape: Outline['shape'];
  readonly memory: CopiedMemory | null;
  /** Others map pages of the memory. */
  readonly isShared: () => boolean;
  readonly onDiskMoved: (moved: MovedDisk) => void;
  readonly note: (line: string) => void;
}

/** A domain at one moment, for copies. */
export interface Fork {
  /** By which it is given back. */
  readonly key: number;
  readonly disks: readonly FrozenDisk[];
}

/** What copies begin with, but for the memory. */
export interface ForkStart extends ForkState {
  readonly disks: readonly FrozenDisk[];
}

interface Taken extends Pick<ForkStart, 'disks' | 'stoppedNs'> {}

interface HandOut {
  readonly ticket: string;
  readonly target: Target;
  readonly nodes: Pick<WriteOptions, 'nodes'>;
  /** What is made for the copies is added. */
  readonly releases: Release[];
  readonly started: Omit<ForkStart, 'state' | 'hasPages' | 'describedNs'>;
}

/** Where a stream goes that is read by `path`. */
interface Target {
  readonly path: string;
  readonly sink: Sink;
  /** What is written next is written from the beginning. */
  rewind(): void;
  /** There is nothing behind what has been written since. */
  end(): void;
  readonly release: Release;
}

export class DomainCopies {
  readonly #options: DomainCopiesOptions;
  readonly #kept = new Map<number, Release>();
  readonly #tickets = new ForkTickets();
  #lastKey = 0;
  /** What can be had before the domain stands still; null: nobody is about to copy it. */
  #ready: Promise<KnownNodes | null> | null = null;
  /** With pages for a state as large as this one: to find them takes longer than to fill them. */
  #spare: Target | null = null;
  #isBusy = false;

  constructor(options: DomainCopiesOptions) {
    this.#options = options;
  }

  /** What a process has to know to get ready for a copy. Meanwhile this one gets ready as well. */
  outline(): Outline {
    const ready = this.#getReady(this.#ready);
    this.#ready = ready;
    void this.#keepRoom(ready);
    // Whoever has asked may have gone.
    setTimeout(() => void this.#forget(ready), KEPT_MS).unref();
    const { facts, freezable, shape } = this.#options;
    const tscKhz = freezable.domain.u32[DOMAIN.tscKhz >> 2];
    return { shape, tscKhz, ...facts };
  }

  /** Null: the copy has to do without. It says itself what is wrong. `before`: what was got ready for one that has not come. */
  async #getReady(before: Promise<KnownNodes | null> | null): Promise<KnownNodes | null> {
    const { memory, isShared, freezer, freezable, store, note } = this.#options;
    const { domid } = freezable.domain;
    let known = await before;
    try {
      this.#mustBeAlone();
      known ??= await KnownNodes.read(store, domid);
      const atRest = (act: () => void): Promise<void> =>
        freezer.whileFrozen(async () => {
          act();
          return 'as before';
        });
      if (!isShared()) await memory?.prepare(atRest);
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      note(`Domain ${domid} cannot get ready to be copied: ${error.message}`);
    }
    return known;
  }

  /** The guest goes on writing until it is copied: there has to be room for that then. */
  async #keepRoom(ready: Promise<KnownNodes | null>): Promise<void> {
    const { memory, isShared, freezable, note } = this.#options;
    // All that it can bring is time: what is wrong is found again when the copy is made.
    await this.#rehearse(ready).catch(() => undefined);
    for (let ms = ROOM_FIRST_MS; memory !== null && !isShared() && this.#ready === ready; ms *= 2) {
      await sleep(ms, undefined, { ref: false });
      if (this.#ready !== ready || this.#isBusy) continue;
      try {
        await memory.makeRoom();
      } catch (error) {
        if (!(error instanceof Error)) throw error;
        note(`Domain ${freezable.domain.domid} has no room for what changes: ${error.message}`);
        return;
      }
    }
  }

  /** Does what the guest will stand still for, while it runs: JavaScript has compiled that then. What comes of it is nothing, and nobody reads it. */
  async #rehearse(ready: Promise<KnownNodes | null>): Promise<void> {
    const known = await ready;
    if (this.#options.memory === null || known === null) return;
    const { rehearseFreeze, TIMES } = await import('./rehearsed-copy.ts');
    const target = this.#openTarget(++this.#lastKey);
    try {
      for (let time = 0; time < TIMES; time++) {
        target.rewind();
        const options = { codec: PLAIN_CODEC, nodes: async () => known.last, pages: [] };
        await writeDomain(await this.#savable(), target.sink, options);
        // The guest's devices are served in between.
        await setImmediate();
      }
    } catch (error) {
      target.release();
      throw error;
    }
    if (this.#ready !== ready) {
      target.release();
      return;
    }
    this.#spare?.release();
    this.#spare = target;
    await rehearseFreeze();
  }

  async #takeReady(): Promise<KnownNodes | null> {
    const ready = this.#ready ?? this.#getReady(null);
    this.#ready = null;
    return await ready;
  }

  async #forget(ready: Promise<KnownNodes | null>): Promise<void> {
    if (this.#ready !== ready) return;
    this.#ready = null;
    this.#leaveRoom();
    (await ready)?.close();
  }

  #leaveRoom(): void {
    this.#options.memory?.leaveRoom();
    this.#spare?.release();
    this.#spare = null;
  }

  /** What copies may map of its memory before it is copied: nobody knows yet what will be there. Null: nothing. */
  async early(): Promise<FrozenMemory | null> {
    const { memory, isShared } = this.#options;
    if (memory === null || isShared()) return null;
    if (!this.#isBusy) await memory.makeRoom(EARLY_PAGES);
    return memory.early();
  }

  /** For `fork` with that ticket, before or after. Both reject as that does, or when nobody calls it. */
  start(ticket: string): Promise<ForkStart> {
    return this.#tickets.of(ticket).start.promise;
  }

  memory(ticket: string): Promise<FrozenMemory | null> {
    return this.#tickets.of(ticket).memory.promise;
  }

  /** Gives copies, who have the ticket, what they begin with; the domain goes on. @throws NotSavable, and what writing throws */
  async fork(ticket: string): Promise<Fork> {
    const askedNs = monotonicNs();
    try {
      return await this.#inTurn(() => this.#fork(ticket, askedNs));
    } catch (error) {
      this.#tickets.refuse(ticket, error);
      throw error;
    }
  }

  async #fork(ticket: string, askedNs: number): Promise<Fork> {
    const key = ++this.#lastKey;
    const releases: Release[] = [];
    const release = (): void => {
      for (const each of releases.splice(0)) each();
    };
    let known: KnownNodes | null = null;
    let isHandedOut = false;
    try {
      const target = this.#spare ?? this.#openTarget(key);
      this.#spare = null;
      releases.push(target.release);
      target.rewind();
      known = await this.#takeReady();
      const at = known;
      const nodes = at === null ? {} : { nodes: () => at.current() };
      const { disks } = await this.#withLayers('copied', async (saved, taken) => {
        await this.#handOut(saved, { ticket, target, nodes, releases, started: { askedNs, ...taken } });
        isHandedOut = true;
      });
      releases.push(() => this.#tickets.forget(ticket));
      this.#keep(key, release);
      return { key, disks };
    } catch (error) {
      // Copies go on from it, though this domain may not.
      if (isHandedOut) this.#keep(key, release);
      else release();
      throw error;
    } finally {
      this.#leaveRoom();
      // The copies begin now, and want xenstore and the CPUs.
      if (known !== null) setTimeout((nodes: KnownNodes) => nodes.close(), QUIET_MS, known).unref();
    }
  }

  /** The domain stands still. */
  async #handOut(saved: SavableDomain, { ticket, target, nodes, releases, started }: HandOut): Promise<void> {
    const { memory, isShared } = this.#options;
    const awaited = this.#tickets.of(ticket);
    const pages = memory === null ? {} : { pages: [] };
    // It looks at the guest's clock first.
    const describedNs = monotonicNs();
    const written = writeDomain(saved, target.sink, { codec: PLAIN_CODEC, ...nodes, ...pages });
    written.catch(() => undefined);
    let changed: LookedAt = null;
    try {
      // Xenstore answers meanwhile.
      changed = memory?.look() ?? null;
    } finally {
      // It has the file until then.
      await written.catch(() => undefined);
    }
    await written;
    target.end();
    awaited.start.resolve({ state: target.path, hasPages: memory === null, describedNs, ...started });
    // They read that while the memory is set aside, and hear of the memory before the guest wants a CPU again.
    await setImmediate();
    if (memory === null) awaited.memory.resolve(null);
    else {
      const { memory: frozen, release } = memory.freeze(isShared(), changed);
      releases.push(release);
      awaited.memory.resolve(frozen);
    }
    await setImmediate();
  }

  /** All copies have what they need. */
  release(key: number): void {
    const release = this.#kept.get(key);
    this.#kept.delete(key);
    release?.();
  }

  /**
   * Writes the domain to a file, to be restored with disks as they are in the bases; it goes on. The guest is asked to suspend itself for it, where it offers that.
   * @throws NotSavable, and what writing throws
   */
  async snapshot(path: string): Promise<ControlSnapshot> {
    const { memory, freezable, store, isEnding } = this.#options;
    const suspension = new GuestSuspension({ domain: freezable.domain, store, isEnding });
    const suspend: Suspend = (isUnwanted) => suspension.ask(isUnwanted);
    const write = (saved: SavableDomain): Promise<void> => writeWhole(path, (sink) => writeDomain(saved, sink));
    const disks =
      memory !== null
        ? await this.#snapshotOfCopy(path, memory, suspend)
        : (await this.#inTurn(() => this.#withLayers('written', write, suspend))).disks;
    return { disks, remark: suspension.remark };
  }

  /** Its pages are written when the domain goes on: they are those of a copy of its memory. */
  async #snapshotOfCopy(path: string, memory: CopiedMemory, suspend: Suspend): Promise<readonly FrozenDisk[]> {
    const { isShared, freezable } = this.#options;
    const stateIsWritten = Promise.withResolvers<void>();
    const copy = Promise.withResolvers<Domain>();
    copy.promise.catch(() => undefined);
    async function* pages(): AsyncGenerator<Uint8Array> {
      stateIsWritten.resolve();
      yield* encodePages((await copy.promise).machine);
    }
    let letGo: Release = () => {};
    let close: Release = () => {};
    let writing: Promise<void> = Promise.resolve();
    try {
      let frozen: (() => Domain) | null = null;
      const { disks } = await this.#inTurn(async () => {
        try {
          const known = await this.#takeReady();
          close = () => known?.close();
          const options = { pages: pages(), ...(known === null ? {} : { nodes: () => known.current() }) };
          const write = async (saved: SavableDomain): Promise<void> => {
            writing = writeWhole(path, (sink) => writeDomain(saved, sink, options));
            await Promise.race([stateIsWritten.promise, writing]);
            const m2p = encodeM2p(freezable.domain.machine);
            const { memory: at, release } = memory.freeze(isShared());
            letGo = release;
            frozen = () => frozenDomain(freezable.domain, at, m2p);
          };
          return await this.#withLayers('written', write, suspend);
        } finally {
          this.#leaveRoom();
        }
      });
      copy.resolve((frozen ?? bug)());
      await writing;
      return disks;
    } catch (error) {
      copy.reject(error);
      await writing.catch(() => undefined);
      throw error instanceof HostError ? new NotSavable(error.message) : error;
    } finally {
      letGo();
      close();
    }
  }

  close(): void {
    for (const key of [...this.#kept.keys()]) this.release(key);
    this.#leaveRoom();
    this.#options.memory?.close();
  }

  #keep(key: number, release: Release): void {
    this.#kept.set(key, release);
    setTimeout(() => this.release(key), KEPT_MS).unref();
  }

  async #savable(): Promise<SavableDomain> {
    const { freezable, workers, store, facts, config } = this.#options;
    return { ...freezable, store, facts, cpu: await workers.ready, config: (name) => config(name) ?? '' };
  }

  /** What a copy is made with serves one at a time. */
  async #inTurn<Result>(act: () => Promise<Result>): Promise<Result> {
    if (this.#isBusy) throw new NotSavable('it is being copied already');
    this.#isBusy = true;
    try {
      return await act();
    } finally {
      this.#isBusy = false;
    }
  }

  /** Calls `take` when the domain is frozen and its disks have their layers. `suspend`: before that. */
  async #withLayers(
    what: string,
    take: (saved: SavableDomain, taken: Taken) => Promise<void>,
    suspend: Suspend | null = null,
  ): Promise<Taken> {
    const { freezable, freezer, store, config, root, onDiskMoved, note } = this.#options;
    const { domain, devices } = freezable;
    if (config('') === null) throw new NotSavable('it was made without a config that could be saved');
    if (domain.shutdownReason !== -1) throw new NotSavable('it has shut down');
    this.#mustBeAlone();
    const saved = await this.#savable();
    const { domid } = domain;
    const elsewhere = async (vdev: string): Promise<string> => {
      const name = (await store.read(`/local/domain/${domid}/name`)) ?? String(domid);
      return join(disksFolder(root, name), `${vdev}.${Date.now().toString(36)}.qcow2`);
    };
    const before = devices.disks;
    const layers = await DiskLayers.prepare(before, { domid, store, elsewhere, onMoved: onDiskMoved });
    let disks: FrozenDisk[] | null = null;
    let stoppedNs = monotonicNs();
    const suspended: Suspend = async (isUnwanted) => {
      const has = (await suspend?.(isUnwanted)) ?? false;
      stoppedNs = monotonicNs();
      return has;
    };
    try {
      await freezer.whileFrozen(async () => {
        this.#mustBeAlone();
        const { disks: now } = devices;
        if (now.length !== before.length || !now.every((disk) => before.includes(disk)))
          throw new NotSavable('a disk has been plugged or unplugged meanwhile');
        disks = await layers.commit();
        await take(saved, { disks, stoppedNs });
        return 'as before';
      }, suspended);
    } catch (error) {
      if (disks === null) await layers.abandon();
      throw error instanceof HostError ? new NotSavable(error.message) : error;
    }
    // This thread may have had to wait for a CPU since.
    const wentOnNs = domain.f64[DOMAIN.wentOnNs >> 3];
    const stoodNs = (wentOnNs > stoppedNs ? wentOnNs : monotonicNs()) - stoppedNs;
    note(`Domain ${domid} has been ${what}: it stood still for ${Math.round(stoodNs / 1e6)} ms`);
    return { disks: disks ?? [], stoppedNs };
  }

  /** Before its disks get layers: what is not the domain's alone cannot be copied. */
  #mustBeAlone(): void {
    const { isMapped, freezable } = this.#options;
    if (isMapped()) throw new NotSavable('another domain has pages of it mapped');
    encodeDomain(freezable.domain, 0);
  }

  #openTarget(key: number): Target {
    const { memory, root, freezable } = this.#options;
    const fd = memory === null ? -1 : (hostCalls()?.memfdCreate('domus-fork', 0) ?? -1);
    const isFile = fd < 0;
    const path = isFile
      ? join(domainFolder(root, freezable.domain.domid), `fork-${key}`)
      : `/proc/${process.pid}/fd/${fd}`;
    const file = isFile ? openSync(path, 'wx', 0o600) : fd;
    let position = 0;
    return {
      path,
      sink: async (bytes) => {
        for (let at = 0; at < bytes.length; ) {
          const count = writeSync(file, bytes, at, bytes.length - at, position);
          at += count;
          position += count;
        }
      },
      rewind: () => {
        position = 0;
      },
      end: () => ftruncateSync(file, position),
      release: () => {
        closeSync(file);
        if (isFile) rmSync(path, { force: true });
      },
    };
  }
}

function bug(): never {
  throw new Error('bug: a domain that was frozen has no memory');
}
