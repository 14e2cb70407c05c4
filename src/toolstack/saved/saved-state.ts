/**
 * The state of a domain and of its vCPUs as parts of a saved domain (save-file.ts), in a form that is neither engine's and does not
 * depend on where this Domus keeps it. docs/save-format.md has the tables.
 *
 * A file may be anybody's: every number that Xen would have bounded is bounded again when it is read.
 */

import { XEN_LEGACY_MAX_VCPUS } from '../../abi/arch-x86/shared-info.ts';
import { VECTOR_STATE_BYTES } from '../../engine/engine.ts';
import { DOMAIN, type Domain, FRAME_LEVEL_MASK, FRAME_PINNED, PARKED } from '../../hypervisor/domain.ts';
import { EVENT_CHANNELS } from '../../hypervisor/domain-limits.ts';
import {
  ECS_FREE,
  ECS_INTERDOMAIN,
  ECS_IPI,
  ECS_UNBOUND,
  ECS_VIRQ,
  freeAllPorts,
  portA,
  portB,
  portState,
  portVcpu,
  setPort,
} from '../../hypervisor/event-channels.ts';
import { grantVersion } from '../../hypervisor/grant-entries.ts';
import { hasMappings } from '../../hypervisor/maptrack.ts';
import { GRANT_FRAMES_MAX, PAGE_SIZE, RAM_PAGES_MAX } from '../../machine/memory.ts';
import { NO_ROOT, VCPU, VCPU_STATE_UP } from '../../machine/vcpu-block.ts';
import { SaveFileError } from './save-file.ts';
import { savedFrames } from './saved-memory.ts';

const DOM0 = 0;
const PORT_WORDS = 5;
const POLL_PORTS = 128;
/** ns since a domain was made: what a double holds exactly. */
const NS_MAX = BigInt(Number.MAX_SAFE_INTEGER);

/** What must be known before anything of the domain can be made. */
export interface SavedShape {
  readonly ramPages: number;
  readonly maxPages: number;
  readonly vcpus: number;
}

/** The domain cannot be saved as it is now; one line. */
export class NotSavable extends Error {
  override readonly name = 'NotSavable';
}

// ---- the domain

/** u32 ramPages, maxPages, vcpus; u16 grant frames, grant version less 1; u32 pages owned, ports; u64 system time. */
const DOMAIN_HEADER_BYTES = 32;

/**
 * Layout: the header; PORT_WORDS words for each port in use: port, state, vCPU, and what the state needs; a byte for each frame that
 * the guest may name, but for as many as there can be status frames, so that the file is the same without them. A port bound to Dom0 is written as one that Dom0 has yet to bind.
 * @throws NotSavable when another domain is at the other end of a port, or a page of one is mapped
 */
export function encodeDomain(domain: Domain, systemTimeNs: number): Uint8Array {
  const { layout } = domain.machine;
  if (hasMappings(domain)) throw new NotSavable('it has granted pages mapped, its own or of another domain');
  const ports: number[] = [];
  for (let port = 1; port < EVENT_CHANNELS; port++) {
    let state = portState(domain, port);
    if (state === ECS_FREE) continue;
    const a = portA(domain, port);
    let b = portB(domain, port);
    if (state === ECS_INTERDOMAIN) {
      if (a !== DOM0) throw new NotSavable(`event channel ${port} leads to domain ${a}`);
      state = ECS_UNBOUND;
      b = 0;
    }
    ports.push(port, state, portVcpu(domain, port), a, b);
  }
  const portsBytes = ports.length * 4;
  const types = domain.frameTypes.subarray(0, savedFrames(layout));
  const bytes = new Uint8Array(DOMAIN_HEADER_BYTES + portsBytes + types.length);
  const view = new DataView(bytes.buffer);
  const { i32 } = domain;
  const header = [
    layout.ramPages,
    layout.maxPages,
    domain.vcpus.length,
    i32[DOMAIN.grantFrames >> 2] | ((grantVersion(domain) - 1) << 16),
    i32[DOMAIN.totalPages >> 2],
    ports.length / PORT_WORDS,
  ];
  for (const [i, value] of header.entries()) view.setUint32(i * 4, value, true);
  view.setBigUint64(24, BigInt(Math.floor(systemTimeNs)), true);
  for (const [i, value] of ports.entries()) view.setUint32(DOMAIN_HEADER_BYTES + i * 4, value, true);
  bytes.set(types, DOMAIN_HEADER_BYTES + portsBytes);
  return bytes;
}

