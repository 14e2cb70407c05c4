/**
 * Saves a domain that runs: its vCPUs are parked between two instructions, its backends answer what is under way and let go of it, and what is left
 * is memory and registers. That needs no help of the guest's; with its help (guest-suspension.ts), its clock is right when it goes on.
 *
 *   1. park all vCPUs (hypervisor/run-vcpu.ts)
 *   2. wait until no message to or from xenstore is half way; if the guest has to run for that, let it, and begin again
 *   3. detach all devices: rings are drained, grants and event channels given back
 *   4. write
 *   5. the domain ends; or all of this backwards, and it goes on
 */

import { setTimeout as sleep } from 'node:timers/promises';
import type { ConsoleBackend } from '../backends/console.ts';
import type { Kicker } from '../engine/engine.ts';
import type { CpuFeatures } from '../hypervisor/cpu-features.ts';
import { DOMAIN, type Domain } from '../hypervisor/domain.ts';
import { isSuspended, pauseDomain, resumeDomain, unpauseDomain, untilParked } from '../hypervisor/domain-state.ts';
import type { PageArrivals } from '../hypervisor/page-transfer.ts';
import { setWallclock } from '../hypervisor/time.ts';
import {
  type Codec,
  PART_DESCRIPTION,
  PART_DOMAIN,
  PART_END,
  PART_M2P,
  PART_PAGES,
  PART_VCPU,
  SaveWriter,
  type Sink,
} from '../toolstack/saved/save-file.ts';
import { type Description, encodeDescription } from '../toolstack/saved/saved-description.ts';
import { encodeM2p, encodePages } from '../toolstack/saved/saved-memory.ts';
import { encodeDomain, encodeVcpu, NotSavable } from '../toolstack/saved/saved-state.ts';
import { readDomainNodes, type SavedNode } from '../toolstack/saved/saved-store.ts';
import type { XenstoreClient } from '../xenstore/client.ts';
import type { LinkConnection } from '../xenstore/link-connection.ts';
import type { RingServer } from '../xenstore/ring-server.ts';
import { textToBytes } from '../xenstore/wire.ts';
import { monotonicNs } from './clock.ts';
import type { DomainDevices } from './domain-devices.ts';
import { HostError } from './host-error.ts';
import { NODE_CODEC } from './save-stream.ts';

/** How often a guest may be found in the middle of a conversation with xenstore. */
const ATTEMPTS_MAX = 200;
/** How long it may go on then, and how long replies of xenstore are waited for. */
const CONVERSATION_MS = 20;
const REPLY_MS = 100;

export interface FreezableDomain {
  readonly domain: Domain;
  readonly kicker: Kicker;
  readonly connection: LinkConnection;
  readonly ring: RingServer;
  readonly console: ConsoleBackend;
  readonly devices: DomainDevices;
  readonly arrivals: PageArrivals;
  /** Calls the handlers of event channels that were signalled. */
  service(): void;
}

export interface SavableDomain extends FreezableDomain {
  readonly store: XenstoreClient;
  readonly cpu: CpuFeatures;
  readonly facts: Pick<Description, 'knownDomid' | 'engine' | 'store' | 'console' | 'cmdline'>;
  /** The text of the config that describes it now; its name and domid are put in from xenstore. */
  config(name: string): string;
}

/** Stops a domain where it can be saved; `thaw` makes it go on. `paused`: it was. @throws NotSavable, and then it is as it was */
async function freeze(saved: FreezableDomain, paused: boolean): Promise<void> {
  const { domain, kicker, connection, ring, console, devices, arrivals } = saved;
  for (let attempt = 0; ; attempt++) {
    pauseDomain(domain, kicker);
    await untilParked(domain, domain.vcpus.length);
    if (domain.shutdownReason !== -1) throw new NotSavable('the domain has shut down meanwhile');
    saved.service();
    for (let waited = 0; !connection.isIdle && waited < REPLY_MS; waited++) await sleep(1);
    saved.service();
    if (connection.isIdle && ring.isBetweenMessages) break;
    if (paused) throw new NotSavable('the guest was paused in the middle of a request to xenstore; unpause it first');
    unpauseDomain(domain);
    if (attempt === ATTEMPTS_MAX) throw new NotSavable('the guest never stops asking xenstore');
    await sleep(CONVERSATION_MS);
  }
  // In this turn nothing else can have happened.
  ring.hold();
  console.service();
  console.hold();
  arrivals.hold();
  try {
    await devices.detach();
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    await thaw(saved, paused);
    throw new NotSavable(`its devices do not let go: ${error.message}`);
  }
}

