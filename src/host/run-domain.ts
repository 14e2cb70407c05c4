/**
 * A domain from its config to its end, in this process: builds or restores it, with a worker for each vCPU, lets it live (domain-life.ts), and does
 * what on_poweroff, on_reboot and on_crash say.
 */

import { createDomain, type Domain } from '../hypervisor/domain.ts';
import { createMachineMemory, type MachineMemory, RAM_PAGES_MAX } from '../machine/memory.ts';
import { BuildError } from '../toolstack/builder/build-error.ts';
import type { DomainConfig } from '../toolstack/config/domain-config.ts';
import { domainLimits } from '../toolstack/config/domain-limits.ts';
import { introduceControlDomain, nameMustBeFree } from '../toolstack/xenstore-nodes.ts';
import type { BootFiles } from './boot-files.ts';
import { CopiedMemory } from './copied-memory.ts';
import { build, cpuidOf, load, type TakeBootFiles } from './domain-content.ts';
import { live } from './domain-life.ts';
import { type DomainXenstore, openDomainXenstore } from './domain-xenstore.ts';
import { Doorbell } from './doorbell.ts';
import {
  chooseEngine,
  closeEngineDomain,
  createEngineDomain,
  type EngineHandle,
  type EngineKind,
  interceptsCpuid,
} from './engines.ts';
import type { RestorableDomain } from './forked-domain.ts';
import { HostError } from './host-error.ts';
import { mustHaveMemory } from './host-memory.ts';
import { hostErrorOf } from './introduced-domain.ts';
import { hostCalls } from './libc.ts';
import { RestoredNodes } from './restored-nodes.ts';
import { actionFor, type DomainEnd, type EndReason, type RunOptions, restarts } from './run-options.ts';
import { showState } from './seen-state.ts';
import { seenStatePath, stateRoot } from './state-dir.ts';
import { startVcpuWorkers, type VcpuWorkers } from './vcpu-workers.ts';
import { XenstoredError } from './xenstored.ts';

/** Exit code of a domain that crashed and is not restarted. */
const EXIT_CRASH = 4;
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
    const domain = createDomain(machine, domid, vcpus, config.uuid, cpuid, domainLimits(config.limits));
    const hide = hasPeers ? showState(domain, seenStatePath(stateRoot(), domid)) : () => {};
    const doorbell = new Doorbell(domain);
    // They load the engine while this thread builds the domain.
    const workers = startVcpuWorkers({
      ...{
        domain,
        engine,
        restored: restore !== null,
        rehearses: run.isFirst && run.options.standsStill === true,
        hasPeers,
        doorbellFd: doorbell.fd,
      },
      threads: run.isFirst ? (run.options.threads ?? null) : null,
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
    return await live({ ...run, domain, handle, workers, doorbell, built, restoring: null });
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
    return await live({ ...run, domain, handle, workers, doorbell, built, restoring });
  } catch (error) {
    prepared.reject(error);
    await xenstore.remove(domid);
    throw error;
  }
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
