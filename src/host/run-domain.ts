/**
 * A domain from its config to its end, in this process: builds it, runs a worker for each vCPU, serves its console and its
 * xenstore ring, and does what on_poweroff, on_reboot and on_crash say.
 */

import { resolve as resolvePath } from 'node:path';
import { setImmediate, setTimeout as sleep } from 'node:timers/promises';
import {
  SHUTDOWN_crash,
  SHUTDOWN_poweroff,
  SHUTDOWN_reboot,
  SHUTDOWN_soft_reset,
  SHUTDOWN_suspend,
  SHUTDOWN_watchdog,
} from '../abi/xen.ts';
import { ConsoleBackend } from '../backends/console.ts';
import { Dom0Channels, type EventHandler, type FarEnd } from '../hypervisor/dom0-channels.ts';
import { createDomain, DOMAIN, type Domain } from '../hypervisor/domain.ts';
import { allowMemory, domainState, raiseNmi, setSchedule } from '../hypervisor/domain-state.ts';
import { notifyVcpu } from '../hypervisor/event-channels.ts';
import { GrantMappings } from '../hypervisor/grant-mappings.ts';
import { takeConsoleIo } from '../hypervisor/hypercalls/console-io.ts';
import { createMachineMemory, type MachineMemory, MFN_BASE, PAGE_SIZE, RAM_PAGES_MAX } from '../machine/memory.ts';
import { FLAG_STOP, VCPU, VCPU_STATE_UP } from '../machine/vcpu-block.ts';
import { BuildError } from '../toolstack/builder/build-error.ts';
import type { MovedDisk } from '../toolstack/config/device-specs.ts';
import { type DomainConfig, formatUuid, type ShutdownAction } from '../toolstack/config/domain-config.ts';
import { renameDomain } from '../toolstack/rename-domain.ts';
import { completeConfig } from '../toolstack/saved/saved-config.ts';
import { NotSavable } from '../toolstack/saved/saved-state.ts';
import {
  DomainNameTaken,
  introduceControlDomain,
  introduceDomain,
  nameMustBeFree,
} from '../toolstack/xenstore-nodes.ts';
import { DomidAlias } from '../xenstore/domid-alias.ts';
import { createRingServer } from '../xenstore/ring-server.ts';
import type { BootFiles } from './boot-files.ts';
import { monotonicNs } from './clock.ts';
import type { ConsoleEnds } from './console-ends.ts';
import { ConsoleTail } from './console-tail.ts';
import { CopiedMemory } from './copied-memory.ts';
import { DirtyTracker } from './dirty-tracker.ts';
import { type Built, build, CONSOLE_PORT, cpuidOf, load, STORE_PORT, type TakeBootFiles } from './domain-content.ts';
import { DomainCopies } from './domain-copies.ts';
import { DomainDevices } from './domain-devices.ts';
import { DomainWriter } from './domain-writer.ts';
import { type DomainXenstore, openDomainXenstore, type XenstoreChoice } from './domain-xenstore.ts';
import { Doorbell } from './doorbell.ts';
import {
  chooseEngine,
  closeEngineDomain,
  createEngineDomain,
  createKicker,
  createStoreListener,
  type EngineHandle,
  type EngineKind,
  interceptsCpuid,
  resumeTsc,
} from './engines.ts';
import type { RestorableDomain } from './forked-domain.ts';
import { createGuestPort } from './guest-port.ts';
import { HostError } from './host-error.ts';
import { mustHaveMemory } from './host-memory.ts';
import { hostCalls } from './libc.ts';
import type { LiveDomain, LiveHooks } from './live-domain.ts';
import { UnseenSockets } from './local-socket.ts';
import { Peers } from './peers.ts';
import { RestoredNodes } from './restored-nodes.ts';
import { type FreezableDomain, Freezer } from './save-domain.ts';
import { showState } from './seen-state.ts';
import { ShareableMemory } from './shared-memory.ts';
import { seenStatePath, stateRoot, xenstoredPath } from './state-dir.ts';
import { VcpuPlacement } from './vcpu-placement.ts';
import { startVcpuWorkers, type VcpuWorkers } from './vcpu-workers.ts';
import { XenstoredError } from './xenstored.ts';

export type EndReason = 'poweroff' | 'reboot' | 'suspend' | 'crash' | 'watchdog' | 'destroyed' | 'detached';

