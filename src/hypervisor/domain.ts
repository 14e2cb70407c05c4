/**
 * A domain: the state that its vCPUs share, as typed arrays in shared memory (memory 2), so that every worker and the main
 * thread see the same Xen.
 *
 * Lock order: the domain lock is the only one. It guards event-channel allocation and binding, vCPU up/down and grant table growth.
 * Pending and mask bits of event channels live in guest memory and are changed with Atomics, without the lock. A vCPU that waits
 * for the lock is outside the guest, so nobody who asks it to flush waits for it.
 */

import { MachineMemory, type MachineMemoryHandle } from '../machine/memory.ts';
import { createVcpuBlock, VcpuBlock } from '../machine/vcpu-block.ts';
import { type CpuidSettings, NO_CPUID_SETTINGS } from './cpuid-settings.ts';
import { type DomainLimits, EVENT_CHANNELS, MAPTRACK_ENTRIES, maptrackEntries, NO_LIMITS } from './domain-limits.ts';

/** Of a domain whose config says nothing. Source: xl.cfg(5), cpu_weight. */
export const WEIGHT_DEFAULT = 256;

/** Byte offsets of the shared words. */
export const DOMAIN = {
  /** i32: 0 free, 1 held, 2 held and waited for. */
  lock: 0x00,
  /** i32: -1 while the domain runs, else SHUTDOWN_*. Set once, by compare-exchange. */
  shutdown: 0x04,
  /** i32: incremented when something in dom0Pending is set; the main thread waits on it. */
  doorbell: 0x08,
  /** i32: grant table frames in use. */
  grantFrames: 0x0c,
  /** i32: vCPUs that are up and not blocked for ever; 0 = nothing can run. */
  vcpusUp: 0x10,
  /** i32: id of the vCPU that crashed the domain, -1 = none. */
  crashVcpu: 0x14,
  /** i32: pages the domain owns now. */
  totalPages: 0x18,
  /** i32: a vCPU was brought up: VCPUOP_up tells the main thread by the doorbell. */
  vcpuUpRequests: 0x1c,
  /** u64: guest TSC when system time was `timeBaseNs`. */
  tscBase: 0x20,
  /** f64: host monotonic ns when system time was 0. */
  bootNs: 0x28,
  /** u32, i32: vcpu_time_info.tsc_to_system_mul and tsc_shift. */
  tscMul: 0x30,
  tscShift: 0x34,
  tscKhz: 0x38,
  /** u32: 1 = TSCs of all vCPUs agree (XEN_PVCLOCK_TSC_STABLE_BIT). */
  tscStable: 0x3c,
  /** u8[16] */
  uuid: 0x40,
  /** f64: guest system time minus (host monotonic - bootNs), as last measured: drift of the two clocks, ns. */
  driftNs: 0x50,
  /** f64: host wall clock at system time 0, ns since 1970. */
  wallclockNs: 0x58,
  domid: 0x60,
  vcpuCount: 0x64,
  /** i32: 1 while the toolstack has the domain paused. vCPUs wait on it. */
  paused: 0x68,
  /** i32: scheduling parameters, set by the toolstack: weight, 1 to 65535; cap in percent of a CPU, 0 = none. */
  weight: 0x6c,
  cap: 0x70,
  /** i32: CPU time that is left of the cap, us, and the period in which it was filled up last. See scheduling.ts. */
  budgetUs: 0x74,
  budgetPeriod: 0x78,
  /** i32: vCPUs that are parked: paused, with all of their state in shared memory. Changes are notified. */
  parked: 0x7c,
  /** i32: 1 = the guest has suspended itself, and waits to be resumed. Its toolstack has it paused as well. */
  suspended: 0x8c,
  /** i32: 1 = memory 0 shows a file's pages where they were not written to, so a page that is given back has to be mapped anew. */
  memoryIsCopy: 0x90,
  /** u64: system time at `tscBase`, ns: 0 but for a domain that was restored. */
  baseNs: 0x80,
  /** i32: pages that the domain may own; it may own more already. Set by the toolstack. */
  maxPages: 0x88,
  /** i32: 1 = the main thread sleeps, and who rings the doorbell has to wake it by `wakeMain`. */
  mainSleeps: 0x94,
  /** i32: version of the grant table, 1 or 2. */
  grantVersion: 0x98,
  /** f64: host monotonic ns when a vCPU last went on after a pause. */
  wentOnNs: 0xa0,
  /** i32: the most that the domain may have (domain-limits.ts): frames and version of its grant table, handles of mapped grants, port. Set once. */
  grantFramesMax: 0xa8,
  grantVersionMax: 0xac,
  maptrackMax: 0xb0,
  portMax: 0xb4,
  /** i32: 1 = of a memory 0 that shows a file's pages, some have been given back, and mapped anew. Set by vCPUs; 0 again when all is mapped. */
  mappedAnew: 0xb8,
  /** i32: console_io bytes lock etc. unused space up to 0x100. */
  /** i32[128]: bit per local port whose Dom0 end has been signalled. */
  dom0Pending: 0x100,
  /** Port records, EVENT_CHANNELS * EVTCHN_RECORD bytes. */
  eventChannels: 0x1000,
  /** Text ring of console_io(write): u32 producer, then bytes. */
  consoleIoProducer: 0x11000,
  consoleIoConsumer: 0x11004,
  consoleIoRing: 0x12000,
  consoleIoSize: 0x4000,
  /** u8 per nameable frame: FRAME_*. */
  frameTypes: 0x16000,
} as const;