/** @throws SaveFileError */
export function shapeOf(bytes: Uint8Array): SavedShape {
  if (bytes.length < DOMAIN_HEADER_BYTES) throw new SaveFileError('damaged: the domain is cut short');
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const [ramPages, maxPages, vcpus] = [0, 4, 8].map((at) => view.getUint32(at, true));
  if (ramPages === 0 || ramPages > maxPages || maxPages > RAM_PAGES_MAX)
    throw new SaveFileError(`a domain of ${ramPages} pages, at most ${maxPages}, cannot be`);
  if (vcpus === 0 || vcpus > XEN_LEGACY_MAX_VCPUS) throw new SaveFileError(`a domain of ${vcpus} vCPUs cannot be`);
  return { ramPages, maxPages, vcpus };
}

/** Into a domain of that shape which has not run; what was decoded into it before is forgotten. @throws SaveFileError */
export function decodeDomain(bytes: Uint8Array, domain: Domain): void {
  const { layout } = domain.machine;
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const [totalPages, ports] = [16, 20].map((at) => view.getUint32(at, true));
  const [grantFrames, version] = [view.getUint16(12, true), view.getUint16(14, true) + 1];
  const systemTimeNs = view.getBigUint64(24, true);
  const framesAt = DOMAIN_HEADER_BYTES + ports * PORT_WORDS * 4;
  if (ports >= EVENT_CHANNELS || bytes.length !== framesAt + savedFrames(layout))
    throw new SaveFileError('damaged: the domain has another length than it says');
  if (grantFrames === 0 || grantFrames > GRANT_FRAMES_MAX || totalPages > layout.maxPages || systemTimeNs > NS_MAX)
    throw new SaveFileError(`a domain of ${grantFrames} grant frames and ${totalPages} pages cannot be`);
  if (version > 2) throw new SaveFileError(`a grant table of version ${version} cannot be`);
  domain.i32[DOMAIN.grantFrames >> 2] = grantFrames;
  domain.i32[DOMAIN.grantVersion >> 2] = version;
  domain.i32[DOMAIN.totalPages >> 2] = totalPages;
  domain.u64[DOMAIN.baseNs >> 3] = systemTimeNs;
  freeAllPorts(domain);
  for (let i = 0; i < ports; i++) {
    const [port, state, vcpu, a, b] = Array.from({ length: PORT_WORDS }, (_, word) =>
      view.getUint32(DOMAIN_HEADER_BYTES + (i * PORT_WORDS + word) * 4, true),
    );
    const isSane =
      port > 0 &&
      port < EVENT_CHANNELS &&
      [ECS_UNBOUND, ECS_VIRQ, ECS_IPI].includes(state) &&
      vcpu < domain.vcpus.length &&
      (state !== ECS_UNBOUND || a <= 0x7fff) &&
      (state !== ECS_VIRQ || a < 24);
    if (!isSane) throw new SaveFileError(`event channel ${port} in state ${state} on vCPU ${vcpu} cannot be`);
    setPort(domain, port, state, vcpu, a, b);
  }
  const types = bytes.slice(framesAt);
  // Nearly all frames are no page tables, and the domain stands still meanwhile.
  const fours = new Uint32Array(types.buffer, 0, types.length >> 2);
  const isPlain = (at: number): boolean =>
    at + 8 <= fours.length &&
    (fours[at] | fours[at + 1] | fours[at + 2] | fours[at + 3]) === 0 &&
    (fours[at + 4] | fours[at + 5] | fours[at + 6] | fours[at + 7]) === 0;
  const ram = layout.maxPages;
  for (let frame = 0; frame < types.length; frame++) {
    if ((frame & 31) === 0) while (isPlain(frame >> 2)) frame += 32;
    if (frame >= types.length) break;
    const level = types[frame] & FRAME_LEVEL_MASK;
    const isSane =
      (types[frame] & ~(FRAME_LEVEL_MASK | FRAME_PINNED)) === 0 && level <= 4 && (frame < ram || level === 0);
    if (!isSane) throw new SaveFileError(`frame ${frame} of type ${types[frame]} cannot be`);
  }
  domain.frameTypes.set(types);
}

