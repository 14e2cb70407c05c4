/**
 * One life of a domain, under one domid: from when it stands in its memory, or is about to, until nothing is left of it. Serves its rings and devices
 * in this thread while its vCPUs run in theirs, and lets others act on it.
 */

import { cpus } from 'node:os';
import { resolve as resolvePath } from 'node:path';
import { setImmediate, setTimeout as sleep } from 'node:timers/promises';
import { SHUTDOWN_crash } from '../abi/xen.ts';
import type { Kicker } from '../engine/engine.ts';
import { Dom0Channels } from '../hypervisor/dom0-channels.ts';
import { DOMAIN, type Domain } from '../hypervisor/domain.ts';
import { allowMemory, domainState, raiseNmi, setSchedule } from '../hypervisor/domain-state.ts';
import { notifyVcpu } from '../hypervisor/event-channels.ts';
import { GrantMappings } from '../hypervisor/grant-mappings.ts';
import { takeConsoleIo } from '../hypervisor/hypercalls/console-io.ts';
import { PageArrivals } from '../hypervisor/page-transfer.ts';
import { FLAG_STOP, VCPU, VCPU_STATE_UP } from '../machine/vcpu-block.ts';
import type { DomainConfig } from '../toolstack/config/domain-config.ts';
import { type PluggedDevices, readPlugged } from '../toolstack/plugged-devices.ts';
import { renameDomain } from '../toolstack/rename-domain.ts';
import { completeConfig, type RunningSchedule } from '../toolstack/saved/saved-config.ts';
import { NotSavable } from '../toolstack/saved/saved-state.ts';
import { DomainNameTaken } from '../toolstack/xenstore-nodes.ts';
import { DomidAlias } from '../xenstore/domid-alias.ts';
import type { LinkConnection } from '../xenstore/link-connection.ts';
import { monotonicNs } from './clock.ts';
import { ConsoleTail } from './console-tail.ts';
import { CopiedMemory } from './copied-memory.ts';
import { DirtyTracker } from './dirty-tracker.ts';
import { type Built, CONSOLE_PORT, STORE_PORT } from './domain-content.ts';
import { DomainCopies } from './domain-copies.ts';
import { DomainDevices } from './domain-devices.ts';
import { DomainWriter } from './domain-writer.ts';
import type { DomainXenstore } from './domain-xenstore.ts';
import type { Doorbell } from './doorbell.ts';
import { createKicker, createStoreListener, type EngineHandle, resumeTsc } from './engines.ts';
import type { RestorableDomain } from './forked-domain.ts';
import { createGuestPort } from './guest-port.ts';
import { GuestRings } from './guest-rings.ts';
import { HostError } from './host-error.ts';
import { hostErrorOf, introduce } from './introduced-domain.ts';
import type { LiveDomain, LiveHooks, RecordDeparture } from './live-domain.ts';
import { UnseenSockets } from './local-socket.ts';
import type { MigrationOptions } from './migration-frames.ts';
import type { MigrationLink } from './migration-link.ts';
import { Peers } from './peers.ts';
import type { RestoredNodes } from './restored-nodes.ts';
import { actionFor, type EndReason, endReason, type RunOptions, restarts } from './run-options.ts';
import { Freezer } from './save-domain.ts';
import { ShareableMemory } from './shared-memory.ts';
import { stateRoot, xenstoredPath } from './state-dir.ts';
import { VcpuPlacement } from './vcpu-placement.ts';
import type { VcpuWorkers } from './vcpu-workers.ts';

/** How long a moment is waited for that only the log hears of. */
const WENT_ON_LIMIT_MS = 1000;

/** From when a domain runs elsewhere until it is taken down here. */
const AFTER_MOVE_MS = 200;

/** How long a domain that has not moved waits for its name, and how often it looks: a target on this host has it until it is gone. */
const NAME_LIMIT_MS = 10_000;
const NAME_EVERY_MS = 50;

/** A saved domain that comes back, or a copy. */
export interface Restoring {
  readonly saved: RestorableDomain;
  readonly nodes: RestoredNodes;
  /** Its memory, where that can be a copy. */
  readonly copied: CopiedMemory | null;
  /** Resolves when all of it is there; begun already. */
  readonly loaded: Promise<void>;
  /** All that can be done before is done. */
  prepared(): void;
}

