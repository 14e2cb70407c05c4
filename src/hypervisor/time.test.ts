import { expect, test } from 'vitest';
import { MFN_BASE } from '../machine/memory.ts';
import { VCPU } from '../machine/vcpu-block.ts';
import { DOMAIN } from './domain.ts';
import { KERNEL_VA, TestGuest, UNMAPPED_VA, VA_HI } from './testing.ts';
import {
  keepTime,
  RUNSTATE_blocked,
  RUNSTATE_running,
  runstateInfo,
  scaleTsc,
  setRunstate,
  startClock,
  timeScale,
  writeTimeInfo,
} from './time.ts';

/** Computed by hand: 2^-shift * rate in (1e9, 2e9], mul = floor(1e9 * 2^32 / that). */
test('`timeScale()` of 1 GHz, 2.4 GHz and 3.7 GHz', () => {
  expect(timeScale(1_000_000)).toEqual({ mul: 0x80000000, shift: 1 });
  expect(timeScale(2_400_000)).toEqual({ mul: 3579139413, shift: -1 });
  expect(timeScale(3_700_000)).toEqual({ mul: 2321603943, shift: -1 });
  // The edges of the loop: 2 GHz needs no shift, 1 GHz + 1 kHz neither.
  expect(timeScale(2_000_000)).toEqual({ mul: 0x80000000, shift: 0 });
  expect(timeScale(1_000_001)).toEqual({ mul: 4294963001, shift: 0 });
  expect(timeScale(500_000)).toEqual({ mul: 0x80000000, shift: 2 });
});

/** Linux: pvclock_tsc_khz() divides by mul. */
test('`timeScale()`: the guest finds the rate again, and mul is a u32 that is not 0', () => {
  for (const khz of [1, 999, 800_000, 1_000_000, 1_999_999, 2_592_003, 3_700_000, 5_800_000, 10_000_000]) {
    const { mul, shift } = timeScale(khz);
    expect(mul).toBeGreaterThan(0);
    expect(mul).toBeLessThanOrEqual(0xffffffff);
    const found =
      shift < 0
        ? ((1_000_000n << 32n) / BigInt(mul)) << BigInt(-shift)
        : ((1_000_000n << 32n) / BigInt(mul)) >> BigInt(shift);
    expect(Math.abs(Number(found) - khz)).toBeLessThanOrEqual(2 ** Math.max(-shift, 0));
  }
});

test('`scaleTsc()` against values computed by hand', () => {
  const ghz1 = timeScale(1_000_000);
  expect(scaleTsc(1n, ghz1.mul, ghz1.shift)).toBe(1n);
  expect(scaleTsc(123_456_789_012_345n, ghz1.mul, ghz1.shift)).toBe(123_456_789_012_345n);
  const ghz24 = timeScale(2_400_000);
  expect(scaleTsc(24n, ghz24.mul, ghz24.shift)).toBe(9n);
  expect(scaleTsc(2_400_000_000n, ghz24.mul, ghz24.shift)).toBe(999_999_999n);
  const ghz37 = timeScale(3_700_000);
  expect(scaleTsc(3_700_000_000n, ghz37.mul, ghz37.shift)).toBe(999_999_999n);
  // A year at 3.7 GHz: the multiplier is 0.34 ns a second short.
  expect(scaleTsc(3_700_000_000n * 31_536_000n, ghz37.mul, ghz37.shift)).toBe(31_535_999_989_353_306n);
});

test('`scaleTsc()` never goes back', () => {
  for (const khz of [1_000_000, 2_400_000, 3_700_000]) {
    const { mul, shift } = timeScale(khz);
    let last = 0n;
    for (let tsc = 10n ** 15n; tsc < 10n ** 15n + 100n; tsc++) {
      const ns = scaleTsc(tsc, mul, shift);
      expect(ns).toBeGreaterThanOrEqual(last);
      last = ns;
    }
  }
});

/** A guest whose TSC and host clock are what the test says. */
function clocked(khz = 2_400_000): { guest: TestGuest; clock: { tsc: bigint; atNs: number } } {
  const guest = new TestGuest();
  const clock = { tsc: 0x500000003n, atNs: 1e12 };
  Object.assign(guest.engine.facts, { tscKhz: khz });
  guest.engine.readTsc = () => ({
    tscLo: Number(clock.tsc & 0xffffffffn),
    tscHi: Number(clock.tsc >> 32n),
    atNs: clock.atNs,
  });
  guest.nowNs = clock.atNs;
  return { guest, clock };
}

