/**
 * System time. The guest computes it from its TSC along one line that is fixed when the domain is created and the same for all
 * vCPUs, so it never steps and vCPUs agree (but for a nanosecond of rounding). The point that vcpu_time_info names moves along that
 * line. Host timers are set on the host's monotonic clock; `driftNs` is the measured difference of the two clocks.
 * Source: xen/include/public/xen.h, struct vcpu_time_info.
 */

import type { Engine } from '../engine/engine.ts';
import { VCPU } from '../machine/vcpu-block.ts';
import { DOMAIN, type Domain } from './domain.ts';
import type { Vcpu } from './vcpu.ts';

/** vcpu_info.time and its fields. */
const TIME = 0x20;
const PVCLOCK_TSC_STABLE = 1;
/** shared_info.wc_*. */
const WC_VERSION = 0xc00;

/** vcpu_time_info.tsc_to_system_mul and tsc_shift for a TSC rate. Source: xen/arch/x86/time.c, set_time_scale (behaviour). */
export function timeScale(tscKhz: number): { mul: number; shift: number } {
  let ticks = tscKhz * 1000;
  let shift = 0;
  while (ticks > 2e9) {
    ticks = Math.floor(ticks / 2);
    shift--;
  }
  while (ticks <= 1e9) {
    ticks *= 2;
    shift++;
  }
  return { mul: Math.floor((1e9 * 4294967296) / ticks), shift };
}

/** Nanoseconds of a TSC difference, as the guest computes them. */
export function scaleTsc(delta: bigint, mul: number, shift: number): bigint {
  const shifted = shift >= 0 ? delta << BigInt(shift) : delta >> BigInt(-shift);
  return (shifted * BigInt(mul)) >> 32n;
}

/**
 * Starts the domain's clock. `nowNs`: ns since 1970 now. `bootNs`: when system time was 0, on the host's monotonic clock; null: now. TSC and system time are of
 * one moment, whatever the host lets happen between two calls of ours: the guest would find a TSC that is ahead of its clock.
 */
export function startClock(domain: Domain, engine: Engine, nowNs: number, bootNs: number | null = null): void {
  const { tscLo, tscHi, atNs } = engine.readTsc();
  const systemTimeNs = bootNs === null ? 0 : Math.floor(atNs - bootNs);
  const { mul, shift } = timeScale(engine.facts.tscKhz);
  domain.u32[DOMAIN.tscBase >> 2] = tscLo;
  domain.u32[(DOMAIN.tscBase >> 2) + 1] = tscHi;
  domain.u64[DOMAIN.baseNs >> 3] = BigInt(systemTimeNs);
  domain.f64[DOMAIN.bootNs >> 3] = atNs - systemTimeNs;
  domain.f64[DOMAIN.driftNs >> 3] = 0;
  domain.u32[DOMAIN.tscMul >> 2] = mul;
  domain.i32[DOMAIN.tscShift >> 2] = shift;
  domain.u32[DOMAIN.tscKhz >> 2] = engine.facts.tscKhz;
  domain.u32[DOMAIN.tscStable >> 2] = engine.facts.tscStable ? 1 : 0;
  setWallclock(domain, nowNs - systemTimeNs);
}

/** Tells the guest what time it was when its system time was 0: ns since 1970. The version is odd while the rest changes. */
export function setWallclock(domain: Domain, wallclockNs: number): void {
  domain.f64[DOMAIN.wallclockNs >> 3] = wallclockNs;
  const sec = Math.floor(wallclockNs / 1e9);
  const { u32, layout, dirty } = domain.machine;
  const offset = layout.sharedInfoOffset + WC_VERSION;
  const wc = offset >>> 2;
  const version = Atomics.load(u32, wc) & ~1;
  Atomics.store(u32, wc, version + 1);
  u32[wc + 1] = sec >>> 0;
  u32[wc + 2] = Math.floor(wallclockNs - sec * 1e9);
  u32[wc + 3] = Math.floor(sec / 4294967296);
  Atomics.store(u32, wc, version + 2);
  dirty.mark(offset >>> 12);
}

/** A point of the domain's line: TSC and system time, two words each. */
interface TimePoint {
  tscLo: number;
  tscHi: number;
  nsLo: number;
  nsHi: number;
}

/** Writes vcpu_time_info where the guest has it, with the line's first point: in vcpu_info, and in the second copy if there is one. */
export function writeTimeInfo(v: Vcpu): void {
  const { u32 } = v.domain;
  writePoint(v, {
    tscLo: u32[DOMAIN.tscBase >> 2],
    tscHi: u32[(DOMAIN.tscBase >> 2) + 1],
    nsLo: u32[DOMAIN.baseNs >> 2],
    nsHi: u32[(DOMAIN.baseNs >> 2) + 1],
  });
}

