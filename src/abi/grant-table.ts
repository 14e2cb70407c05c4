/** Numbers and structures of xen/include/public/grant_table.h. */

/** Source: grant_table.h, GNTTABOP_*. */
export const GNTTABOP_map_grant_ref = 0;
export const GNTTABOP_unmap_grant_ref = 1;
export const GNTTABOP_setup_table = 2;
export const GNTTABOP_dump_table = 3;
export const GNTTABOP_transfer = 4;
export const GNTTABOP_copy = 5;
export const GNTTABOP_query_size = 6;
export const GNTTABOP_unmap_and_replace = 7;
export const GNTTABOP_set_version = 8;
export const GNTTABOP_get_status_frames = 9;
export const GNTTABOP_get_version = 10;
export const GNTTABOP_swap_grant_ref = 11;
export const GNTTABOP_cache_flush = 12;

/** Source: xen/common/grant_table.c, GNTTABOP_CMD_MASK: the bits above are for continuations. */
export const GNTTABOP_CMD_MASK = 0xfff;

/** Source: grant_table.h, struct grant_entry_v1. */
export const GRANT_ENTRY_V1 = {
  SIZE: 8,
  /** u16 [both]: GTF_*; the guest writes them, Xen sets and clears GTF_reading and GTF_writing. */
  flags: 0,
  /** u16 [GST]: the domain that is granted access. */
  domid: 2,
  /** u32 [GST]: MFN of the frame. */
  frame: 4,
} as const;

/** Source: grant_table.h, union grant_entry_v2. What is in use stands in u16s of their own, the status. */
export const GRANT_ENTRY_V2 = {
  SIZE: 16,
  /** As in version 1, without GTF_reading and GTF_writing. */
  flags: 0,
  domid: 2,
  /** u16s [GST], with GTF_sub_page: the bytes that are granted. */
  page_off: 4,
  length: 6,
  /** u64 [GST] */
  frame: 8,
} as const;

/** Source: grant_table.h, GNTTAB_NR_RESERVED_ENTRIES, GNTTAB_RESERVED_*. */
export const GNTTAB_NR_RESERVED_ENTRIES = 8;
export const GNTTAB_RESERVED_CONSOLE = 0;
export const GNTTAB_RESERVED_XENSTORE = 1;

/** Source: grant_table.h, GTF_*. */
export const GTF_invalid = 0;
export const GTF_permit_access = 1;
export const GTF_accept_transfer = 2;
export const GTF_transitive = 3;
export const GTF_type_mask = 3;
export const GTF_readonly = 1 << 2;
export const GTF_reading = 1 << 3;
export const GTF_writing = 1 << 4;
export const GTF_sub_page = 1 << 8;
/** Of GTF_accept_transfer. [XEN] */
export const GTF_transfer_committed = 1 << 2;
export const GTF_transfer_completed = 1 << 3;

/** Source: grant_table.h, GNTST_*: status of an entry, s16. */
export const GNTST_okay = 0;
export const GNTST_general_error = -1;
export const GNTST_bad_domain = -2;
export const GNTST_bad_gntref = -3;
export const GNTST_bad_handle = -4;
export const GNTST_bad_virt_addr = -5;
export const GNTST_bad_dev_addr = -6;
export const GNTST_no_device_space = -7;
export const GNTST_permission_denied = -8;
export const GNTST_bad_page = -9;
export const GNTST_bad_copy_arg = -10;
export const GNTST_address_too_big = -11;
export const GNTST_eagain = -12;
export const GNTST_no_space = -13;

/** Source: grant_table.h, GNTMAP_*. */
export const GNTMAP_device_map = 1 << 0;
export const GNTMAP_host_map = 1 << 1;
export const GNTMAP_readonly = 1 << 2;
export const GNTMAP_application_map = 1 << 3;
export const GNTMAP_contains_pte = 1 << 4;

/** Source: grant_table.h, GNTCOPY_*. */
export const GNTCOPY_source_gref = 1 << 0;
export const GNTCOPY_dest_gref = 1 << 1;

/** Source: grant_table.h, GNTTAB_CACHE_*. */
export const GNTTAB_CACHE_CLEAN = 1 << 0;
export const GNTTAB_CACHE_INVAL = 1 << 1;
export const GNTTAB_CACHE_SOURCE_GREF = 0x80000000;

/** Source: grant_table.h. The guest writes all but `status`, `handle`, `dev_bus_addr`, and what is marked [XEN]. */
export const GNTTAB_MAP_GRANT_REF = {
  SIZE: 32,
  host_addr: 0,
  flags: 8,
  ref: 12,
  dom: 16,
  status: 18,
  handle: 20,
  dev_bus_addr: 24,
} as const;
export const GNTTAB_UNMAP_GRANT_REF = { SIZE: 24, host_addr: 0, dev_bus_addr: 8, handle: 16, status: 20 } as const;
export const GNTTAB_UNMAP_AND_REPLACE = { SIZE: 24, host_addr: 0, new_addr: 8, handle: 16, status: 20 } as const;
export const GNTTAB_SETUP_TABLE = { SIZE: 24, dom: 0, nr_frames: 4, status: 8, frame_list: 16 } as const;
export const GNTTAB_TRANSFER = { SIZE: 24, mfn: 0, domid: 8, ref: 12, status: 16 } as const;
export const GNTTAB_COPY = {
  SIZE: 40,
  /** union { u32 ref, u64 gmfn }, u16 domid, u16 offset */
  source: 0,
  source_domid: 8,
  source_offset: 10,
  dest: 16,
  dest_domid: 24,
  dest_offset: 26,
  /** u16 */
  len: 32,
  flags: 34,
  status: 36,
} as const;
/** nr_frames and max_nr_frames [XEN]. */
export const GNTTAB_QUERY_SIZE = { SIZE: 16, dom: 0, nr_frames: 4, max_nr_frames: 8, status: 12 } as const;
export const GNTTAB_SET_VERSION = { SIZE: 4, version: 0 } as const;
export const GNTTAB_GET_STATUS_FRAMES = { SIZE: 16, nr_frames: 0, dom: 4, status: 6, frame_list: 8 } as const;
/** version [XEN]. */
export const GNTTAB_GET_VERSION = { SIZE: 8, dom: 0, version: 4 } as const;
export const GNTTAB_SWAP_GRANT_REF = { SIZE: 12, ref_a: 0, ref_b: 4, status: 8 } as const;
export const GNTTAB_CACHE_FLUSH = { SIZE: 16, ref: 0, offset: 8, length: 10, op: 12 } as const;