export interface LifeOptions {
  readonly config: DomainConfig;
  readonly options: RunOptions;
  readonly xenstore: DomainXenstore;
  readonly domid: number;
  /** It is no restart. */
  readonly isFirst: boolean;
  readonly domain: Domain;
  readonly handle: EngineHandle;
  readonly workers: VcpuWorkers;
  readonly doorbell: Doorbell;
  readonly built: Built;
  /** Null: it has been built. */
  readonly restoring: Restoring | null;
}

/** Resolves when it has ended, as nothing or as what is to be started again. Throws HostError. */
export async function live(options: LifeOptions): Promise<EndReason> {
  const { xenstore, domid, restoring } = options;
  await introduce(options);
  const knownDomid = restoring?.saved.outline.knownDomid ?? domid;
  const alias = knownDomid === domid ? null : new DomidAlias(knownDomid, domid);
  return await new DomainLife(options, await xenstore.connect(domid, alias)).untilEnd();
}

class DomainLife {
  readonly #options: LifeOptions;
  readonly #connection: LinkConnection;
  readonly #kicker: Kicker;
  readonly #channels: Dom0Channels;
  readonly #tail = new ConsoleTail();
  readonly #rings: GuestRings;
  readonly #devices: DomainDevices;
  readonly #freezer: Freezer;
  readonly #shareable: ShareableMemory | null;
  readonly #peers: Peers | null;
  readonly #placement: VcpuPlacement;
  readonly #writer: DomainWriter;
  readonly #copies: DomainCopies;
  readonly #live: LiveDomain;
  readonly #sockets = new UnseenSockets();
  readonly #ended = Promise.withResolvers<number>();
  readonly #destroyed = Promise.withResolvers<void>();
  #hooks: LiveHooks | undefined;
  /** On its way elsewhere. */
  #moving: MigrationLink | null = null;
  #isDestroyed = false;
  #isStopped = false;
  #startsAgain = false;
  /** Threads of the vCPUs wait to be told that they run, or end. */
  #isRunning = false;