export interface RunOptions {
  readonly console: ConsoleEnds | null;
  readonly log: (line: string) => void;
  readonly quiet: boolean;
  /** Whose xenstore the domain uses; 'private' if left out. */
  readonly xenstore?: XenstoreChoice;
  /** Called once, when the domain has been built and is about to run: nothing that the user gave can be wrong any more. */
  readonly onStart?: () => void;
  /** Called once, for a domain that was restored and is not paused: when its first vCPU went on, in ns of the host's monotonic clock. */
  readonly onWentOn?: (atNs: number) => void;
  /** The vCPUs do not run before somebody unpauses the domain. Not so after a restart. */
  readonly paused?: boolean;
  /** Whatever ends the domain, it stays as it is until it is destroyed: no on_* action is done. */
  readonly preserve?: boolean;
  /** Called for each domid before it runs; all that takes time is done there. */
  readonly onLive?: (domain: LiveDomain) => Promise<LiveHooks>;
  /** Called with each domid before anything is made for it. */
  readonly onAllocated?: (domid: number) => void;
  /** The config for the next start, if it may have changed. */
  readonly nextConfig?: () => DomainConfig;
  /** What xl notes of the domain's life. */
  readonly note?: (line: string) => void;
  /** Ends the domain at once. */
  readonly signal?: AbortSignal;
  /** The text that `config` was read from, without which the domain cannot be saved. */
  readonly configText?: () => string;
  /** A saved domain, which goes on instead of being built. Read once. */
  readonly restore?: RestorableDomain;
  /** Called when a disk is in another image from now on, before anything is written to that. */
  readonly onDiskMoved?: (moved: MovedDisk) => void;
  /** It goes on even where the CPU lacks what its guest has seen. */
  readonly force?: boolean;
  /** The saved domain is still at another host, and is kept below another name until that gives it away. */
  readonly incoming?: Incoming;
}

export interface Incoming {
  readonly name: string;
  /** Resolves when the domain may have its devices, its name, and run. @throws HostError */
  permission(): Promise<void>;
}

export interface DomainEnd {
  readonly reason: EndReason;
  readonly exitCode: number;
}

/** Exit code of a domain that crashed and is not restarted. */
const EXIT_CRASH = 4;
/** How long a moment is waited for that only the log hears of. */
const WENT_ON_LIMIT_MS = 1000;

const REASONS: Readonly<Record<number, EndReason>> = {
  [SHUTDOWN_poweroff]: 'poweroff',
  [SHUTDOWN_reboot]: 'reboot',
  [SHUTDOWN_suspend]: 'suspend',
  [SHUTDOWN_crash]: 'crash',
  [SHUTDOWN_watchdog]: 'watchdog',
  [SHUTDOWN_soft_reset]: 'reboot',
};

function actionFor(config: DomainConfig, reason: EndReason): ShutdownAction {
  switch (reason) {
    case 'reboot':
      return config.onReboot;
    case 'crash':
      return config.onCrash;
    case 'watchdog':
      return config.onWatchdog;
    default:
      return config.onPoweroff;
  }
}

/** A name that is taken is the user's to solve. */
async function hostErrorOf<T>(done: Promise<T>): Promise<T> {
  try {
    return await done;
  } catch (error) {
    if (error instanceof DomainNameTaken) throw new HostError(error.message);
    throw error;
  }
}

function restarts(action: ShutdownAction): boolean {
  return ['restart', 'rename-restart', 'coredump-restart', 'soft-reset'].includes(action);
}

/** Runs the domain, restarts included, to its end. Throws HostError, KernelImageError or BuildError, each with one line. */
export async function runDomain(config: DomainConfig, options: RunOptions): Promise<DomainEnd> {
  const onProgress = (step: string, detail: string): void => {
    if (!options.quiet) options.log(`xl: kernel: ${step} ${detail}`);
  };
  // What only one that is built needs is loaded then: some 20 of 300 modules, half a millisecond each.
  const load = async (next: DomainConfig): Promise<BootFiles> => {
    const { loadBootFiles } = await import('./boot-files.ts');
    return await loadBootFiles(next, onProgress);
  };
  let first: BootFiles | null = options.restore === undefined ? await load(config) : null;
  // A running domain does not need them: a restart loads them again.
  const takeBootFiles = async (next: DomainConfig): Promise<BootFiles> => {
    const files = first ?? (await load(next));
    first = null;
    return files;
  };
  const xenstore = await openXenstore(options);
  try {
    return await runToEnd(config, { options, takeBootFiles, xenstore });
  } finally {
    xenstore.close();
  }
}