/**
 * What a vCPU leaves in shared memory when it is parked, beside its block. Written by its own worker, or by whoever restores the
 * domain before the worker runs it.
 */
export const PARKED = {
  /** Vector state: an XSAVE area as `Engine.saveVectorState` gives it. */
  vector: 0,
  /** u32: 1 = in SCHEDOP_block or SCHEDOP_poll; SCHEDOP_poll has ports, or a deadline. */
  blocked: 0x1000,
  /** u32, f64, u32[128]: ports, and deadline in system time ns, of SCHEDOP_poll. */
  pollCount: 0x1004,
  pollDeadlineNs: 0x1008,
  pollPorts: 0x1010,
  SIZE: 0x1210,
} as const;
/** A maptrack entry, see maptrack.ts. They stand behind the frame types. */
export const MAPTRACK_WORDS = 3;

/** A port record: u32 state, u32 vcpu to notify, u32 a, u32 b (see event-channels.ts). */
export const EVTCHN_RECORD = 16;

/** Frame types: 0 plain; 1..4 = in use as a page table of that level; pinned; being validated. */
export const FRAME_LEVEL_MASK = 7;
const ROOT_LEVEL = 4;
export const FRAME_VALIDATING = 0x40;
export const FRAME_PINNED = 0x80;

const WASM_PAGE_BYTES = 65536;

/** Plain data that can be posted to a worker. */
export interface DomainHandle {
  readonly machine: MachineMemoryHandle;
  readonly state: SharedArrayBuffer;
  readonly vcpus: readonly WebAssembly.Memory[];
  /** What its config says of CPUID. */
  readonly cpuid: CpuidSettings;
}

export class Domain {
  readonly machine: MachineMemory;
  readonly state: SharedArrayBuffer;
  readonly i32: Int32Array<SharedArrayBuffer>;
  readonly u32: Uint32Array<SharedArrayBuffer>;
  readonly f64: Float64Array<SharedArrayBuffer>;
  readonly u64: BigUint64Array<SharedArrayBuffer>;
  readonly u8: Uint8Array<SharedArrayBuffer>;
  readonly frameTypes: Uint8Array<SharedArrayBuffer>;
  readonly maptrack: Uint32Array<SharedArrayBuffer>;
  readonly vcpus: readonly VcpuBlock[];
  readonly cpuid: CpuidSettings;
  /** How this thread wakes the main one; null: that one waits for the doorbell's word itself. */
  wakeMain: (() => void) | null = null;

  constructor(handle: DomainHandle) {
    this.machine = new MachineMemory(handle.machine);
    this.state = handle.state;
    this.i32 = new Int32Array(handle.state);
    this.u32 = new Uint32Array(handle.state);
    this.f64 = new Float64Array(handle.state);
    this.u64 = new BigUint64Array(handle.state);
    this.u8 = new Uint8Array(handle.state);
    this.frameTypes = new Uint8Array(handle.state, DOMAIN.frameTypes, this.machine.layout.nameableFrames);
    this.maptrack = new Uint32Array(
      handle.state,
      maptrackOffset(this.machine.layout.nameableFrames),
      MAPTRACK_ENTRIES * MAPTRACK_WORDS,
    );
    this.vcpus = handle.vcpus.map((memory, id) => new VcpuBlock(id, memory));
    this.cpuid = handle.cpuid;
  }

  handle(): DomainHandle {
    const vcpus = this.vcpus.map((vcpu) => vcpu.memory);
    return { machine: this.machine.handle(), state: this.state, vcpus, cpuid: this.cpuid };
  }

  /** Byte offset of what vCPU `id` leaves when it is parked. */
  parkedOffset(id: number): number {
    return parkedOffset(this.machine.layout.nameableFrames) + id * PARKED.SIZE;
  }

