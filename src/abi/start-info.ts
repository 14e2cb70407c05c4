/**
 * struct start_info: the page that a PV kernel finds at the address in RSI when it starts.
 *
 * The domain builder fills it before the domain runs. Afterwards it belongs to the guest, but for a resume: then the
 * toolstack writes the fields marked [resume] again. The guest swaps store_mfn and console_mfn to PFNs when it suspends.
 */

/** Source: xen/include/public/xen.h, struct start_info (x86-64). All fields: the builder writes, the guest reads. */
export const START_INFO = {
  SIZE: 0x490,
  /** char[32], NUL-terminated: START_INFO_MAGIC. */
  magic: 0x00,
  /** u64 [resume]: pages that the domain owns. */
  nr_pages: 0x20,
  /** u64 [resume]: machine byte address of the shared_info page. */
  shared_info: 0x28,
  /** u32 [resume]: SIF_*. */
  flags: 0x30,
  /** u64 [resume]: MFN of the xenstore ring. */
  store_mfn: 0x38,
  /** u32 [resume]: the guest's port of the xenstore ring. */
  store_evtchn: 0x40,
  /** u64 [resume], console.domU.mfn: MFN of the console ring. */
  console_mfn: 0x48,
  /** u32 [resume], console.domU.evtchn: the guest's port of the console ring. */
  console_evtchn: 0x50,
  /** u64: VA of the root of the bootstrap page tables. */
  pt_base: 0x58,
  /** u64: frames of the bootstrap page tables, which are contiguous from pt_base. */
  nr_pt_frames: 0x60,
  /** u64: VA of the p2m list. */
  mfn_list: 0x68,
  /** u64: ramdisk, a PFN with SIF_MOD_START_PFN, else a VA; 0 = none. */
  mod_start: 0x70,
  /** u64: ramdisk size in bytes. */
  mod_len: 0x78,
  /** char[MAX_GUEST_CMDLINE], NUL-terminated. */
  cmd_line: 0x80,
  /** u64: first PFN of the p2m list, when INIT_P2M places it outside the bootstrap mapping; else 0. */
  first_p2m_pfn: 0x480,
  /** u64: frames of the p2m list with its own page tables; 0 as above. */
  nr_p2m_frames: 0x488,
} as const;

/** Source: xen.h, MAX_GUEST_CMDLINE: bytes of cmd_line, the final NUL among them. */
export const MAX_GUEST_CMDLINE = 1024;

/** "xen-<version>-<platform>". Source: xen.h, struct start_info; tools/libs/guest/xg_dom_x86.c, guest type of 64-bit PV. */
export const START_INFO_MAGIC = 'xen-3.0-x86_64';

/** Source: xen.h, "These flags are passed in the 'flags' field of start_info_t". */
export const SIF_PRIVILEGED = 1 << 0;
export const SIF_INITDOMAIN = 1 << 1;
export const SIF_MULTIBOOT_MOD = 1 << 2;
/** mod_start is a PFN, and the ramdisk is not mapped. */
export const SIF_MOD_START_PFN = 1 << 3;
/** Tools can find the p2m list through the guest's page tables (shared_info.arch.p2m_cr3, p2m_vaddr). */
export const SIF_VIRT_P2M_4TOOLS = 1 << 4;
export const SIF_PM_MASK = 0xff << 8;
