/** What stands in a domain's memory when it begins: built from its files, or read from what was saved. */

import { missingFeatures, unsavedState } from '../hypervisor/cpu-features.ts';
import {
  type CpuidSettings,
  CpuidStatementError,
  cpuidSettings,
  cutDownTo,
  OF_STATE,
} from '../hypervisor/cpuid-settings.ts';
import type { Domain } from '../hypervisor/domain.ts';
import { ECS_UNBOUND, setPort } from '../hypervisor/event-channels.ts';
import { adoptPageTables } from '../hypervisor/mmu.ts';
import { VCPU } from '../machine/vcpu-block.ts';
import { BuildError } from '../toolstack/builder/build-error.ts';
import type { DomainConfig } from '../toolstack/config/domain-config.ts';
import { SaveFileError } from '../toolstack/saved/save-file.ts';
import type { BootFiles } from './boot-files.ts';
import type { CopiedMemory } from './copied-memory.ts';
import { createStoreListener, type EngineHandle, factsOf, interceptsCpuid } from './engines.ts';
import type { RestorableDomain } from './forked-domain.ts';
import { HostError } from './host-error.ts';
import type { VcpuWorkers } from './vcpu-workers.ts';

/** Guest-local ports that the toolstack allocates. Source: reference guest layout of libxl, store first. */
export const STORE_PORT = 1;
export const CONSOLE_PORT = 2;

/** What a domain boots, to be let go of after building. */
export type TakeBootFiles = (config: DomainConfig) => Promise<BootFiles>;

export interface LoadOptions {
  readonly engine: EngineHandle;
  readonly workers: VcpuWorkers;
  /** Resolves when all is there that can be there before. */
  readonly prepared: Promise<void>;
  /** Its memory, where that can be a copy. */
  readonly copied: CopiedMemory | null;
  /** It goes on even where the CPU lacks what its guest has seen. */
  readonly force: boolean;
  /** The user vouches for the guest's programs: they use what the guest's kernel sees, whatever else they find. */
  readonly vouched: boolean;
  readonly log: (line: string) => void;
}

/** What others need to know of a domain that stands in its memory. */
export interface Built {
  readonly storePfn: number;
  readonly consolePfn: number;
  readonly cmdline: string;
}

/** Builds a new domain from its files. @throws BuildError, HostError, KernelImageError */
export async function build(config: DomainConfig, takeBootFiles: TakeBootFiles, domain: Domain): Promise<Built> {
  const { machine } = domain;
  const built = await buildFromFiles(config, takeBootFiles, domain);
  adoptPageTables(domain, built.pageTableFrames);
  domain.vcpus.forEach((vcpu, id) => {
    vcpu.u32[VCPU.vcpuInfo >> 2] = machine.layout.sharedInfoOffset + id * 64;
  });
  domain.vcpus[0].u32[VCPU.initialised >> 2] = 1;
  for (const port of [STORE_PORT, CONSOLE_PORT]) setPort(domain, port, ECS_UNBOUND, 0, 0, 0);
  return built;
}

async function buildFromFiles(config: DomainConfig, takeBootFiles: TakeBootFiles, domain: Domain) {
  const { elf, kernel, kernelName, ramdisk, ramdiskName, cmdline } = await takeBootFiles(config);
  const { buildDomain } = await import('../toolstack/builder/build-domain.ts');
  const built = buildDomain(
    domain.machine,
    domain.vcpus[0],
    { elf, bytes: kernel, name: kernelName },
    { ramdisk, ramdiskName, cmdline, storePort: STORE_PORT, consolePort: CONSOLE_PORT },
  );
  letGo(kernel);
  if (ramdisk !== null) letGo(ramdisk);
  return { ...built, cmdline };
}

/** Reads the rest of a saved domain, whose engine must have what the guest has seen. @throws HostError */
export async function load(
  saved: RestorableDomain,
  domain: Domain,
  { engine, workers, prepared, copied, force, vouched, log }: LoadOptions,
): Promise<void> {
  const before = Promise.all([workers.ready, prepared]);
  // Whoever waits for it hears of it.
  before.catch(() => undefined);
  const differs = (line: string): void => {
    if (!force) throw new HostError(line);
    log(`xl: ${line}`);
  };
  const checkCpu = async (): Promise<void> => {
    const [here] = await before;
    const missing = missingFeatures(saved.description.cpu, here);
    if (missing.length > 0)
      differs(`the guest has seen CPU features that engine ${engine.kind} does not have here: ${missing.join(' ')}`);
    const unsaved = unsavedState(saved.description.cpu, factsOf(engine), vouched || interceptsCpuid(engine));
    if (unsaved !== null)
      differs(
        `programs of the guest would find ${unsaved} on engine ${engine.kind} here, which the guest's kernel does not save`,
      );
  };
  await arrive(saved, before, copied);
  const ready = checkCpu();
  ready.catch(() => undefined);
  try {
    const isSame = engine.kind === 'wasm' && saved.outline.engine === 'wasm';
    const code = { prepare: workers.prepareCode, stored: createStoreListener(engine, domain) };
    await saved.load(domain.machine, domain, ready, copied, isSame ? code : null);
  } catch (error) {
    if (error instanceof SaveFileError) throw new HostError(error.message);
    throw error;
  }
}

async function arrive(saved: RestorableDomain, ready: Promise<unknown>, copied: CopiedMemory | null): Promise<void> {
  try {
    await saved.arrive(ready, copied);
  } catch (error) {
    if (error instanceof SaveFileError) throw new HostError(error.message);
    throw error;
  }
}

/**
 * Gives the memory of a file back that nobody reads any more. Left alone it would stay until a collection, which an idle process never
 * makes. Small ones may share Node's pool of buffers.
 */
function letGo({ buffer, byteLength }: Uint8Array): void {
  if (buffer instanceof ArrayBuffer && byteLength >= 1 << 20) buffer.transfer(0);
}

/** What the config says of CPUID; `hides`: the engine can hide vector state from programs. @throws BuildError */
export async function cpuidOf(
  { cpuid, engineMayChange }: DomainConfig,
  hides: boolean,
  log: (line: string) => void,
): Promise<CpuidSettings> {
  try {
    if (engineMayChange) {
      // What engine wasm has, a CPU that KVM runs on has too, or the guest is refused there.
      const wasm = await import('../engine/wasm/cpuid.ts');
      return cutDownTo(cpuidSettings(cpuid.cpuid), wasm.cpuid);
    }
    const settings = cpuidSettings(cpuid.cpuid, hides);
    if (hides) return settings;
    const kept = cpuidSettings(cpuid.cpuid).without.filter((feature) => OF_STATE.has(feature));
    if (kept.length > 0) log(`xl: warning: cpuid: this KVM cannot hide ${kept.join(', ')} from programs: they stay`);
    return settings;
  } catch (error) {
    if (!(error instanceof CpuidStatementError)) throw error;
    throw new BuildError(`Failed to apply CPUID policy: ${error.message}`);
  }
}
