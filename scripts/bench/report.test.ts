import { expect, test } from 'vitest';
import type { MachineName } from './machines.ts';
import { clockDifferenceMs, engineTable, memoryTable, profileTable, type Results, timesTable } from './report.ts';
import { LOADS } from './workload.ts';

function results(name: MachineName, bootMs: number, more: Partial<Results> = {}): Results {
  return {
    name,
    times: [{ bootMs, loads: { ash: { guestMs: 90, hostMs: bootMs / 10 } } }],
    memory: null,
    idleExits: null,
    exits: null,
    idleEngine: null,
    engine: null,
    bootThreads: null,
    loadThreads: null,
    profile: null,
    instructions: null,
    ...more,
  };
}

const ASH = LOADS.filter((load) => load.name === 'ash');

test('each engine has a ratio to QEMU of its own', () => {
  const all = [results('kvm', 1000), results('wasm', 4000), results('tcg', 2000)];
  const [head, , boot] = timesTable(all, ASH).split('\n');
  expect(head).toContain('| tcg : kvm | tcg : wasm | wanted |');
  expect(boot).toMatch(/\| +2\.00 \| +0\.50 \| +2\.0 \|$/);
  expect(clockDifferenceMs(all)).toBe(310);
});

test('without QEMU there are no ratios', () => {
  expect(timesTable([results('wasm', 4000)], ASH)).not.toContain(' : ');
});

test("what is beyond the guest's memory", () => {
  const memory = { residentKiB: 300_000, guestKiB: 100_000, fileKiB: 50_000, codeKiB: 0, heapPagesKiB: 0 };
  expect(memoryTable([results('wasm', 1, { memory })])).toMatch(/beyond it +\| +204\.8 \|/);
  expect(memoryTable([results('wasm', 1, { memory: { ...memory, guestKiB: null } })])).toMatch(/beyond it +\| +\? \|/);
  expect(memoryTable([results('wasm', 1)])).toBeNull();
});

test('counts of the engine with and without loads', () => {
  const idleEngine = { counts: { regions: 5 }, rareTotal: 2, rare: { 'a Ev': 2 } };
  const engine = { counts: { regions: 9 }, rareTotal: 7, rare: { 'a Ev': 3, 'b Ev': 4 } };
  const lines = engineTable(results('wasm', 1, { idleEngine, engine }))?.split('\n') ?? [];
  expect(lines[2]).toMatch(/^\| regions +\| +5 \| +9 \|$/);
  expect(lines[4]).toMatch(/^\| of these, b Ev +\| +- \| +4 \|$/);
  expect(engineTable(results('kvm', 1))).toBeNull();
});

test('a profile in per cent', () => {
  expect(profileTable({ interpreter: 3, other: 1 })).toMatch(/interpreter +\| 75\.0 \|/);
});
