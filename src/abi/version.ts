/** Numbers and structures of xen/include/public/version.h and features.h: what a guest learns about the hypervisor. */

/** Source: version.h, XENVER_*. */
export const XENVER_version = 0;
export const XENVER_extraversion = 1;
export const XENVER_compile_info = 2;
export const XENVER_capabilities = 3;
export const XENVER_changeset = 4;
export const XENVER_platform_parameters = 5;
export const XENVER_get_features = 6;
export const XENVER_pagesize = 7;
export const XENVER_guest_handle = 8;
export const XENVER_commandline = 9;
export const XENVER_build_id = 10;

/** Source: version.h, xen_extraversion_t, xen_capabilities_info_t, xen_changeset_info_t, xen_domain_handle_t: bytes. */
export const XEN_EXTRAVERSION_LEN = 16;
export const XEN_CAPABILITIES_INFO_LEN = 1024;
export const XEN_CHANGESET_INFO_LEN = 64;
export const XEN_DOMAIN_HANDLE_LEN = 16;

/** Source: version.h, struct xen_compile_info: char arrays, NUL-terminated. Xen writes all. */
export const XEN_COMPILE_INFO = {
  SIZE: 144,
  compiler: 0,
  compile_by: 64,
  compile_domain: 80,
  compile_date: 112,
} as const;

/** Source: version.h, struct xen_feature_info. */
export const XEN_FEATURE_INFO = {
  SIZE: 8,
  /** u32: the guest writes. */
  submap_idx: 0,
  /** u32: Xen writes. */
  submap: 4,
} as const;

/** Source: features.h, XENFEAT_*: bit numbers of submap 0. */
export const XENFEAT_writable_page_tables = 0;
export const XENFEAT_writable_descriptor_tables = 1;
export const XENFEAT_auto_translated_physmap = 2;
export const XENFEAT_supervisor_mode_kernel = 3;
export const XENFEAT_pae_pgdir_above_4gb = 4;
export const XENFEAT_mmu_pt_update_preserve_ad = 5;
export const XENFEAT_highmem_assist = 6;
export const XENFEAT_gnttab_map_avail_bits = 7;
export const XENFEAT_dom0 = 11;
export const XENFEAT_memory_op_vnode_supported = 13;
export const XENFEAT_not_direct_mapped = 16;
export const XENFEAT_direct_mapped = 17;