/**
 * Measures how far the guest's clock and the host's have come apart, and moves vcpu_time_info on to now: GRUB, for one, takes the
 * time from system_time alone. Xen does so once a second. Source: xen/arch/x86/time.c, time_calibration (behaviour).
 */
export function keepTime(v: Vcpu): void {
  const d = v.domain;
  const { tscLo, tscHi, atNs } = v.engine.readTsc();
  const tsc = (BigInt(tscHi) << 32n) | BigInt(tscLo);
  const base = d.u64[DOMAIN.tscBase >> 3];
  // No reading could be made: the vCPU is about to end.
  if (tsc < base) return;
  const ns = d.u64[DOMAIN.baseNs >> 3] + scaleTsc(tsc - base, d.u32[DOMAIN.tscMul >> 2], d.i32[DOMAIN.tscShift >> 2]);
  d.f64[DOMAIN.driftNs >> 3] = Number(ns) - (atNs - d.f64[DOMAIN.bootNs >> 3]);
  writePoint(v, { tscLo, tscHi, nsLo: Number(ns & 0xffffffffn), nsHi: Number(ns >> 32n) });
}

function writePoint(v: Vcpu, point: TimePoint): void {
  fillTimeInfo(v, point, v.block.u32[VCPU.vcpuInfo >> 2] + TIME);
  const va = VCPU.timeVa >> 2;
  const lo = v.block.u32[va];
  const hi = v.block.u32[va + 1];
  if ((lo | hi) === 0) return;
  const offset = v.access.translate(v.access.kernelRoot(), lo, hi, true);
  if (offset >= 0 && (offset & 7) === 0 && (offset & 0xfff) <= 4096 - 32) fillTimeInfo(v, point, offset);
  if (offset >= 0) v.machine.dirty.mark(offset >>> 12);
}

/** The version is odd while the rest changes: other vCPUs may be reading. */
function fillTimeInfo({ domain: d, machine: { u32, u8 } }: Vcpu, point: TimePoint, offset: number): void {
  const at = offset >>> 2;
  const version = Atomics.load(u32, at) & ~1;
  Atomics.store(u32, at, version + 1);
  u32[at + 2] = point.tscLo;
  u32[at + 3] = point.tscHi;
  u32[at + 4] = point.nsLo;
  u32[at + 5] = point.nsHi;
  u32[at + 6] = d.u32[DOMAIN.tscMul >> 2];
  u8[offset + 0x1c] = d.i32[DOMAIN.tscShift >> 2];
  u8[offset + 0x1d] = d.u32[DOMAIN.tscStable >> 2] !== 0 ? PVCLOCK_TSC_STABLE : 0;
  Atomics.store(u32, at, version + 2);
}

/** Runstates. Source: xen/include/public/vcpu.h. */
export const RUNSTATE_running = 0;
export const RUNSTATE_runnable = 1;
export const RUNSTATE_blocked = 2;
export const RUNSTATE_offline = 3;

const area = new Uint32Array(12);
const areaBytes = new Uint8Array(area.buffer);

function putNs(at: number, ns: number): void {
  area[at] = ns % 4294967296;
  area[at + 1] = Math.floor(ns / 4294967296);
}

/** Fills `area` with the vCPU's runstate_info (48 bytes) as of now. */
export function runstateInfo(v: Vcpu): Uint8Array {
  const f64 = v.block.f64;
  const times = VCPU.runstateTimeNs >> 3;
  const state = v.block.u32[VCPU.runstate >> 2];
  area[0] = state;
  area[1] = 0;
  const entry = f64[VCPU.runstateEntryNs >> 3];
  putNs(2, entry);
  const now = Math.max(v.systemTimeNs(), entry);
  for (let i = 0; i < 4; i++) putNs(4 + i * 2, Math.floor(f64[times + i] + (i === state ? now - entry : 0)));
  return areaBytes;
}

/** Changes the runstate and writes the registered area. */
export function setRunstate(v: Vcpu, state: number): void {
  const f64 = v.block.f64;
  const u32 = v.block.u32;
  const old = u32[VCPU.runstate >> 2];
  const entry = f64[VCPU.runstateEntryNs >> 3];
  const now = Math.max(Math.floor(v.systemTimeNs()), entry);
  f64[(VCPU.runstateTimeNs >> 3) + old] += now - entry;
  f64[VCPU.runstateEntryNs >> 3] = now;
  u32[VCPU.runstate >> 2] = state;
  writeRunstate(v);
}

export function writeRunstate(v: Vcpu): void {
  const va = VCPU.runstateVa >> 2;
  const lo = v.block.u32[va];
  const hi = v.block.u32[va + 1];
  if ((lo | hi) === 0) return;
  v.access.copyOut(lo, hi, runstateInfo(v), 0, 48);
}
