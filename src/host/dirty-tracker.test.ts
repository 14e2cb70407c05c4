/** A guest stores into pages while they are tracked, on each engine. */

import { afterEach, expect, test } from 'vitest';
import { type Engine, EXIT_EXCEPTION, EXIT_INTERRUPTED } from '../engine/engine.ts';
import { probeKvm } from '../engine/kvm/self-test.ts';
import { CODE_VA, createTestBlock, createTestMachine, prepareTestRoot } from '../engine/kvm/test-guest.ts';
import { createDomain, DOMAIN, type Domain } from '../hypervisor/domain.ts';
import { GrantMappings } from '../hypervisor/grant-mappings.ts';
import { FLAG_FLUSH_TLB, VCPU } from '../machine/vcpu-block.ts';
import { DirtyTracker } from './dirty-tracker.ts';
import {
  closeEngineDomain,
  createEngineDomain,
  createKicker,
  createStoreListener,
  type EngineHandle,
  type EngineKind,
  openVcpu,
} from './engines.ts';

const RDI = 7;
const RAX = 0;
const STORE = [0x48, 0x89, 0x07, 0xcc]; // mov [rdi], rax; int3
const LOAD = [0x48, 0x8b, 0x07, 0xcc]; // mov rax, [rdi]; int3

interface Rig {
  readonly domain: Domain;
  readonly engine: EngineHandle;
  readonly vcpu: Engine;
  readonly tracker: DirtyTracker;
  /** Runs code with rdi at an address. */
  run(code: readonly number[], rdi: number, va?: number): void;
}

let close = (): void => {};
afterEach(() => close());

async function open(kind: EngineKind): Promise<Rig> {
  const machine = createTestMachine();
  const domain = createDomain(machine, 1, 1, new Uint8Array(16));
  const [block] = domain.vcpus;
  block.u8.set(createTestBlock(machine, []).u8.subarray(0, VCPU.SIZE));
  const engine = createEngineDomain(kind, domain.machine, 1);
  const vcpu = await openVcpu(engine, domain, 0);
  prepareTestRoot(vcpu);
  close = () => {
    vcpu.close();
    closeEngineDomain(engine);
  };
  const tracker = new DirtyTracker({ domain, engine, kicker: createKicker(engine), ringFrames: [9] });
  const run = (code: readonly number[], rdi: number, va = CODE_VA): void => {
    machine.u8.set(code, va);
    vcpu.memoryStored(va, code.length);
    runAgain(rdi, va);
  };
  const runAgain = (rdi: number, va: number): void => {
    block.u32[VCPU.rip / 4] = va;
    block.u32[VCPU.gpr / 4 + RDI * 2] = rdi;
    block.u32[VCPU.gpr / 4 + RAX * 2] = 0x1234;
    for (let exit = EXIT_INTERRUPTED; exit === EXIT_INTERRUPTED; ) {
      if ((Atomics.exchange(block.i32, VCPU.flags >> 2, 0) & FLAG_FLUSH_TLB) !== 0) vcpu.flushTlb();
      exit = vcpu.run();
      if (exit !== EXIT_INTERRUPTED) expect([exit, block.u32[VCPU.exitVector / 4]]).toEqual([EXIT_EXCEPTION, 3]);
    }
  };
  return { domain, engine, vcpu, tracker, run };
}

for (const kind of ['wasm', 'kvm'] as const) {
  const probe = probeKvm();
  const unusable = kind === 'kvm' && !probe.usable ? probe.reason : null;

  test(`${kind}: each page that is stored into is found once, and again when it is stored into again`, async (context) => {
    if (unusable !== null) return context.skip(unusable);
    const { tracker, run } = await open(kind);
    run(STORE, 0x300000);
    await tracker.start();
    const code = CODE_VA >>> 12;
    const stores = (frames: readonly number[]): number[] => frames.filter((frame) => frame !== code);
    expect(stores(await tracker.take())).toEqual([]);
    // Its translation was there before.
    run(STORE, 0x300000);
    run(STORE, 0x300008);
    run(STORE, 0x301ff8);
    expect(stores(await tracker.take())).toEqual([0x300, 0x301]);
    expect(stores(await tracker.take())).toEqual([]);
    // Read before it is written: the read is not enough, and hides nothing.
    run(LOAD, 0x300000);
    expect(stores(await tracker.take())).toEqual([]);
    run(LOAD, 0x301000);
    run(STORE, 0x301000);
    run(STORE, 0x302ffc);
    expect(stores(await tracker.take())).toEqual([0x301, 0x302, 0x303]);
    run(STORE, 0x300000);
    tracker.stop();
    run(STORE, 0x304000);
    await tracker.start();
    expect(stores(await tracker.take())).toEqual([]);
  });

  test(`${kind}: the accessed and dirty bits of page tables are stores into them`, async (context) => {
    if (unusable !== null) return context.skip(unusable);
    const { domain, vcpu, tracker, run } = await open(kind);
    const entry = (4 * 4096 + 0x150 * 8) >>> 2;
    domain.machine.u32[entry] &= ~0x60;
    vcpu.pageTableStored(entry * 4);
    vcpu.flushTlb();
    await tracker.start();
    run(STORE, 0x150000);
    expect(domain.machine.u32[entry] & 0x60).toBe(0x60);
    expect(await tracker.take()).toEqual(expect.arrayContaining([4, 0x150]));
  });

  test(`${kind}: what the hypervisor and backends store is found`, async (context) => {
    if (unusable !== null) return context.skip(unusable);
    const { domain, engine, vcpu, tracker } = await open(kind);
    await tracker.start();
    vcpu.memoryStored(0x305ffc, 4);
    createStoreListener(engine, domain)(0x307ff0, 0x20);
    // A page that Dom0 has mapped to write into.
    const { layout, u32 } = domain.machine;
    const grant = layout.grantTableOffset >>> 2;
    u32.set([1, 0x100000 + 0x30a], grant + 16);
    const grants = new GrantMappings(domain);
    grants.map(8, true);
    expect(await tracker.take()).toEqual([0x305, 0x307, 0x308]);
    grants.unmap(8, true);
    expect(await tracker.take()).toEqual([0x30a]);
    domain.i32[DOMAIN.grantVersion >> 2] = 2;
    const last = await tracker.last([3]);
    expect(last).toEqual([
      ...[domain.vcpus[0].u32[VCPU.vcpuInfo >> 2] >>> 12, 3, 9],
      ...[layout.sharedInfoOffset >>> 12, layout.grantTableOffset >>> 12, layout.statusOffset >>> 12],
    ]);
  });
}