  get domid(): number {
    return this.i32[DOMAIN.domid >> 2];
  }

  get shutdownReason(): number {
    return Atomics.load(this.i32, DOMAIN.shutdown >> 2);
  }

  /** Takes the domain lock. Never called in guest mode, so waiting holds up nobody's TLB flush. */
  lock(): void {
    const word = DOMAIN.lock >> 2;
    if (Atomics.compareExchange(this.i32, word, 0, 1) === 0) return;
    while (Atomics.exchange(this.i32, word, 2) !== 0) Atomics.wait(this.i32, word, 2, 100);
  }

  unlock(): void {
    const word = DOMAIN.lock >> 2;
    if (Atomics.exchange(this.i32, word, 0) === 2) Atomics.notify(this.i32, word, 1);
  }

  /** Ends the domain with a SHUTDOWN_* reason. The first reason stands. Wakes the main thread. */
  shutdown(reason: number): void {
    if (Atomics.compareExchange(this.i32, DOMAIN.shutdown >> 2, -1, reason) === -1) this.ringDoorbell();
  }

  ringDoorbell(): void {
    Atomics.add(this.i32, DOMAIN.doorbell >> 2, 1);
    if (this.wakeMain === null) Atomics.notify(this.i32, DOMAIN.doorbell >> 2);
    else if (Atomics.exchange(this.i32, DOMAIN.mainSleeps >> 2, 0) !== 0) this.wakeMain();
  }
}

function maptrackOffset(nameableFrames: number): number {
  return Math.ceil((DOMAIN.frameTypes + nameableFrames) / 64) * 64;
}

function parkedOffset(nameableFrames: number): number {
  return Math.ceil((maptrackOffset(nameableFrames) + MAPTRACK_ENTRIES * MAPTRACK_WORDS * 4) / 64) * 64;
}

/** It begins on a page boundary, as only WebAssembly's memory is sure to do: others may see the first page (host/seen-state.ts). */
function createState(sizeBytes: number): SharedArrayBuffer {
  const pages = Math.ceil(sizeBytes / WASM_PAGE_BYTES);
  const memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
  return memory.buffer as unknown as SharedArrayBuffer;
}

/** Allocates the shared state of a domain around its machine memory. */
export function createDomain(
  machine: MachineMemory,
  domid: number,
  vcpuCount: number,
  uuid: Uint8Array,
  cpuid: CpuidSettings = NO_CPUID_SETTINGS,
  limits: DomainLimits = NO_LIMITS,
): Domain {
  const state = createState(parkedOffset(machine.layout.nameableFrames) + vcpuCount * PARKED.SIZE);
  const vcpus = Array.from({ length: vcpuCount }, (_, id) => createVcpuBlock(id).memory);
  const domain = new Domain({ machine: machine.handle(), state, vcpus, cpuid });
  domain.i32[DOMAIN.shutdown >> 2] = -1;
  domain.i32[DOMAIN.crashVcpu >> 2] = -1;
  domain.i32[DOMAIN.domid >> 2] = domid;
  domain.i32[DOMAIN.vcpuCount >> 2] = vcpuCount;
  domain.i32[DOMAIN.totalPages >> 2] = machine.layout.ramPages;
  domain.i32[DOMAIN.maxPages >> 2] = machine.layout.maxPages;
  domain.i32[DOMAIN.grantFrames >> 2] = 1;
  domain.i32[DOMAIN.grantVersion >> 2] = 1;
  domain.i32[DOMAIN.grantFramesMax >> 2] = limits.grantFrames;
  domain.i32[DOMAIN.grantVersionMax >> 2] = limits.grantVersion;
  domain.i32[DOMAIN.maptrackMax >> 2] = maptrackEntries(limits.maptrackFrames);
  domain.i32[DOMAIN.portMax >> 2] = Math.min(limits.port, EVENT_CHANNELS - 1);
  domain.i32[DOMAIN.weight >> 2] = WEIGHT_DEFAULT;
  domain.u8.set(uuid, DOMAIN.uuid);
  return domain;
}

/** Frames of root page tables. Domains stand still for it while they move, so the search is the JavaScript engine's own. */
export function rootFrames({ frameTypes }: Domain): number[] {
  const frames: number[] = [];
  for (const type of [ROOT_LEVEL, ROOT_LEVEL | FRAME_PINNED])
    for (let frame = frameTypes.indexOf(type); frame >= 0; frame = frameTypes.indexOf(type, frame + 1))
      frames.push(frame);
  return frames;
}
