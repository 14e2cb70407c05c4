import { expect, test } from 'vitest';
import { EINVAL, ENOSYS } from '../../abi/errno.ts';
import { VCPU } from '../../machine/vcpu-block.ts';
import { TestGuest } from '../testing.ts';
import { vmAssist } from './vm-assist.ts';

test('the types of a 64-bit guest are accepted, others not', () => {
  const guest = new TestGuest();
  for (const type of [0, 1, 2, 3, 4, 5, 32]) for (const cmd of [0, 1]) expect(guest.call(vmAssist, cmd, type)).toBe(0);
  for (const type of [6, 31, 33, 64, 0xffffffff]) expect(guest.call(vmAssist, 0, type)).toBe(-EINVAL);
  expect(guest.call(vmAssist, 2, 5)).toBe(-ENOSYS);
  expect(guest.call(vmAssist, 2, 6)).toBe(-EINVAL);
});

test('runstate_update_flag is for all vCPUs', () => {
  const guest = new TestGuest({ vcpus: 3 });
  const flags = (): number[] => guest.domain.vcpus.map((vcpu) => vcpu.u32[VCPU.vmAssistRunstateFlag >> 2]);
  expect(guest.call(vmAssist, 0, 5)).toBe(0);
  expect(flags()).toEqual([1, 1, 1]);
  expect(guest.call(vmAssist, 1, 5)).toBe(0);
  expect(flags()).toEqual([0, 0, 0]);
});