  constructor(life: LifeOptions, connection: LinkConnection) {
    const { config, options, xenstore, domid, domain, handle, workers, built, restoring } = life;
    const { machine } = domain;
    this.#options = life;
    this.#connection = connection;
    connection.onEnd = (reason) =>
      options.log(`xl: domain \`${config.name}' (${domid}) has no xenstore any more: ${reason}`);
    this.#kicker = createKicker(handle);
    this.#channels = new Dom0Channels(domain, this.#kicker);
    this.#rings = new GuestRings({
      ...{ machine, storePfn: built.storePfn, consolePfn: built.consolePfn, connection },
      output: (bytes) => {
        this.#tail.add(bytes);
        options.console?.write(bytes);
      },
    });
    options.console?.onInput((bytes) => this.#rings.console.input(bytes));

    const grants = new GrantMappings(domain);
    const memoryStored = createStoreListener(handle, domain);
    const arrivals = new PageArrivals(domain, memoryStored);
    // Guests of a private store have no others around them.
    const hasPeers = options.xenstore === 'daemon';
    const copied = hasPeers ? (restoring?.copied ?? CopiedMemory.create(domain)) : null;
    this.#shareable = hasPeers ? ShareableMemory.create(machine) : null;
    if (this.#shareable !== null) this.#shareable.onShared = () => copied?.forget();
    this.#peers = hasPeers
      ? new Peers({
          ...{ domain, channels: this.#channels, grants, arrivals, memoryStored, memoryFd: this.#shareable?.fd ?? -1 },
          share: async () => (await this.#shareable?.share(this.#freezer, options.log)) ?? false,
          stateRoot: stateRoot(),
          log: options.log,
        })
      : null;
    const peers = this.#peers;
    if (peers !== null) workers.serveForeign((call) => void peers.serve(call));
    this.#devices = new DomainDevices({
      store: xenstore.client,
      port: createGuestPort(domain, grants, this.#channels, memoryStored),
      name: config.name,
      xenstoredPath: hasPeers ? xenstoredPath(stateRoot()) : null,
      log: options.log,
    });

    const freezable = {
      ...{ domain, kicker: this.#kicker, connection, ring: this.#rings.store, console: this.#rings.console, arrivals },
      devices: this.#devices,
      service: () => this.#service(),
    };
    this.#freezer = new Freezer(freezable);
    setSchedule(domain, config.cpuWeight, config.cap);
    allowMemory(domain, config.memoryMiB * 256);
    this.#placement = new VcpuPlacement(domain, config.cpus, config.cpusSoft);
    const ringFrames = [built.storePfn, built.consolePfn];
    const writing = {
      ...{ freezable, freezer: this.#freezer, workers, store: xenstore.client, note: this.#note },
      isMapped: () => this.#peers?.isMapped ?? false,
      isEnding: () => this.#isStopped,
      facts: {
        knownDomid: restoring?.saved.outline.knownDomid ?? domid,
        engine: handle.kind,
        store: { pfn: built.storePfn, port: this.#storePort },
        console: { pfn: built.consolePfn, port: this.#consolePort },
        cmdline: built.cmdline,
      },
      tracker: new DirtyTracker({ domain, engine: handle, kicker: this.#kicker, ringFrames }),
      config: (name: string, other?: string | null, moves = false) => {
        const written = options.written?.();
        if (written === undefined) return null;
        const { kernel, ramdisk } = written.config;
        // Another text says itself how it is to be scheduled.
        const schedule = (other ?? null) !== null ? null : this.#scheduleNow(moves);
        return completeConfig(
          other ?? written.text,
          { ...config, kernel, ramdisk },
          name,
          (file) => resolvePath(file),
          schedule,
        );
      },
    };
    this.#writer = new DomainWriter(writing);
    this.#copies = new DomainCopies({
      ...{ ...writing, root: stateRoot(), memory: copied },
      isShared: () => this.#shareable?.isShared ?? false,
      shape: { ramPages: machine.layout.ramPages, maxPages: machine.layout.maxPages, vcpus: domain.vcpus.length },
      onDiskMoved: (moved) => options.onDiskMoved?.(moved),
    });
    this.#live = this.#asLiveDomain();
  }

  get #storePort(): number {
    return this.#options.restoring?.saved.outline.store.port ?? STORE_PORT;
  }

  get #consolePort(): number {
    return this.#options.restoring?.saved.outline.console.port ?? CONSOLE_PORT;
  }

  readonly #note = (line: string): void => this.#options.options.note?.(line);

  async untilEnd(): Promise<EndReason> {
    const { options, xenstore, domid, workers, restoring } = this.#options;
    const { signal } = options;
    const onAbort = (): void => {
      this.#stop();
      this.#destroyed.resolve();
    };
    if (signal?.aborted) {
      this.#isStopped = true;
      this.#destroyed.resolve();
    }
    signal?.addEventListener('abort', onAbort);
    try {
      await (restoring === null ? this.#begin() : this.#goOn(restoring));
      if (this.#isStopped) this.#stop();
      await this.#serve();
      return await this.#end();
    } finally {
      this.#stop();
      if (this.#isRunning) await workers.ended;
      else await workers.abandon();
      signal?.removeEventListener('abort', onAbort);
      this.#peers?.close();
      this.#copies.close();
      this.#shareable?.close();
      await this.#devices.end();
      this.#connection.onEnd = null;
      this.#hooks?.onEnding(this.#startsAgain, this.#startsAgain ? await this.#plugged() : null);
      await xenstore.remove(domid);
      this.#connection.close();
      this.#hooks?.onGone();
    }
  }

  async #plugged(): Promise<PluggedDevices | null> {
    const { options, xenstore, domid } = this.#options;
    try {
      return await readPlugged(xenstore.client, domid);
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      options.log(
        `xl: the devices of domain ${domid} are not known, and those of its config are taken: ${error.message}`,
      );
      return null;
    }
  }

  // --- its beginning

  /** Ports are there. */
  #bindRings(): void {
    this.#rings.bind(this.#channels, this.#storePort, this.#consolePort);
  }

  /** Takes some time; nobody finds it before `#appear`. */
  async #makeFindable(): Promise<void> {
    this.#hooks = await this.#options.options.onLive?.(this.#live);
    await this.#peers?.listen(this.#sockets.listen);
  }

  #appear(): void {
    const { isFirst, options } = this.#options;
    if (isFirst && options.paused) this.#live.pause();
    this.#hooks?.onRunning();
    this.#sockets.appear();
  }

  /** It has been built. */
  async #begin(): Promise<void> {
    const { config, options, domain, workers, isFirst } = this.#options;
    this.#bindRings();
    this.#isRunning = true;
    workers.run();
    for (const disk of config.disks) await this.#devices.addDisk(disk);
    for (const vif of config.vifs) await this.#devices.addVif(vif, !isFirst);
    for (const vfb of config.vfbs) await this.#devices.addVfb(vfb);
    for (const channel of config.channels) await this.#devices.addChannel(channel);
    await this.#devices.watch();
    await workers.ready;
    this.#placement.apply(options.log);
    await this.#makeFindable();
    this.#appear();
    this.#hooks?.onRuns();
    if (isFirst) options.onStart?.();
    Atomics.store(domain.vcpus[0].i32, VCPU.state >> 2, VCPU_STATE_UP);
    Atomics.add(domain.i32, DOMAIN.vcpusUp >> 2, 1);
    notifyVcpu(domain, 0, this.#kicker);
  }

  /** All that can be done before the rest of it comes is done before: its guest stands still. */
  async #goOn({ saved, nodes, loaded, prepared }: Restoring): Promise<void> {
    const { config, options, xenstore, domid, domain, handle, workers } = this.#options;
    await this.#makeFindable();
    prepared();
    await loaded;
    this.#placement.apply(options.log);
    this.#live.pause();
    const { tsc, watches } = saved.description;
    // Where its ports are not what its file says of them, no vCPU has begun.
    this.#bindRings();
    this.#connection.setWatches(watches);
    const lateNs = Math.floor(saved.lateNs());
    // Both run from one moment on, whenever the vCPUs look at them first: one that is ahead of the other makes Linux mistrust its TSC.
    const atNs = monotonicNs();
    domain.f64[DOMAIN.bootNs >> 3] = atNs - (Number(domain.u64[DOMAIN.baseNs >> 3]) + lateNs);
    resumeTsc(handle, tsc.ticks + Math.floor((lateNs * tsc.khz) / 1e6), atNs);
    this.#isRunning = true;
    const hasMoved = options.incoming !== undefined;
    // The threads take up their vCPUs meanwhile. A single one need not be waited for, since none sets its clock by it: it goes on by itself when it is
    // unpaused. Who moves here is let go of only when they have.
    const isWaitedFor = domain.vcpus.length > 1 || hasMoved;
    const resumed = isWaitedFor ? workers.resume() : Promise.resolve(workers.run());
    // The way to the source and back takes as long as these.
    const permitted = async (): Promise<void> => {
      // The other side lets it go then: nobody asks for that without vCPUs that can take it over.
      if (domain.shutdownReason === SHUTDOWN_crash) throw new HostError('a vCPU has ended before it could go on');
      await options.incoming?.permission();
    };
    let isNamed = !hasMoved;
    // Of when it stood still: `xl rename` may have changed it.
    const { name } = saved.description;
    const takeName = async (): Promise<void> => {
      isNamed ||= await this.#takeName(name);
    };
    // The source may be in the same xenstore, and have had it still.
    const rename = (): Promise<void> => hostErrorOf(renameDomain(xenstore.client, domid, name));
    const makeDevices = async (): Promise<void> => {
      await all([permitted(), takeName(), hostErrorOf(nodes.write(saved))]);
      await all([...(isNamed ? [] : [rename()]), this.#devices.restore(config, nodes.known())]);
    };
    await all([resumed, makeDevices()]);
    this.#appear();
    if (!options.paused) this.#live.unpause();
    // Before anything can go wrong that would make the source take it back.
    options.onStart?.();
    this.#hooks?.onRuns();
    // The guest is served meanwhile.
    void this.#devices.watch().catch((error: Error) => options.log(`looking for new devices: ${error.message}`));
    if (!options.paused) void this.#tellWhenItWentOn();
  }

  /** That with which it comes, while it is not known yet whether it stays; or its own again. False: another domain has it. */
  async #takeName(name: string): Promise<boolean> {
    const { xenstore, domid } = this.#options;
    try {
      await renameDomain(xenstore.client, domid, name);
      return true;
    } catch (error) {
      if (error instanceof DomainNameTaken) return false;
      throw error;
    }
  }

  /** Its vCPU's thread may not have been given a CPU yet. */
  async #tellWhenItWentOn(): Promise<void> {
    const { options, domain } = this.#options;
    const wentOnNs = (): number => domain.f64[DOMAIN.wentOnNs >> 3];
    for (let ms = 0; ms < WENT_ON_LIMIT_MS && wentOnNs() === 0 && !this.#isStopped; ms++) await sleep(1);
    if (wentOnNs() !== 0) options.onWentOn?.(wentOnNs());
  }

  // --- while it runs

  #service(): void {
    const { options, domain, built } = this.#options;
    this.#channels.dispatch();
    const text = takeConsoleIo(domain);
    if (text.length === 0) return;
    this.#tail.add(text);
    if (built.cmdline.includes('earlyprintk=xen')) options.console?.write(text);
  }

  /** Until it has shut down, or is stopped. */
  async #serve(): Promise<void> {
    const { domain, doorbell } = this.#options;
    for (;;) {
      const ticket = Atomics.load(domain.i32, DOMAIN.doorbell >> 2);
      this.#service();
      if (this.#isStopped || domain.shutdownReason !== -1) return;
      const wait = doorbell.wait(ticket);
      // A guest that rings all the time must leave room for timers, signals and what is typed.
      if (wait !== null) await wait;
      else await setImmediate();
    }
  }

  #asLiveDomain(): LiveDomain {
    const { domid, domain } = this.#options;
    return {
      domid,
      save: (path, then, config, departure) => this.#save(path, then, config, departure),
      migrate: (link, migration, departure) => this.#migrate(link, migration, departure),
      dumpCore: (path) => this.#writer.dumpCore(path),
      copies: this.#copies,
      state: () => domainState(domain),
      pause: () => this.#freezer.pause(),
      unpause: () => this.#freezer.unpause(),
      resume: () => this.#freezer.resume(),
      nmi: (vcpuId) => raiseNmi(domain, vcpuId, this.#kicker),
      setSchedule: (weight, cap) => setSchedule(domain, weight, cap),
      allowMemory: (pages) => allowMemory(domain, pages),
      traffic: () => this.#devices.traffic(),
      placement: this.#placement,
      ended: this.#ended.promise,
      destroy: () => this.#destroy(),
    };
  }

  async #save(...[path, then, config, departure]: Parameters<LiveDomain['save']>): Promise<string | null> {
    this.#mustBeSavable();
    // Whoever finds this process killed must not start what is in a file.
    const remark = await this.#writer.save(path, then, config, {
      leave: async () => {
        await this.#devices.release(this.#options.config);
        departure.leave();
      },
      comeBack: () => departure.comeBack(),
    });
    if (remark !== null) this.#note(`Domain ${this.#options.domid}: ${remark}`);
    if (then !== 'end') return remark;
    this.#note(`Domain ${this.#options.domid} has been saved.`);
    this.#destroy();
    return remark;
  }

  /** `moves`: to a host with other CPUs. */
  #scheduleNow(moves: boolean): RunningSchedule {
    const { weight, cap } = domainState(this.#options.domain);
    const places = this.#placement.places();
    const pinned = { cpus: places.map(({ hard }) => hard), cpusSoft: places.map(({ soft }) => soft) };
    return { cpuWeight: weight, cap, places: moves ? null : pinned, hostCpus: cpus().length };
  }

  #mustBeSavable(): void {
    if (this.#isStopped || this.#freezer.hasLeft) throw new NotSavable('it has shut down');
  }

  async #migrate(link: MigrationLink, migration: MigrationOptions, departure: RecordDeparture): Promise<void> {
    const { config, xenstore, domid } = this.#options;
    this.#mustBeSavable();
    let { name } = config;
    let named: Promise<void> = Promise.resolve();
    const migrating = this.#writer.migrate(link, migration, {
      rename: async () => {
        // What the target has been told when the domain was frozen.
        name = (await xenstore.client.read(`/local/domain/${domid}/name`)) ?? name;
        await hostErrorOf(renameDomain(xenstore.client, domid, `${name}--migratedaway`));
      },
      leave: () => this.#devices.release(config),
      forget: departure.leave,
      comeBack: async () => {
        departure.comeBack();
        await this.#devices.reopen();
        const atOnce = Promise.withResolvers<void>();
        named = this.#takeNameBack(name, atOnce.resolve);
        await atOnce.promise;
      },
      named: () => named,
    });
    this.#moving ??= link;
    const gone = await migrating.finally(() => {
      if (this.#moving === link) this.#moving = null;
    });
    if (!gone) return;
    departure.gone();
    this.#note(`Domain ${domid} has been migrated.`);
    // Others lose what they have of it: it is not here any more.
    this.#peers?.close();
    link.result(0);
    // Nothing wakes it meanwhile (Freezer). If it has gone to this host, its first moments there are better spent on it.
    await sleep(AFTER_MOVE_MS);
    this.#destroy();
  }

  /** `tried` is called when it has looked for the first time. Never rejects: the guest goes on by whichever name. */
  async #takeNameBack(name: string, tried: () => void): Promise<void> {
    const { domid, options } = this.#options;
    let why = `another domain is called \`${name}'`;
    try {
      for (let ms = 0; ms < NAME_LIMIT_MS && !this.#isStopped; ms += NAME_EVERY_MS) {
        if (await this.#takeName(name)) return;
        tried();
        await sleep(NAME_EVERY_MS);
      }
    } catch (error) {
      why = error instanceof Error ? error.message : String(error);
    } finally {
      tried();
    }
    if (this.#isStopped) return;
    options.log(`xl: domain ${domid} goes on, but not as \`${name}': ${why}`);
  }

  // --- its end

  #stop(): void {
    const { domain } = this.#options;
    this.#isStopped = true;
    for (const vcpu of domain.vcpus) {
      Atomics.or(vcpu.i32, VCPU.flags >> 2, FLAG_STOP);
      notifyVcpu(domain, vcpu.vcpuId, this.#kicker);
    }
    // Those of a paused domain wait for nothing else.
    Atomics.notify(domain.i32, DOMAIN.paused >> 2);
    domain.ringDoorbell();
  }

  #destroy(): void {
    this.#isDestroyed = true;
    this.#stop();
    this.#destroyed.resolve();
  }

  /** It has shut down, or was stopped. */
  async #end(): Promise<EndReason> {
    const { config, options, domid, domain, workers } = this.#options;
    const reason = domain.shutdownReason;
    this.#stop();
    await workers.ended;
    this.#service();
    const ended = reason === -1 ? 'been destroyed' : `shut down, reason code ${reason}`;
    this.#moving?.tell(`libxl: error: Domain ${domid}: it has ${ended}`);
    if (reason === -1) {
      if (this.#isDestroyed && !this.#freezer.hasLeft) this.#note(`Domain ${domid} has been destroyed.`);
      return this.#isDestroyed ? 'destroyed' : 'detached';
    }
    this.#ended.resolve(reason);
    const end = endReason(reason);
    this.#note(`Domain ${domid} has shut down, reason code ${reason} 0x${reason.toString(16)}`);
    const action = options.preserve ? 'preserve' : actionFor(config, end);
    this.#note(`Action for shutdown reason code ${reason} is ${action}`);
    if (end === 'crash') for (const line of this.#tail.lines()) options.log(`console: ${line}`);
    if (process.env['DOMUS_STATS']) {
      const { statistics } = await import('../hypervisor/statistics.ts');
      for (const line of statistics(domain)) options.log(line);
    }
    if (action === 'preserve' && options.onLive) {
      await this.#destroyed.promise;
      this.#note(`Domain ${domid} has been destroyed.`);
      return 'destroyed';
    }
    this.#note(`Domain ${domid} needs to be cleaned up: destroying the domain`);
    this.#startsAgain = restarts(action);
    this.#note(this.#startsAgain ? 'Done. Rebooting now' : 'Done. Exiting now');
    return end;
  }
}

/** Resolves when all have; rejects when all have, as the first that has. */
async function all(done: readonly Promise<void>[]): Promise<void> {
  for (const one of await Promise.allSettled(done)) if (one.status === 'rejected') throw one.reason;
}
