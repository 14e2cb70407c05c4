/** What one engine keeps of a vCPU's vector state is what the other, or the same, gets back. */

import { expect, test } from 'vitest';
import { createMachineMemory } from '../machine/memory.ts';
import { createVcpuBlock } from '../machine/vcpu-block.ts';
import { VECTOR_STATE_BYTES } from './engine.ts';
import { closeKvmDomain, createKvmDomain } from './kvm/kvm-domain.ts';
import { openKvmVcpu } from './kvm/kvm-vcpu.ts';
import { probeKvm } from './kvm/self-test.ts';
import { createWasmGuest } from './wasm/test-guest.ts';

const XSTATE_BV = 512;
const UPPER = 576;

/** Stack full of numbers with TOP at 5, another rounding, MXCSR with a flag, XMM and YMM registers that all differ. */
function someState(): Uint8Array {
  const area = new Uint8Array(VECTOR_STATE_BYTES);
  const view = new DataView(area.buffer);
  view.setUint16(0, 0x0f7f, true);
  view.setUint16(2, 5 << 11, true);
  area[4] = 0xff;
  view.setUint32(24, 0x1fa0, true);
  view.setUint32(28, 0xffff, true);
  for (let i = 0; i < 8; i++) {
    view.setBigUint64(32 + i * 16, 0x8000000000000000n + BigInt(i), true);
    view.setUint16(32 + i * 16 + 8, 0x3fff + i, true);
  }
  for (let i = 0; i < 256; i++) {
    area[160 + i] = i ^ 0x5a;
    area[UPPER + i] = i ^ 0xc3;
  }
  area[XSTATE_BV] = 7;
  return area;
}

/** XSAVE areas of CPUs with more MXCSR bits say so. */
function comparable(area: Uint8Array): number[] {
  const copy = Uint8Array.from(area);
  copy.fill(0, 28, 32);
  return [...copy];
}

test('wasm gives back what it got, and the initial state for what is not in use', () => {
  const { vcpu } = createWasmGuest();
  const area = new Uint8Array(VECTOR_STATE_BYTES);
  vcpu.loadVectorState(someState());
  vcpu.saveVectorState(area);
  expect(comparable(area)).toEqual(comparable(someState()));
  vcpu.loadVectorState(new Uint8Array(VECTOR_STATE_BYTES));
  vcpu.saveVectorState(area);
  const view = new DataView(area.buffer);
  expect([view.getUint16(0, true), view.getUint16(2, true), area[4], view.getUint32(24, true)]).toEqual([
    0x37f, 0, 0, 0x1f80,
  ]);
  expect(area.subarray(160, 416).some((byte) => byte !== 0)).toBe(false);
  expect(area.subarray(UPPER, UPPER + 256).some((byte) => byte !== 0)).toBe(false);
});

test('kvm gives back what it got, and what wasm has kept', (context) => {
  const probe = probeKvm();
  if (!probe.usable) return context.skip(probe.reason);
  const machine = createMachineMemory(16, 16);
  const handle = createKvmDomain(machine, 1);
  try {
    const vcpu = openKvmVcpu(handle, machine, createVcpuBlock(0));
    const area = new Uint8Array(VECTOR_STATE_BYTES);
    vcpu.loadVectorState(someState());
    vcpu.saveVectorState(area);
    expect(comparable(area)).toEqual(comparable(someState()));

    const wasm = createWasmGuest().vcpu;
    wasm.loadVectorState(area);
    wasm.saveVectorState(area);
    vcpu.loadVectorState(area);
    vcpu.saveVectorState(area);
    expect(comparable(area)).toEqual(comparable(someState()));

    if ((handle.facts.xcr0Mask & 0xe0) === 0xe0) {
      // AVX-512: wherever this CPU has them, they are where Intel's CPUs have them.
      const wide = someState();
      wide[XSTATE_BV] = 0xe7;
      for (let at = 1088; at < VECTOR_STATE_BYTES; at++) wide[at] = at & 0xff;
      vcpu.loadVectorState(wide);
      vcpu.saveVectorState(area);
      expect(comparable(area)).toEqual(comparable(wide));
    }
    vcpu.close();
  } finally {
    closeKvmDomain(handle);
  }
});