// ---- a vCPU

/** The fields of a vCPU in the order of the file: where the block has them, and how many bytes. */
export const VCPU_FIELDS: readonly (readonly [keyof typeof VCPU, number])[] = [
  ...(['gpr'] as const).map((name) => [name, 128] as const),
  ...(['rip', 'rflags', 'fsBase', 'gsBase'] as const).map((name) => [name, 8] as const),
  ...(['cs', 'ss', 'ds', 'es', 'fs', 'gs'] as const).map((name) => [name, 4] as const),
  ...(['userMode', 'kernelRoot', 'userRoot', 'kernelSs'] as const).map((name) => [name, 4] as const),
  ...(['kernelSp', 'gsBaseInactive'] as const).map((name) => [name, 8] as const),
  ...(['cr0Ts', 'cr4', 'iopl', 'xcr0'] as const).map((name) => [name, 4] as const),
  ['dr', 64],
  ['ldtBase', 8],
  ['ldtEntries', 4],
  ['gdtEntries', 4],
  ['gdtFrames', 64],
  ...(['eventCallback', 'failsafeCallback', 'syscallCallback'] as const).map((name) => [name, 8] as const),
  ...(['syscall32Callback', 'sysenterCallback'] as const).map((name) => [name, 8] as const),
  ...(['callbackFlags', 'tscAux', 'vcpuInfo', 'vcpuInfoRegistered'] as const).map((name) => [name, 4] as const),
  ...(['runstateVa', 'timeVa'] as const).map((name) => [name, 8] as const),
  ...(['runstate', 'vmAssistRunstateFlag'] as const).map((name) => [name, 4] as const),
  ['runstateEntryNs', 8],
  ['runstateTimeNs', 32],
  ...(['singleshotNs', 'periodicNs', 'periodicNextNs'] as const).map((name) => [name, 8] as const),
  ...(['nmiPending', 'nmiMasked', 'state', 'initialised', 'polling'] as const).map((name) => [name, 4] as const),
  ['virqPorts', 96],
  ['traps', 4096],
];

/** What stands beside the block of a parked vCPU. */
export const PARKED_FIELDS: readonly (readonly [keyof typeof PARKED, number])[] = [
  ['vector', VECTOR_STATE_BYTES],
  ['blocked', 4],
  ['pollCount', 4],
  ['pollDeadlineNs', 8],
  ['pollPorts', POLL_PORTS * 4],
];

const bytesOf = (fields: readonly (readonly [string, number])[]): number => fields.reduce((sum, [, n]) => sum + n, 0);
const VCPU_BYTES = bytesOf(VCPU_FIELDS) + bytesOf(PARKED_FIELDS);

/** A vCPU that is parked. */
export function encodeVcpu(domain: Domain, id: number): Uint8Array {
  const bytes = new Uint8Array(VCPU_BYTES);
  const { u8 } = domain.vcpus[id];
  const parked = domain.parkedOffset(id);
  let at = 0;
  for (const [name, count] of VCPU_FIELDS) {
    bytes.set(u8.subarray(VCPU[name], VCPU[name] + count), at);
    at += count;
  }
  for (const [name, count] of PARKED_FIELDS) {
    const from = parked + PARKED[name];
    bytes.set(domain.u8.subarray(from, from + count), at);
    at += count;
  }
  return bytes;
}