test('the clock starts at 0 with the wall clock of that moment', () => {
  const { guest } = clocked();
  const wallNs = 0x1_0000_0007 * 1e9 + 250_000_000;
  startClock(guest.domain, guest.engine, wallNs);
  expect(guest.vcpu.systemTimeNs()).toBe(0);
  const wc = (guest.machine.layout.sharedInfoOffset + 0xc00) >> 2;
  const [version, sec, nsec, secHi] = guest.machine.u32.slice(wc, wc + 4);
  expect(version & 1).toBe(0);
  expect([sec, secHi]).toEqual([7, 1]);
  expect(Math.abs(nsec - 250_000_000)).toBeLessThan(2048);
});

/** Source: struct vcpu_time_info: version 0, tsc_timestamp 8, system_time 0x10, mul 0x18, shift s8 0x1c, flags 0x1d. */
test('vcpu_time_info is at 0x20 of vcpu_info; its version ends even', () => {
  const { guest } = clocked();
  startClock(guest.domain, guest.engine, 0);
  const info = guest.machine.layout.sharedInfoOffset;
  guest.machine.u32[info >> 2] = 0x01010101;
  for (let i = 1; i <= 3; i++) {
    writeTimeInfo(guest.vcpu);
    const at = (info + 0x20) >> 2;
    expect([...guest.machine.u32.slice(at, at + 7)]).toEqual([i * 2, 0, 3, 5, 0, 0, 3579139413]);
    expect([...guest.machine.u8.slice(info + 0x3c, info + 0x40)]).toEqual([0xff, 1, 0, 0]);
  }
  expect(guest.machine.u32[info >> 2]).toBe(0x01010101);
});

test('flags: TSC_STABLE only where the TSCs agree', () => {
  const { guest } = clocked();
  Object.assign(guest.engine.facts, { tscStable: false });
  startClock(guest.domain, guest.engine, 0);
  writeTimeInfo(guest.vcpu);
  expect(guest.machine.u8[guest.machine.layout.sharedInfoOffset + 0x3d]).toBe(0);
});

test('the second copy of vcpu_time_info: written where it is mapped, left alone where not', () => {
  const { guest } = clocked();
  startClock(guest.domain, guest.engine, 0);
  const va = VCPU.timeVa >> 2;
  guest.vcpu.block.u32.set([KERNEL_VA + 0x2fe0, VA_HI], va);
  writeTimeInfo(guest.vcpu);
  expect(guest.words(KERNEL_VA + 0x2fe0, 7)).toEqual([2, 0, 3, 5, 0, 0, 3579139413]);
  for (const bad of [KERNEL_VA + 0x3fe8, KERNEL_VA + 0x3004, UNMAPPED_VA]) {
    guest.vcpu.block.u32[va] = bad;
    writeTimeInfo(guest.vcpu);
  }
  expect(guest.words(KERNEL_VA + 0x3000, 1024).every((word) => word === 0)).toBe(true);
});

test('system time goes on without a step, with the rate that the guest computes', () => {
  const { guest, clock } = clocked();
  startClock(guest.domain, guest.engine, 0);
  const { mul, shift } = timeScale(2_400_000);
  for (let second = 1; second <= 5; second++) {
    // The host's clock runs 100 ns a second fast against the TSC.
    clock.tsc += 2_400_000_000n;
    clock.atNs += 1e9 + 100;
    guest.nowNs = clock.atNs;
    const before = guest.vcpu.systemTimeNs();
    keepTime(guest.vcpu);
    const guestNs = Number(scaleTsc(clock.tsc - 0x500000003n, mul, shift));
    expect(guest.vcpu.systemTimeNs()).toBe(guestNs);
    expect(Math.abs(guest.vcpu.systemTimeNs() - before)).toBeLessThan(110);
    expect(guest.domain.f64[DOMAIN.driftNs >> 3]).toBe(guestNs - second * (1e9 + 100));
  }
});

