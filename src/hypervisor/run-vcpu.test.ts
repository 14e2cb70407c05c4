import { expect, test } from 'vitest';
import { cpuid as wasmCpuid } from '../engine/wasm/cpuid.ts';
import { PARKED } from './domain.ts';
import { unpark } from './run-vcpu.ts';
import { TestGuest } from './testing.ts';

const XSTATE_BV = 512;

test('a vCPU that is taken up has no vector state but what its domain is shown', () => {
  const guest = new TestGuest({ ramPages: 16 });
  Object.assign(guest.engine, { facts: { ...guest.engine.facts, xcr0Mask: 7 }, cpuid: wasmCpuid });
  const { domain } = guest.vcpu;
  domain.u8[domain.parkedOffset(0) + PARKED.vector + XSTATE_BV] = 0xe7;
  unpark(guest.vcpu);
  expect(guest.engine.vectorState[XSTATE_BV]).toBe(7);
});