async function thaw(saved: FreezableDomain, paused: boolean): Promise<void> {
  await saved.devices.attach();
  saved.console.release();
  saved.ring.release();
  saved.arrivals.release();
  if (!paused) unpauseDomain(saved.domain);
}

/** Resolves with true when the guest has suspended itself. `isUnwanted`: somebody has paused it. */
export type Suspend = (isUnwanted: () => boolean) => Promise<boolean>;

/** What becomes of a domain that was frozen. */
export type AfterFreeze = 'as before' | 'pause' | 'stay';

const LEFT = 'the domain has been saved, or has moved away';

/**
 * For what has to find a domain at rest, one at a time. Meanwhile, who pauses or unpauses it says only how it is to go on. One that stays at rest is
 * elsewhere, or in a file: nothing can be done with it any more.
 */
export class Freezer {
  readonly #domain: FreezableDomain;
  #turn: Promise<unknown> = Promise.resolve();
  /** While it is at rest: whether it is paused afterwards. */
  #pausedAfter: boolean | null = null;
  #hasLeft = false;

  constructor(domain: FreezableDomain) {
    this.#domain = domain;
  }

  /** It stays at rest. */
  get hasLeft(): boolean {
    return this.#hasLeft;
  }

  /** @throws HostError when it has left */
  pause(): void {
    this.#mustBeHere();
    if (this.#pausedAfter !== null) this.#pausedAfter = true;
    else pauseDomain(this.#domain.domain, this.#domain.kicker);
  }

  /** Nothing for a guest that has suspended itself: that is resumed. @throws HostError when it has left */
  unpause(): void {
    this.#mustBeHere();
    if (this.#pausedAfter !== null) this.#pausedAfter = isSuspended(this.#domain.domain);
    else if (!isSuspended(this.#domain.domain)) unpauseDomain(this.#domain.domain);
  }

  #mustBeHere(): void {
    if (this.#hasLeft) throw new HostError(LEFT);
  }

  /** A guest that has suspended itself goes on. False: it has not, or has left. */
  resume(): boolean {
    if (this.#hasLeft) return false;
    const { domain } = this.#domain;
    const was = isSuspended(domain);
    if (was) tellWallclock(domain);
    if (this.#pausedAfter === null) resumeDomain(domain);
    else if (was) {
      this.#pausedAfter = false;
      Atomics.store(domain.i32, DOMAIN.suspended >> 2, 0);
      Atomics.notify(domain.i32, DOMAIN.suspended >> 2);
    }
    return was;
  }

  /**
   * Calls `act` when all devices have let go of the domain. `suspend`: has the guest suspend itself before, if it is not paused; it goes on as from a suspend that
   * was cancelled.
   * @throws NotSavable, and what `act` and `suspend` throw; it goes on as before then
   */
  whileFrozen(act: () => Promise<AfterFreeze>, suspend: Suspend | null = null): Promise<void> {
    return this.#inTurn(async (wasPaused) => {
      const hasSuspended = !wasPaused && suspend !== null && (await this.#suspend(suspend));
      await freeze(this.#domain, wasPaused);
      let after: AfterFreeze = 'as before';
      try {
        after = await act();
      } finally {
        if (hasSuspended) tellWallclock(this.#domain.domain);
        if (after === 'stay') this.#hasLeft = true;
        else await thaw(this.#domain, this.#pausedAfter === true || after === 'pause');
      }
    });
  }

  /** It is paused then, and no more. */
  async #suspend(suspend: Suspend): Promise<boolean> {
    const { domain } = this.#domain;
    if (!(await suspend(() => this.#pausedAfter === true))) return false;
    Atomics.store(domain.i32, DOMAIN.suspended >> 2, 0);
    return true;
  }

  /** Calls `act` when all vCPUs are parked. @throws NotSavable, and what `act` throws */
  whileParked(act: () => Promise<void>): Promise<void> {
    return this.#inTurn(async () => {
      const { domain, kicker, arrivals } = this.#domain;
      pauseDomain(domain, kicker);
      try {
        await untilParked(domain, domain.vcpus.length);
        arrivals.hold();
        await act();
      } finally {
        arrivals.release();
        if (this.#pausedAfter === false) unpauseDomain(domain);
      }
    });
  }

  #inTurn(act: (wasPaused: boolean) => Promise<void>): Promise<void> {
    const done = this.#turn.then(async () => {
      if (this.#hasLeft) throw new NotSavable(LEFT);
      const wasPaused = Atomics.load(this.#domain.domain.i32, DOMAIN.paused >> 2) !== 0;
      this.#pausedAfter = wasPaused;
      try {
        await act(wasPaused);
      } finally {
        this.#pausedAfter = null;
      }
    });
    this.#turn = done.catch(() => undefined);
    return done;
  }
}

/** For copies: what is had otherwise, or before. */
export interface WriteOptions {
  /** Parts of its memory. */
  readonly pages?: Iterable<Uint8Array> | AsyncIterable<Uint8Array>;
  readonly nodes?: () => Promise<readonly SavedNode[]>;
  readonly codec?: Codec;
}

/** Writes a domain that is frozen. @throws NotSavable, and what the sink throws */
export async function writeDomain(
  saved: SavableDomain,
  sink: Sink,
  { pages, nodes, codec = NODE_CODEC }: WriteOptions = {},
): Promise<void> {
  const { machine } = saved.domain;
  const writer = new SaveWriter(sink, codec);
  // Before anything is written: it may refuse.
  const nowNs = systemTimeNs(saved.domain);
  const shared = encodeDomain(saved.domain, nowNs);
  const description = await describe(saved, nowNs, nodes?.() ?? readDomainNodes(saved.store, saved.domain.domid));
  await writer.start();
  await writer.part(PART_DESCRIPTION, encodeDescription(description));
  await writer.part(PART_DOMAIN, shared);
  await writeVcpus(writer, saved.domain);
  await writer.part(PART_M2P, encodeM2p(machine));
  let parts = 0;
  for await (const part of pages ?? encodePages(machine)) {
    await writer.part(PART_PAGES, part);
    parts++;
  }
  await writer.part(PART_END, new Uint8Array(Uint32Array.of(parts).buffer));
}

/** What it is, `nowNs` on its clock, with what xenstore has of it. */
export async function describe(
  saved: SavableDomain,
  nowNs: number,
  nodes: Promise<readonly SavedNode[]>,
): Promise<Description> {
  const { domain, connection, cpu, facts } = saved;
  const { domid } = domain;
  const known = await nodes;
  const [, value = ''] = known.find(([path]) => path === `/local/domain/${domid}/name`) ?? [];
  const name = new TextDecoder().decode(textToBytes(value));
  const { watches } = connection;
  const tsc = { khz: domain.u32[DOMAIN.tscKhz >> 2], ticks: ticksAt(domain, nowNs) };
  return { domid, name, config: saved.config(name), cpu, tsc, nodes: known, watches, ...facts };
}

/** Registers. */
export async function writeVcpus(writer: SaveWriter, domain: Domain): Promise<void> {
  for (const { vcpuId } of domain.vcpus) await writer.part(PART_VCPU, encodeVcpu(domain, vcpuId));
}

/** What the guest would read off its clock now. */
export function systemTimeNs({ f64 }: Domain): number {
  return monotonicNs() - f64[DOMAIN.bootNs >> 3] + f64[DOMAIN.driftNs >> 3];
}

/** A guest that goes on from a suspend looks at it, and the host's clock may have been set. */
function tellWallclock(domain: Domain): void {
  setWallclock(domain, Date.now() * 1e6 - systemTimeNs(domain));
}

/** What it would read off its TSC, by the line on which its clock runs. */
function ticksAt({ u32, u64 }: Domain, systemNs: number): number {
  const sinceBase = systemNs - Number(u64[DOMAIN.baseNs >> 3]);
  return Number(u64[DOMAIN.tscBase >> 3]) + Math.floor((sinceBase * u32[DOMAIN.tscKhz >> 2]) / 1e6);
}