test('a restored domain goes on at the system time that it had, on another TSC', () => {
  const { guest, clock } = clocked();
  const saved = 123_456_789_012;
  const bootNs = clock.atNs - saved;
  // Before the vCPU gets to it, its TSC and the host's clock have gone on.
  clock.atNs += 3_000_000;
  clock.tsc += 7_200_000n;
  startClock(guest.domain, guest.engine, 2_000_003_000_000, bootNs);
  guest.nowNs = clock.atNs - 3_000_000;
  expect(guest.vcpu.systemTimeNs()).toBe(saved);
  writeTimeInfo(guest.vcpu);
  const at = (guest.machine.layout.sharedInfoOffset + 0x20) >> 2;
  // tsc_timestamp and system_time.
  expect([...guest.machine.u32.subarray(at + 2, at + 4)]).toEqual([3 + 7_200_000, 5]);
  expect(guest.machine.u32[at + 5] * 2 ** 32 + guest.machine.u32[at + 4]).toBe(saved + 3_000_000);
  clock.tsc += 2_400_000_000n;
  clock.atNs += 1e9;
  guest.nowNs = clock.atNs;
  keepTime(guest.vcpu);
  expect(guest.vcpu.systemTimeNs()).toBe(saved + 3_000_000 + 999_999_999);
  // The wall clock at system time 0.
  const wc = (guest.machine.layout.sharedInfoOffset + 0xc00) >> 2;
  expect([guest.machine.u32[wc + 1], guest.machine.u32[wc + 2]]).toEqual([1876, 543_210_988]);
});

test('keepTime() moves vcpu_time_info along the same line, in both copies', () => {
  const { guest, clock } = clocked();
  startClock(guest.domain, guest.engine, 0);
  writeTimeInfo(guest.vcpu);
  guest.vcpu.block.u32.set([KERNEL_VA + 0x2fe0, VA_HI], VCPU.timeVa >> 2);
  const { mul, shift } = timeScale(2_400_000);
  const at = (guest.machine.layout.sharedInfoOffset + 0x20) >> 3;
  for (let second = 1n; second <= 3n; second++) {
    clock.tsc += 2_400_000_001n;
    keepTime(guest.vcpu);
    const words = new BigUint64Array(guest.machine.u32.slice(at * 2, at * 2 + 8).buffer);
    const ns = scaleTsc(clock.tsc - 0x500000003n, mul, shift);
    expect([...words.slice(1, 3)]).toEqual([clock.tsc, ns]);
    expect([...words]).toEqual([2n + 2n * second, clock.tsc, ns, BigInt(mul) | 0x01ff_0000_0000n]);
    expect(guest.words(KERNEL_VA + 0x2fe8, 6)).toEqual([...new Uint32Array(words.buffer).slice(2)]);
  }
});

/** Source: struct vcpu_runstate_info: state u32 at 0, state_entry_time u64 at 8, time[4] u64 at 0x10. */
test('runstate: times add up to the time since the start, in the registered area as well', () => {
  const { guest } = clocked();
  startClock(guest.domain, guest.engine, 0);
  guest.vcpu.block.u32.set([KERNEL_VA + 0x2ff8, VA_HI], VCPU.runstateVa >> 2);
  guest.nowNs += 5e9;
  setRunstate(guest.vcpu, RUNSTATE_blocked);
  guest.nowNs += 2e9;
  setRunstate(guest.vcpu, RUNSTATE_running);
  guest.nowNs += 1e9;
  const info = new BigUint64Array(runstateInfo(guest.vcpu).slice().buffer);
  expect([...info]).toEqual([0n, 7_000_000_000n, 6_000_000_000n, 0n, 2_000_000_000n, 0n]);
  // As of the last change, over a page boundary.
  const words = guest.words(KERNEL_VA + 0x2ff8, 12);
  expect(words.slice(0, 4)).toEqual([0, 0, 7e9 % 2 ** 32, 1]);
  expect(words.slice(4, 6)).toEqual([5e9 % 2 ** 32, 1]);
});

test('runstate: a clock that was corrected backwards makes no negative time', () => {
  const { guest } = clocked();
  startClock(guest.domain, guest.engine, 0);
  guest.nowNs += 1000;
  setRunstate(guest.vcpu, RUNSTATE_blocked);
  guest.nowNs -= 500;
  setRunstate(guest.vcpu, RUNSTATE_running);
  const info = new BigUint64Array(runstateInfo(guest.vcpu).slice().buffer);
  expect([...info]).toEqual([0n, 1000n, 1000n, 0n, 0n, 0n]);
});

test('a runstate area that is not mapped is left out', () => {
  const guest = new TestGuest();
  guest.vcpu.block.u32.set([UNMAPPED_VA, VA_HI], VCPU.runstateVa >> 2);
  guest.map(UNMAPPED_VA - 4096, VA_HI, MFN_BASE + 1);
  expect(() => setRunstate(guest.vcpu, RUNSTATE_blocked)).not.toThrow();
});
