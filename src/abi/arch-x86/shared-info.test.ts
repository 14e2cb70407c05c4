import { expect, test } from 'vitest';
import { SHARED_INFO, VCPU_INFO, VCPU_TIME_INFO, XEN_LEGACY_MAX_VCPUS } from './shared-info.ts';

test('vcpu_info holds vcpu_time_info at its end, and shared_info holds 32 of them', () => {
  expect(VCPU_INFO.time + VCPU_TIME_INFO.SIZE).toBe(VCPU_INFO.SIZE);
  expect(SHARED_INFO.evtchn_pending).toBe(XEN_LEGACY_MAX_VCPUS * VCPU_INFO.SIZE);
  expect(SHARED_INFO.evtchn_mask - SHARED_INFO.evtchn_pending).toBe(64 * 8);
  expect(SHARED_INFO.wc_version - SHARED_INFO.evtchn_mask).toBe(64 * 8);
  expect(SHARED_INFO.arch_p2m_generation + 8).toBe(SHARED_INFO.SIZE);
});
