/**
 * struct shared_info and what lies in it, for x86-64: the page through which Xen and a PV guest talk without hypercalls.
 *
 * [XEN] Xen writes, [GST] the guest writes, [both] both do, with atomic operations. The toolstack prepares the page
 * before the domain runs. What the other side writes is read with Atomics, once.
 */

/** Source: xen/include/public/xen.h, XEN_LEGACY_MAX_VCPUS: vCPUs with a vcpu_info in this page. */
export const XEN_LEGACY_MAX_VCPUS = 32;

/** Source: xen/include/public/xen.h, struct vcpu_time_info (the pvclock structure). */
export const VCPU_TIME_INFO = {
  SIZE: 32,
  /** u32 [XEN]: odd while the rest is being changed. */
  version: 0x00,
  /** u64 [XEN]: TSC when system_time was taken. */
  tsc_timestamp: 0x08,
  /** u64 [XEN]: ns since the domain started. */
  system_time: 0x10,
  /** u32 [XEN]: 32.32 fixed-point multiplier, ns a (shifted) TSC tick. */
  tsc_to_system_mul: 0x18,
  /** s8 [XEN]: shift of the TSC difference before the multiplication; negative = right. */
  tsc_shift: 0x1c,
  /** u8 [XEN]: XEN_PVCLOCK_*. */
  flags: 0x1d,
} as const;

/** Source: xen.h, XEN_PVCLOCK_TSC_STABLE_BIT, XEN_PVCLOCK_GUEST_STOPPED. */
export const XEN_PVCLOCK_TSC_STABLE_BIT = 1 << 0;
export const XEN_PVCLOCK_GUEST_STOPPED = 1 << 1;

/** Source: xen/include/public/xen.h, struct vcpu_info; arch-x86/xen-x86_64.h, struct arch_vcpu_info. */
export const VCPU_INFO = {
  SIZE: 64,
  /** u8 [both]: Xen sets it when an event becomes pending; the guest clears it, and sets it when it unmasks a pending port. */
  evtchn_upcall_pending: 0x00,
  /** u8 [both]: no upcall while it is not 0. Xen sets it at an upcall, and restores it at iret. */
  evtchn_upcall_mask: 0x01,
  /** u64 [both]: selector: one bit a word of evtchn_pending. */
  evtchn_pending_sel: 0x08,
  /** u64 [XEN], arch.cr2: address of the last page fault. */
  arch_cr2: 0x10,
  /** struct vcpu_time_info [XEN]. */
  time: 0x20,
} as const;

/** Source: xen/include/public/xen.h, struct shared_info; arch-x86/xen.h, struct arch_shared_info. */
export const SHARED_INFO = {
  SIZE: 0xc40,
  /** struct vcpu_info[XEN_LEGACY_MAX_VCPUS]. */
  vcpu_info: 0x000,
  /** u64[64] [both]: Xen sets bits, the guest clears them. */
  evtchn_pending: 0x800,
  /** u64[64] [both]: the guest sets and clears bits; Xen clears them in EVTCHNOP_unmask. */
  evtchn_mask: 0xa00,
  /** u32 [XEN]: odd while wc_* are being changed. */
  wc_version: 0xc00,
  /** u32 [XEN]: UTC at system time 0, s since 1970, low word. */
  wc_sec: 0xc04,
  /** u32 [XEN]: and ns. */
  wc_nsec: 0xc08,
  /** u32 [XEN]: high word of wc_sec. */
  wc_sec_hi: 0xc0c,
  /** u64 [GST]: highest PFN of the p2m list plus 1. */
  arch_max_pfn: 0xc10,
  /** u64 [GST]: MFN of the frame that lists the frames of the p2m; ~0 when p2m_vaddr is to be used. */
  arch_pfn_to_mfn_frame_list_list: 0xc18,
  /** u64 [XEN]: reason of an NMI. */
  arch_nmi_reason: 0xc20,
  /** u64 [GST]: root (as in CR3) through which p2m_vaddr is found; 0 = p2m_* are not valid. */
  arch_p2m_cr3: 0xc28,
  /** u64 [GST]: VA of the p2m list. */
  arch_p2m_vaddr: 0xc30,
  /** u64 [GST]: odd while the mapping of the p2m list changes. */
  arch_p2m_generation: 0xc38,
} as const;