async function openXenstore(options: RunOptions): Promise<DomainXenstore> {
  try {
    return await openDomainXenstore(options.xenstore ?? 'private', options.log);
  } catch (error) {
    if (error instanceof XenstoredError) throw new HostError(error.message);
    throw error;
  }
}

/** Runs the domain and what it becomes by restarts, each with a domid of its own. */
async function runToEnd(
  first: DomainConfig,
  run: Omit<OneRun, 'config' | 'domid' | 'isFirst' | 'engine' | 'restore'>,
): Promise<DomainEnd> {
  const { options, xenstore } = run;
  let config = first;
  let engine = engineFor(config, options.restore?.outline.engine);
  await introduceControlDomain(xenstore.client);
  // Before the work of building it; what counts is the look when it is introduced.
  await hostErrorOf(nameMustBeFree(xenstore.client, options.incoming?.name ?? config.name));
  for (let isFirst = true; ; isFirst = false) {
    const restore = (isFirst && options.restore) || null;
    const domid = restore === null ? await xenstore.allocateDomid() : await claimDomid(restore, xenstore);
    options.onAllocated?.(domid);
    const reason = await runOnce({ ...run, config, domid, isFirst, engine, restore });
    if (reason === 'detached' || reason === 'destroyed') return { reason, exitCode: 0 };
    const action = actionFor(config, reason);
    const failed = reason === 'crash' || reason === 'watchdog';
    const line = `xl: domain \`${config.name}' (${domid}): ${reason}, action ${action}`;
    if (restarts(action)) {
      if (!options.quiet) options.log(line);
      config = options.nextConfig?.() ?? config;
      engine = engineFor(config, undefined);
      continue;
    }
    if (failed) options.log(line);
    return { reason, exitCode: failed ? EXIT_CRASH : 0 };
  }
}

/** The domid by which the guest knows itself, if nobody has it. */
async function claimDomid({ outline: { knownDomid } }: RestorableDomain, xenstore: DomainXenstore): Promise<number> {
  return (await xenstore.claimDomid(knownDomid)) ? knownDomid : await xenstore.allocateDomid();
}

/** The engine that runs the domain, or a HostError that says why none can. `before`: the one that it was saved on. */
function engineFor(config: DomainConfig, before: EngineKind | undefined): EngineKind {
  const asked = process.env['DOMUS_ENGINE'] || config.engine;
  if (asked !== 'auto' && asked !== 'kvm' && asked !== 'wasm')
    throw new HostError(`DOMUS_ENGINE: expected auto, kvm or wasm, found \`${asked}'`);
  if (asked === 'auto' && before === 'wasm' && !config.engineMayChange) return before;
  try {
    return chooseEngine(asked).kind;
  } catch (error) {
    throw new HostError(error instanceof Error ? error.message : String(error));
  }
}

interface OneRun {
  readonly restore: RestorableDomain | null;
  readonly config: DomainConfig;
  readonly options: RunOptions;
  /** What it boots, to be let go of after building. */
  readonly takeBootFiles: TakeBootFiles;
  readonly xenstore: DomainXenstore;
  readonly domid: number;
  /** It is no restart. */
  readonly isFirst: boolean;
  readonly engine: EngineKind;
}

async function runOnce(run: OneRun): Promise<EndReason> {
  const { config, domid, restore } = run;
  const ramPages = restore?.outline.shape.ramPages ?? config.memoryMiB * 256;
  const maxPages = restore?.outline.shape.maxPages ?? Math.max(ramPages, config.maxmemMiB * 256);
  const vcpus = restore?.outline.shape.vcpus ?? config.maxvcpus;
  if (maxPages > RAM_PAGES_MAX)
    throw new BuildError(
      `memory = ${Math.max(config.memoryMiB, config.maxmemMiB)} MiB is more than the ${RAM_PAGES_MAX / 256} MiB that a domain can have`,
    );
  // A restart has what it had before, which the host may not have got back yet.
  if (run.isFirst) await mustHaveMemory(config.memoryMiB);
  const hasPeers = run.options.xenstore === 'daemon';
  const machine = allocateMemory(ramPages, maxPages);
  const engine = createEngineDomain(run.engine, machine, vcpus, restore?.outline.tscKhz);
  try {
    const cpuid = await cpuidOf(config, interceptsCpuid(engine), run.options.log);
    const domain = createDomain(machine, domid, vcpus, config.uuid, cpuid);
    const hide = hasPeers ? showState(domain, seenStatePath(stateRoot(), domid)) : () => {};
    const doorbell = new Doorbell(domain);
    // They load the engine while this thread builds the domain.
    const workers = startVcpuWorkers({
      ...{ domain, engine, restored: restore !== null, hasPeers, doorbellFd: doorbell.fd },
      log: run.options.log,
    });
    try {
      return await buildAndRun(run, domain, engine, workers, doorbell);
    } finally {
      await workers.abandon();
      hide();
      doorbell.close();
    }
  } finally {
    closeEngineDomain(engine);
  }
}

