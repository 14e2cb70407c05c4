/** Numbers and structures of xen/include/public/memory.h: sub-operations of memory_op. */

/** Source: memory.h, XENMEM_*. */
export const XENMEM_increase_reservation = 0;
export const XENMEM_decrease_reservation = 1;
export const XENMEM_maximum_ram_page = 2;
export const XENMEM_current_reservation = 3;
export const XENMEM_maximum_reservation = 4;
export const XENMEM_machphys_mfn_list = 5;
export const XENMEM_populate_physmap = 6;
export const XENMEM_add_to_physmap = 7;
export const XENMEM_memory_map = 9;
export const XENMEM_machine_memory_map = 10;
export const XENMEM_exchange = 11;
export const XENMEM_machphys_mapping = 12;
export const XENMEM_set_memory_map = 13;
export const XENMEM_maximum_gpfn = 14;
export const XENMEM_remove_from_physmap = 15;
export const XENMEM_set_pod_target = 16;
export const XENMEM_get_pod_target = 17;
export const XENMEM_get_sharing_freed_pages = 18;
export const XENMEM_get_sharing_shared_pages = 19;
export const XENMEM_paging_op = 20;
export const XENMEM_access_op = 21;
export const XENMEM_sharing_op = 22;
export const XENMEM_add_to_physmap_batch = 23;
export const XENMEM_claim_pages = 24;
export const XENMEM_machphys_compat_mfn_list = 25;
export const XENMEM_get_vnumainfo = 26;
export const XENMEM_reserved_device_memory_map = 27;
export const XENMEM_acquire_resource = 28;

/** Source: xen/include/xen/hypercall.h, MEMOP_EXTENT_SHIFT: the op is in the bits below, the extent to resume at above. */
export const MEMOP_EXTENT_SHIFT = 6;
export const MEMOP_CMD_MASK = 0x3f;

/** Source: memory.h, struct xen_memory_reservation. The guest writes all. */
export const XEN_MEMORY_RESERVATION = {
  SIZE: 32,
  /** VA of u64[nr_extents]: frame numbers; for populate_physmap and increase_reservation Xen writes MFNs there. */
  extent_start: 0,
  /** u64 */
  nr_extents: 8,
  /** u32: an extent is 1 << extent_order pages. */
  extent_order: 16,
  /** u32: XENMEMF_*. */
  mem_flags: 20,
  /** u16 */
  domid: 24,
} as const;

/** Source: memory.h, XENMEMF_*: bits 0-7 address bits, bits 8-15 node + 1. */
export const XENMEMF_ADDRESS_BITS_MASK = 0xff;
export const XENMEMF_populate_on_demand = 1 << 16;
export const XENMEMF_exact_node_request = 1 << 17;
export const XENMEMF_vnode = 1 << 18;

/** Source: memory.h, struct xen_memory_map. */
export const XEN_MEMORY_MAP = {
  SIZE: 16,
  /** u32: the guest writes the room in entries, Xen how many it wrote. */
  nr_entries: 0,
  /** VA of the entries. */
  buffer: 8,
} as const;

/** Source: xen/arch/x86/include/asm/e820.h, struct e820entry (packed). */
export const E820_ENTRY = { SIZE: 20, addr: 0, size: 8, type: 16 } as const;
export const E820_RAM = 1;

/** Source: memory.h, struct xen_machphys_mapping: u64s that Xen writes. */
export const XEN_MACHPHYS_MAPPING = { SIZE: 24, v_start: 0, v_end: 8, max_mfn: 16 } as const;

/** Source: memory.h: sizes of the structures of which only the domid, or nothing, is read. */
export const XEN_ADD_TO_PHYSMAP = { SIZE: 24, domid: 0, size: 2, space: 4 } as const;
export const XEN_ADD_TO_PHYSMAP_BATCH = { SIZE: 32, domid: 0, space: 2 } as const;
export const XEN_REMOVE_FROM_PHYSMAP = { SIZE: 16, domid: 0 } as const;
export const XEN_POD_TARGET = { SIZE: 40, domid: 32 } as const;
export const XEN_VNUMA_TOPOLOGY_INFO = { SIZE: 40, domid: 0, pad: 2 } as const;
export const XEN_RESERVED_DEVICE_MEMORY_MAP = { SIZE: 24, flags: 0, nr_entries: 4 } as const;
export const XENMEM_RDM_ALL = 1;
export const XEN_MEM_ACQUIRE_RESOURCE = { SIZE: 32, domid: 0, pad: 12 } as const;

/** Source: memory.h, XENMAPSPACE_*. */
export const XENMAPSPACE_gmfn_range = 3;
export const XENMAPSPACE_gmfn_foreign = 4;