/** @throws SaveFileError */
export function decodeVcpu(bytes: Uint8Array, domain: Domain, id: number): void {
  if (bytes.length !== VCPU_BYTES) throw new SaveFileError('damaged: a vCPU of another length');
  const block = domain.vcpus[id];
  const parked = domain.parkedOffset(id);
  let at = 0;
  for (const [name, count] of VCPU_FIELDS) {
    block.u8.set(bytes.subarray(at, at + count), VCPU[name]);
    at += count;
  }
  for (const [name, count] of PARKED_FIELDS) {
    domain.u8.set(bytes.subarray(at, at + count), parked + PARKED[name]);
    at += count;
  }
  const wrong = whatCannotBe(domain, id);
  if (wrong !== null) throw new SaveFileError(`vCPU ${id}: ${wrong} cannot be`);
}

/** The first thing that a hypercall would have refused. */
function whatCannotBe(domain: Domain, id: number): string | null {
  const { u32, f64 } = domain.vcpus[id];
  const { layout } = domain.machine;
  const word = (name: keyof typeof VCPU): number => u32[VCPU[name] >> 2];
  const parked = domain.parkedOffset(id);
  if (word('kernelRoot') >= layout.maxPages) return `root ${word('kernelRoot')}`;
  if (word('userRoot') !== NO_ROOT && word('userRoot') >= layout.maxPages) return `user root ${word('userRoot')}`;
  if (word('userMode') > 1) return `mode ${word('userMode')}`;
  if (word('gdtEntries') > 14 * 512) return `a GDT of ${word('gdtEntries')} entries`;
  if (word('ldtEntries') > 8192) return `an LDT of ${word('ldtEntries')} entries`;
  for (let i = 0; i < 16; i++)
    if (u32[(VCPU.gdtFrames >> 2) + i] >= layout.nameableFrames)
      return `a GDT in frame ${u32[(VCPU.gdtFrames >> 2) + i]}`;
  const info = word('vcpuInfo');
  if (info % 8 !== 0 || info % PAGE_SIZE > PAGE_SIZE - 64 || info >= layout.nameableFrames * PAGE_SIZE)
    return `vcpu_info at ${info}`;
  if (word('runstate') > 3) return `runstate ${word('runstate')}`;
  if (word('state') > VCPU_STATE_UP || word('initialised') > 1 || word('polling') > 1) return `state ${word('state')}`;
  for (let virq = 0; virq < 24; virq++)
    if (u32[(VCPU.virqPorts >> 2) + virq] >= EVENT_CHANNELS) return `VIRQ ${virq} on a port that is none`;
  const times = [VCPU.runstateEntryNs, VCPU.singleshotNs, VCPU.periodicNs, VCPU.periodicNextNs].map(
    (at) => f64[at >> 3],
  );
  for (let i = 0; i < 4; i++) times.push(f64[(VCPU.runstateTimeNs >> 3) + i]);
  times.push(domain.f64[(parked + PARKED.pollDeadlineNs) >> 3]);
  // Guests may set timers to any time that 64 bits have.
  if (!times.every((ns) => Number.isFinite(ns) && ns >= 0 && ns <= 2 ** 64)) return 'a time';
  if (domain.u32[(parked + PARKED.blocked) >> 2] > 1) return 'a state of sleep';
  const polled = domain.u32[(parked + PARKED.pollCount) >> 2];
  if (polled > POLL_PORTS) return `a poll of ${polled} ports`;
  for (let i = 0; i < polled; i++)
    if (domain.u32[((parked + PARKED.pollPorts) >> 2) + i] >= EVENT_CHANNELS) return 'a poll of a port that is none';
  return null;
}