async function buildAndRun(
  run: OneRun,
  domain: Domain,
  handle: EngineHandle,
  workers: VcpuWorkers,
  doorbell: Doorbell,
): Promise<EndReason> {
  const { config, options, xenstore, domid, restore } = run;
  if (restore === null) {
    const built = await build(config, run.takeBootFiles, domain);
    return await runBuilt({ ...run, domain, handle, workers, doorbell, built, restoring: null });
  }
  // Guests of a private store have no others around them.
  const copied = options.xenstore === 'daemon' ? CopiedMemory.create(domain) : null;
  const prepared = Promise.withResolvers<void>();
  const nodes = new RestoredNodes(xenstore, domid, options.incoming?.name ?? config.name);
  const { log, force = false } = options;
  const loadOptions = {
    engine: handle,
    workers,
    prepared: prepared.promise,
    copied,
    force,
    vouched: config.engineMayChange,
    log,
  };
  const loaded = load(restore, domain, loadOptions);
  loaded.catch(() => undefined);
  prepared.promise.catch(() => undefined);
  try {
    await hostErrorOf(nodes.writeEarly(restore));
    const { store, console, cmdline } = restore.outline;
    const built = { storePfn: store.pfn, consolePfn: console.pfn, cmdline };
    const restoring = { saved: restore, nodes, copied, loaded, prepared: () => prepared.resolve() };
    return await runBuilt({ ...run, domain, handle, workers, doorbell, built, restoring });
  } catch (error) {
    prepared.reject(error);
    await xenstore.remove(domid);
    throw error;
  }
}

interface Restoring {
  readonly saved: RestorableDomain;
  readonly nodes: RestoredNodes;
  /** Its memory, where that can be a copy. */
  readonly copied: CopiedMemory | null;
  /** Resolves when all of it is there; begun already. */
  readonly loaded: Promise<void>;
  /** All that can be done before is done. */
  prepared(): void;
}

/** A domain that stands in its memory, or will: `restoring`. */
interface BuiltRun extends OneRun {
  readonly domain: Domain;
  readonly handle: EngineHandle;
  readonly workers: VcpuWorkers;
  readonly doorbell: Doorbell;
  readonly built: Built;
  readonly restoring: Restoring | null;
}

async function runBuilt(run: BuiltRun): Promise<EndReason> {
  const { config, options, xenstore, domid, restore, domain, handle, workers, doorbell, built, restoring } = run;
  const { machine } = domain;
  const storePort = restore?.outline.store.port ?? STORE_PORT;
  const consolePort = restore?.outline.console.port ?? CONSOLE_PORT;
  const storeMfn = built.storePfn + MFN_BASE;

  const kicker = createKicker(handle);
  const channels = new Dom0Channels(domain, kicker);
  if (restore === null) {
    const introduced = introduceDomain(xenstore.client, {
      domid,
      uuid: formatUuid(config.uuid),
      name: config.name,
      memoryKiB: config.memoryMiB * 1024,
      maxMemKiB: config.maxmemMiB * 1024,
      vcpus: config.vcpus,
      vcpusMax: config.maxvcpus,
      storePort,
      storeMfn,
      consolePort,
      consoleMfn: built.consolePfn + MFN_BASE,
      startTimeSeconds: Date.now() / 1000,
      driverDomain: config.driverDomain,
    });
    await hostErrorOf(introduced);
  } else await xenstore.client.introduce(domid, storeMfn, storePort);
  const page = (pfn: number): Uint8Array => machine.u8.subarray(pfn * PAGE_SIZE, (pfn + 1) * PAGE_SIZE);
  const knownDomid = restore?.outline.knownDomid ?? domid;
  const alias = knownDomid === domid ? null : new DomidAlias(knownDomid, domid);
  const connection = await xenstore.connect(domid, alias);
  connection.onEnd = (reason) =>
    options.log(`xl: domain \`${config.name}' (${domid}) has no xenstore any more: ${reason}`);
  const ring = createRingServer({
    page: page(built.storePfn),
    connection,
    notify: () => storeChannel.notify(),
  });
  const tail = new ConsoleTail();
  const console = new ConsoleBackend({
    page: page(built.consolePfn),
    notify: () => consoleChannel.notify(),
    output: (bytes) => {
      tail.add(bytes);
      options.console?.write(bytes);
    },
  });
  let [storeChannel, consoleChannel]: FarEnd[] = [];
  /** The ports must be there. */
  const bindRings = (): void => {
    storeChannel = bindFirst(channels, storePort, () => ring.service());
    consoleChannel = bindFirst(channels, consolePort, () => console.service());
  };
  options.console?.onInput((bytes) => console.input(bytes));

  const grants = new GrantMappings(domain);
  const memoryStored = createStoreListener(handle, domain);
  const port = createGuestPort(domain, grants, channels, memoryStored);
  // Guests of a private store have no others around them.
  const hasPeers = options.xenstore === 'daemon';
  const shareable = hasPeers ? ShareableMemory.create(machine) : null;
  const copied = hasPeers ? (restoring?.copied ?? CopiedMemory.create(domain)) : null;
  if (shareable !== null) shareable.onShared = () => copied?.forget();
  const peers = hasPeers
    ? new Peers({
        ...{ domain, channels, grants, memoryStored, memoryFd: shareable?.fd ?? -1 },
        share: async () => (await shareable?.share(freezer, options.log)) ?? false,
        untilMoving: () => freezer.untilMoving(),
        stateRoot: stateRoot(),
        log: options.log,
      })
    : null;
  if (peers !== null) workers.serveForeign((call) => void peers.serve(call));
  const devices = new DomainDevices({
    store: xenstore.client,
    port,
    name: config.name,
    xenstoredPath: options.xenstore === 'daemon' ? xenstoredPath(stateRoot()) : null,
    log: options.log,
  });

  const service = (): void => {
    channels.dispatch();
    const text = takeConsoleIo(domain);
    if (text.length > 0) {
      tail.add(text);
      if (built.cmdline.includes('earlyprintk=xen')) options.console?.write(text);
    }
  };
  const freezable: FreezableDomain = { domain, kicker, connection, ring, console, devices, service };
  const freezer = new Freezer(freezable);
  let destroyed = false;
  let stopped = false;
  const stop = (): void => {
    stopped = true;
    for (const vcpu of domain.vcpus) {
      Atomics.or(vcpu.i32, VCPU.flags >> 2, FLAG_STOP);
      notifyVcpu(domain, vcpu.vcpuId, kicker);
    }
    // Those of a paused domain wait for nothing else.
    Atomics.notify(domain.i32, DOMAIN.paused >> 2);
    domain.ringDoorbell();
  };
  let onDestroyed = (): void => {};
  const destroy = (): void => {
    destroyed = true;
    stop();
    onDestroyed();
  };
  const untilDestroyed = (): Promise<void> =>
    new Promise((resolve) => {
      onDestroyed = resolve;
      if (destroyed || options.signal?.aborted) resolve();
      options.signal?.addEventListener('abort', () => resolve());
    });
  const note = (line: string): void => options.note?.(line);
  setSchedule(domain, config.cpuWeight, config.cap);
  allowMemory(domain, config.memoryMiB * 256);
  const placement = new VcpuPlacement(domain, config.cpus, config.cpusSoft);
  let onEnded: (reason: number) => void = () => {};
  const ended = new Promise<number>((resolve) => {
    onEnded = resolve;
  });
  let hasLeft = false;
  const writing = {
    ...{ freezable, freezer, workers, store: xenstore.client, isMapped: () => peers?.isMapped ?? false },
    facts: {
      knownDomid,
      engine: handle.kind,
      store: { pfn: built.storePfn, port: storePort },
      console: { pfn: built.consolePfn, port: consolePort },
      cmdline: built.cmdline,
    },
    tracker: new DirtyTracker({ domain, engine: handle, kicker, ringFrames: [built.storePfn, built.consolePfn] }),
    config: (name: string, other?: string | null) => {
      const text = other ?? options.configText?.();
      return text === undefined ? null : completeConfig(text, config, name, (file) => resolvePath(file));
    },
  };
  const writer = new DomainWriter(writing);
  const copies = new DomainCopies({
    ...{ ...writing, root: stateRoot(), memory: copied, note, isShared: () => shareable?.isShared ?? false },
    shape: { ramPages: machine.layout.ramPages, maxPages: machine.layout.maxPages, vcpus: domain.vcpus.length },
    onDiskMoved: (moved) => options.onDiskMoved?.(moved),
  });
  const live: LiveDomain = {
    domid,
    save: async (path, then, config) => {
      if (stopped) throw new NotSavable('it has shut down');
      await writer.save(path, then, config);
      if (then !== 'end') return;
      note(`Domain ${domid} has been saved.`);
      hasLeft = true;
      destroy();
    },
    migrate: async (link, migration, departure) => {
      if (stopped) throw new NotSavable('it has shut down');
      const name = (await xenstore.client.read(`/local/domain/${domid}/name`)) ?? config.name;
      const gone = await writer.migrate(link, migration, {
        rename: () => hostErrorOf(renameDomain(xenstore.client, domid, `${name}--migratedaway`)),
        leave: async () => {
          departure.leave();
          await devices.release(config);
        },
        comeBack: async () => {
          departure.comeBack();
          await hostErrorOf(renameDomain(xenstore.client, domid, name));
        },
      });
      if (!gone) return;
      note(`Domain ${domid} has been migrated.`);
      hasLeft = true;
      link.result(0);
      destroy();
    },
    dumpCore: (path) => writer.dumpCore(path),
    copies,
    state: () => domainState(domain),
    pause: () => freezer.pause(),
    unpause: () => freezer.unpause(),
    resume: () => freezer.resume(),
    nmi: (vcpuId) => raiseNmi(domain, vcpuId, kicker),
    setSchedule: (weight, cap) => setSchedule(domain, weight, cap),
    allowMemory: (pages) => allowMemory(domain, pages),
    traffic: () => devices.traffic(),
    placement,
    ended,
    destroy,
  };
  let hooks: LiveHooks | undefined;
  let startsAgain = false;
  if (options.signal?.aborted) stopped = true;
  options.signal?.addEventListener('abort', stop);
  const sockets = new UnseenSockets();
  /** Threads of the vCPUs wait to be told that they run, or end. */
  let isRunning = restore === null;
  if (restore === null) {
    bindRings();
    workers.run();
  }
  /** Takes some time; nobody finds it before `begin`. */
  const makeFindable = async (): Promise<void> => {
    hooks = await options.onLive?.(live);
    await peers?.listen(sockets.listen);
  };
  const begin = (): void => {
    if (run.isFirst && options.paused) live.pause();
    hooks?.onRunning();
    sockets.appear();
  };
  const beginBuilt = async (): Promise<void> => {
    for (const disk of config.disks) await devices.addDisk(disk);
    for (const vif of config.vifs) await devices.addVif(vif);
    for (const vfb of config.vfbs) await devices.addVfb(vfb);
    for (const channel of config.channels) await devices.addChannel(channel);
    await devices.watch();
    await workers.ready;
    placement.apply(options.log);
    await makeFindable();
    begin();
    if (run.isFirst) options.onStart?.();
    Atomics.store(domain.vcpus[0].i32, VCPU.state >> 2, VCPU_STATE_UP);
    Atomics.add(domain.i32, DOMAIN.vcpusUp >> 2, 1);
    notifyVcpu(domain, 0, kicker);
  };
  /** All that can be done before the rest of it comes is done before: its guest stands still. */
  const goOn = async ({ saved, nodes, loaded, prepared }: Restoring): Promise<void> => {
    await makeFindable();
    prepared();
    await loaded;
    live.pause();
    bindRings();
    const { tsc, watches } = saved.description;
    connection.setWatches(watches);
    const lateNs = Math.floor(saved.lateNs());
    // Both run from one moment on, whenever the vCPUs look at them first: one that is ahead of the other makes Linux mistrust its TSC.
    const atNs = monotonicNs();
    domain.f64[DOMAIN.bootNs >> 3] = atNs - (Number(domain.u64[DOMAIN.baseNs >> 3]) + lateNs);
    resumeTsc(handle, tsc.ticks + Math.floor((lateNs * tsc.khz) / 1e6), atNs);
    isRunning = true;
    await all([hostErrorOf(nodes.write(saved)), workers.resume()]);
    placement.apply(options.log);
    const hasMoved = options.incoming !== undefined;
    await options.incoming?.permission();
    await all([
      ...(hasMoved ? [hostErrorOf(renameDomain(xenstore.client, domid, config.name))] : []),
      devices.restore(config, nodes.known()),
    ]);
    begin();
    if (!options.paused) live.unpause();
    // Before anything can go wrong that would make the source take it back.
    options.onStart?.();
    await devices.watch();
    if (!options.paused) void tellWhenItWentOn();
  };
  /** Its vCPU's thread may not have been given a CPU yet. */
  const tellWhenItWentOn = async (): Promise<void> => {
    const wentOnNs = (): number => domain.f64[DOMAIN.wentOnNs >> 3];
    for (let ms = 0; ms < WENT_ON_LIMIT_MS && wentOnNs() === 0 && !stopped; ms++) await sleep(1);
    if (wentOnNs() !== 0) options.onWentOn?.(wentOnNs());
  };
  try {
    if (restoring === null) await beginBuilt();
    else await goOn(restoring);
    if (stopped) stop();
    for (;;) {
      const ticket = Atomics.load(domain.i32, DOMAIN.doorbell >> 2);
      service();
      if (stopped || domain.shutdownReason !== -1) break;
      const wait = doorbell.wait(ticket);
      // A guest that rings all the time must leave room for timers, signals and what is typed.
      if (wait !== null) await wait;
      else await setImmediate();
    }
    const reason = domain.shutdownReason;
    stop();
    await workers.ended;
    service();
    if (reason === -1) {
      if (destroyed && !hasLeft) note(`Domain ${domid} has been destroyed.`);
      return destroyed ? 'destroyed' : 'detached';
    }
    onEnded(reason);
    const end = REASONS[reason] ?? 'crash';
    note(`Domain ${domid} has shut down, reason code ${reason} 0x${reason.toString(16)}`);
    const action = options.preserve ? 'preserve' : actionFor(config, end);
    note(`Action for shutdown reason code ${reason} is ${action}`);
    if (end === 'crash') for (const line of tail.lines()) options.log(`console: ${line}`);
    if (process.env['DOMUS_STATS']) {
      const { statistics } = await import('../hypervisor/statistics.ts');
      for (const line of statistics(domain)) options.log(line);
    }
    if (action === 'preserve' && options.onLive) {
      await untilDestroyed();
      note(`Domain ${domid} has been destroyed.`);
      return 'destroyed';
    }
    note(`Domain ${domid} needs to be cleaned up: destroying the domain`);
    startsAgain = restarts(action);
    note(startsAgain ? 'Done. Rebooting now' : 'Done. Exiting now');
    return end;
  } finally {
    stop();
    if (isRunning) await workers.ended;
    else await workers.abandon();
    options.signal?.removeEventListener('abort', stop);
    peers?.close();
    copies.close();
    shareable?.close();
    await devices.close();
    connection.onEnd = null;
    hooks?.onEnding(startsAgain);
    await xenstore.remove(domid);
    connection.close();
    hooks?.onGone();
  }
}

/** Resolves when all have; rejects when all have, as the first that has. */
async function all(done: readonly Promise<void>[]): Promise<void> {
  for (const one of await Promise.allSettled(done)) if (one.status === 'rejected') throw one.reason;
}

/** Binds to a port that the toolstack has made for the guest. */
function bindFirst(channels: Dom0Channels, port: number, onEvent: EventHandler): FarEnd {
  const channel = channels.bind(port, onEvent);
  if (channel === null) throw new HostError(`port ${port} of the domain is not free for Dom0`);
  return channel;
}

function allocateMemory(ramPages: number, maxPages: number): MachineMemory {
  try {
    const machine = createMachineMemory(ramPages, maxPages);
    // As QEMU does: fewer misses of the CPU's TLB, and fewer faults when the memory is first touched. Linux gives them to those who ask.
    hostCalls()?.askForHugePages(machine.u8);
    return machine;
  } catch (error) {
    // What WebAssembly.Memory() throws when the host has no room for it.
    if (!(error instanceof RangeError)) throw error;
    throw new HostError(`the host cannot give the domain ${Math.ceil(maxPages / 256)} MiB of memory`);
  }
}
