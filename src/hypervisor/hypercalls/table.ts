/**
 * Every hypercall and sub-operation of the interface, with what Domus makes of it. The dispatcher takes its handlers from here, and
 * scripts/generate-support.ts writes docs/support.md from here.
 *
 *   done     works as under Xen, as far as a domain can tell
 *   partly   works, but for what the note says
 *   refused  answers with an errno: Xen's own for an unprivileged PV domain, or the one in the note
 */

import * as callback from '../../abi/callback.ts';
import * as consoleIoAbi from '../../abi/console-io.ts';
import * as evtchn from '../../abi/event-channel.ts';
import * as gnttab from '../../abi/grant-table.ts';
import * as memory from '../../abi/memory.ts';
import * as physdev from '../../abi/physdev.ts';
import * as pmu from '../../abi/pmu.ts';
import * as vcpu from '../../abi/vcpu.ts';
import * as xenver from '../../abi/version.ts';
import * as assist from '../../abi/vm-assist.ts';
import * as xen from '../../abi/xen.ts';
import type { Vcpu } from '../vcpu.ts';
import { callbackOp } from './callback.ts';
import { consoleIo } from './console-io.ts';
import { iret, setSegmentBase, stackSwitch } from './context.ts';
import { getDebugreg, setDebugreg } from './debug-registers.ts';
import { setGdt, updateDescriptor } from './descriptors.ts';
import { eventChannelOp } from './event-channel.ts';
import { fpuTaskswitch } from './fpu.ts';
import { grantTableOp } from './grant-table.ts';
import { memoryOp } from './memory.ts';
import { mmuextOp, mmuUpdate, updateVaMapping, updateVaMappingOtherdomain } from './mmu.ts';
import { multicall, setMulticallHandlers } from './multicall.ts';
import { nmiOp } from './nmi.ts';
import { physdevOp } from './physdev.ts';
import { notImplemented, notPermitted } from './refused.ts';
import { schedOp, setTimerOp } from './sched.ts';
import { setCallbacks, setTrapTable } from './traps.ts';
import { vcpuOp } from './vcpu.ts';
import { xenVersion } from './version.ts';
import { vmAssist } from './vm-assist.ts';
import { xenpmuOp } from './xenpmu.ts';

export type SupportState = 'done' | 'partly' | 'refused';
export type HypercallHandler = (v: Vcpu) => number;

export interface SubOperation {
  readonly nr: number;
  readonly name: string;
  readonly state: SupportState;
  readonly note?: string;
}

export interface Hypercall extends SubOperation {
  readonly handler: HypercallHandler;
  readonly subOps?: readonly SubOperation[];
}

/** Hypercall numbers go to 63: 48-55 are the architecture's. Source: xen/include/public/xen.h, "Architecture-specific hypercall". */
const HYPERCALLS_MAX = 64;

function done(nr: number, name: string, note?: string): SubOperation {
  return note === undefined ? { nr, name, state: 'done' } : { nr, name, state: 'done', note };
}

function partly(nr: number, name: string, note: string): SubOperation {
  return { nr, name, state: 'partly', note };
}

function refused(nr: number, name: string, note: string): SubOperation {
  return { nr, name, state: 'refused', note };
}

function hypercall(of: SubOperation, handler: HypercallHandler, subOps?: readonly SubOperation[]): Hypercall {
  return subOps === undefined ? { ...of, handler } : { ...of, handler, subOps };
}

const H = xen.HYPERCALL;
const NO_DEVICES = 'a domain has no devices of the host';
const DOM0_ONLY = '-EPERM: for Dom0';

export const HYPERCALLS: readonly Hypercall[] = [
  hypercall(done(H.set_trap_table, 'set_trap_table'), setTrapTable),
  hypercall(done(H.mmu_update, 'mmu_update', 'frames of other domains: -ESRCH, -EPERM'), mmuUpdate, [
    done(xen.MMU_NORMAL_PT_UPDATE, 'MMU_NORMAL_PT_UPDATE'),
    done(xen.MMU_MACHPHYS_UPDATE, 'MMU_MACHPHYS_UPDATE'),
    done(xen.MMU_PT_UPDATE_PRESERVE_AD, 'MMU_PT_UPDATE_PRESERVE_AD'),
    done(xen.MMU_PT_UPDATE_NO_TRANSLATE, 'MMU_PT_UPDATE_NO_TRANSLATE'),
  ]),
  hypercall(done(H.set_gdt, 'set_gdt', 'frames are checked once, not kept read-only'), setGdt),
  hypercall(done(H.stack_switch, 'stack_switch'), stackSwitch),
  hypercall(done(H.set_callbacks, 'set_callbacks'), setCallbacks),
  hypercall(done(H.fpu_taskswitch, 'fpu_taskswitch'), fpuTaskswitch),
  hypercall(
    refused(H.sched_op_compat, 'sched_op_compat', '-ENOSYS: replaced by sched_op; Xen still has it'),
    notImplemented,
  ),
  hypercall(refused(H.platform_op, 'platform_op', DOM0_ONLY), notPermitted),
  hypercall(partly(H.set_debugreg, 'set_debugreg', 'I/O breakpoints are kept, but never hit'), setDebugreg),
  hypercall(partly(H.get_debugreg, 'get_debugreg', 'within a multicall only the low word of the value'), getDebugreg),
  hypercall(done(H.update_descriptor, 'update_descriptor'), updateDescriptor),
  hypercall(done(H.memory_op, 'memory_op'), memoryOp, [
    done(memory.XENMEM_increase_reservation, 'XENMEM_increase_reservation', 'from the frames that were given back'),
    done(memory.XENMEM_decrease_reservation, 'XENMEM_decrease_reservation', 'the host keeps the memory'),
    done(memory.XENMEM_maximum_ram_page, 'XENMEM_maximum_ram_page'),
    done(memory.XENMEM_current_reservation, 'XENMEM_current_reservation'),
    done(memory.XENMEM_maximum_reservation, 'XENMEM_maximum_reservation'),
    refused(
      memory.XENMEM_machphys_mfn_list,
      'XENMEM_machphys_mfn_list',
      '-ENOSYS: no guest may name the frames of the M2P',
    ),
    done(memory.XENMEM_populate_physmap, 'XENMEM_populate_physmap', 'a PFN always comes back as the same MFN'),
    refused(memory.XENMEM_add_to_physmap, 'XENMEM_add_to_physmap', '-EACCES: for translated guests'),
    done(memory.XENMEM_memory_map, 'XENMEM_memory_map'),
    refused(memory.XENMEM_machine_memory_map, 'XENMEM_machine_memory_map', DOM0_ONLY),
    refused(memory.XENMEM_exchange, 'XENMEM_exchange', '-ENOSYS: only device drivers need it'),
    done(memory.XENMEM_machphys_mapping, 'XENMEM_machphys_mapping'),
    refused(memory.XENMEM_set_memory_map, 'XENMEM_set_memory_map', '-EPERM: Xen lets a domain set its own'),
    done(memory.XENMEM_maximum_gpfn, 'XENMEM_maximum_gpfn'),
    refused(memory.XENMEM_remove_from_physmap, 'XENMEM_remove_from_physmap', '-EACCES: for translated guests'),
    refused(memory.XENMEM_set_pod_target, 'XENMEM_set_pod_target', '-EINVAL: for HVM guests'),
    refused(memory.XENMEM_get_pod_target, 'XENMEM_get_pod_target', '-EINVAL: for HVM guests'),
    done(memory.XENMEM_get_sharing_freed_pages, 'XENMEM_get_sharing_freed_pages', '0: nothing is shared'),
    done(memory.XENMEM_get_sharing_shared_pages, 'XENMEM_get_sharing_shared_pages', '0: nothing is shared'),
    refused(memory.XENMEM_paging_op, 'XENMEM_paging_op', '-ENOSYS'),
    refused(memory.XENMEM_access_op, 'XENMEM_access_op', '-ENOSYS'),
    refused(memory.XENMEM_sharing_op, 'XENMEM_sharing_op', '-ENOSYS'),
    refused(memory.XENMEM_add_to_physmap_batch, 'XENMEM_add_to_physmap_batch', '-EACCES: for translated guests'),
    refused(memory.XENMEM_claim_pages, 'XENMEM_claim_pages', DOM0_ONLY),
    refused(memory.XENMEM_machphys_compat_mfn_list, 'XENMEM_machphys_compat_mfn_list', '-EOPNOTSUPP: no 32-bit guests'),
    refused(memory.XENMEM_get_vnumainfo, 'XENMEM_get_vnumainfo', '-EOPNOTSUPP: a domain has one node'),
    done(memory.XENMEM_reserved_device_memory_map, 'XENMEM_reserved_device_memory_map', 'no entries'),
    refused(memory.XENMEM_acquire_resource, 'XENMEM_acquire_resource', '-EPERM, -ESRCH: for toolstacks'),
  ]),
  hypercall(done(H.multicall, 'multicall', 'at most 65536 entries; iret in one is -ENOSYS'), multicall),
  hypercall(done(H.update_va_mapping, 'update_va_mapping'), updateVaMapping),
  hypercall(done(H.set_timer_op, 'set_timer_op'), setTimerOp),
  hypercall(
    refused(
      H.event_channel_op_compat,
      'event_channel_op_compat',
      '-ENOSYS: replaced by event_channel_op; Xen still has it',
    ),
    notImplemented,
  ),
  hypercall(done(H.xen_version, 'xen_version'), xenVersion, [
    done(xenver.XENVER_version, 'XENVER_version'),
    done(xenver.XENVER_extraversion, 'XENVER_extraversion'),
    done(xenver.XENVER_compile_info, 'XENVER_compile_info'),
    done(xenver.XENVER_capabilities, 'XENVER_capabilities'),
    done(xenver.XENVER_changeset, 'XENVER_changeset', 'empty, as of a release'),
    done(xenver.XENVER_platform_parameters, 'XENVER_platform_parameters'),
    done(xenver.XENVER_get_features, 'XENVER_get_features'),
    done(xenver.XENVER_pagesize, 'XENVER_pagesize'),
    done(xenver.XENVER_guest_handle, 'XENVER_guest_handle'),
    done(xenver.XENVER_commandline, 'XENVER_commandline', '"<denied>", as for any DomU'),
    refused(xenver.XENVER_build_id, 'XENVER_build_id', DOM0_ONLY),
  ]),
  hypercall(done(H.console_io, 'console_io', 'Xen refuses a DomU; here its text goes to its log'), consoleIo, [
    done(consoleIoAbi.CONSOLEIO_write, 'CONSOLEIO_write'),
    done(consoleIoAbi.CONSOLEIO_read, 'CONSOLEIO_read', 'there is never any input'),
  ]),
  hypercall(
    refused(H.physdev_op_compat, 'physdev_op_compat', '-ENOSYS: replaced by physdev_op; Xen still has it'),
    notImplemented,
  ),
  hypercall(partly(H.grant_table_op, 'grant_table_op', 'no transitive grants'), grantTableOp, [
    partly(
      gnttab.GNTTABOP_map_grant_ref,
      'GNTTABOP_map_grant_ref',
      'pages of other guests where the host can share memory',
    ),
    done(gnttab.GNTTABOP_unmap_grant_ref, 'GNTTABOP_unmap_grant_ref'),
    done(gnttab.GNTTABOP_setup_table, 'GNTTABOP_setup_table'),
    refused(gnttab.GNTTABOP_dump_table, 'GNTTABOP_dump_table', '-ENOSYS'),
    done(gnttab.GNTTABOP_transfer, 'GNTTABOP_transfer'),
    done(gnttab.GNTTABOP_copy, 'GNTTABOP_copy'),
    done(gnttab.GNTTABOP_query_size, 'GNTTABOP_query_size'),
    done(gnttab.GNTTABOP_unmap_and_replace, 'GNTTABOP_unmap_and_replace'),
    done(
      gnttab.GNTTABOP_set_version,
      'GNTTABOP_set_version',
      'versions 1 and 2; -ENOSYS for 2 where max_grant_version is 1',
    ),
    done(gnttab.GNTTABOP_get_status_frames, 'GNTTABOP_get_status_frames', 'version 1 has none'),
    done(gnttab.GNTTABOP_get_version, 'GNTTABOP_get_version'),
    done(gnttab.GNTTABOP_swap_grant_ref, 'GNTTABOP_swap_grant_ref'),
    done(gnttab.GNTTABOP_cache_flush, 'GNTTABOP_cache_flush', 'checked; caches are coherent'),
  ]),
  hypercall(partly(H.vm_assist, 'vm_assist', 'types that a 64-bit guest cannot notice are accepted'), vmAssist, [
    done(assist.VMASST_TYPE_4gb_segments, 'VMASST_TYPE_4gb_segments', 'no effect, as for any 64-bit guest'),
    done(
      assist.VMASST_TYPE_4gb_segments_notify,
      'VMASST_TYPE_4gb_segments_notify',
      'no effect, as for any 64-bit guest',
    ),
    done(assist.VMASST_TYPE_writable_pagetables, 'VMASST_TYPE_writable_pagetables', 'always on'),
    done(assist.VMASST_TYPE_pae_extended_cr3, 'VMASST_TYPE_pae_extended_cr3', 'no effect, as for any 64-bit guest'),
    partly(assist.VMASST_TYPE_architectural_iopl, 'VMASST_TYPE_architectural_iopl', 'accepted, without effect'),
    done(assist.VMASST_TYPE_runstate_update_flag, 'VMASST_TYPE_runstate_update_flag'),
    partly(assist.VMASST_TYPE_m2p_strict, 'VMASST_TYPE_m2p_strict', 'accepted, without effect'),
  ]),
  hypercall(
    done(H.update_va_mapping_otherdomain, 'update_va_mapping_otherdomain', 'other domains: -ESRCH, -EPERM'),
    updateVaMappingOtherdomain,
  ),
  hypercall(done(H.iret, 'iret'), iret),
  hypercall(done(H.vcpu_op, 'vcpu_op'), vcpuOp, [
    done(vcpu.VCPUOP_initialise, 'VCPUOP_initialise'),
    done(vcpu.VCPUOP_up, 'VCPUOP_up'),
    done(vcpu.VCPUOP_down, 'VCPUOP_down'),
    done(vcpu.VCPUOP_is_up, 'VCPUOP_is_up'),
    partly(vcpu.VCPUOP_get_runstate_info, 'VCPUOP_get_runstate_info', 'of the calling vCPU; of others -EINVAL'),
    done(vcpu.VCPUOP_register_runstate_memory_area, 'VCPUOP_register_runstate_memory_area'),
    partly(vcpu.VCPUOP_set_periodic_timer, 'VCPUOP_set_periodic_timer', 'of the calling vCPU; of others -EINVAL'),
    done(vcpu.VCPUOP_stop_periodic_timer, 'VCPUOP_stop_periodic_timer'),
    done(vcpu.VCPUOP_set_singleshot_timer, 'VCPUOP_set_singleshot_timer', 'VCPU_SSHOTTMR_future is not looked at'),
    done(vcpu.VCPUOP_stop_singleshot_timer, 'VCPUOP_stop_singleshot_timer'),
    done(vcpu.VCPUOP_register_vcpu_info, 'VCPUOP_register_vcpu_info'),
    done(vcpu.VCPUOP_send_nmi, 'VCPUOP_send_nmi'),
    refused(vcpu.VCPUOP_get_physid, 'VCPUOP_get_physid', '-EINVAL: vCPUs are not pinned'),
    done(vcpu.VCPUOP_register_vcpu_time_memory_area, 'VCPUOP_register_vcpu_time_memory_area'),
  ]),
  hypercall(done(H.set_segment_base, 'set_segment_base'), setSegmentBase, [
    done(0, 'SEGBASE_FS'),
    done(1, 'SEGBASE_GS_USER'),
    done(2, 'SEGBASE_GS_KERNEL'),
    done(3, 'SEGBASE_GS_USER_SEL'),
  ]),
  hypercall(done(H.mmuext_op, 'mmuext_op', 'frames of other domains: -ESRCH, -EPERM'), mmuextOp, [
    done(xen.MMUEXT_PIN_L1_TABLE, 'MMUEXT_PIN_L1_TABLE', 'marked, not validated: a domain has memory of its own'),
    done(1, 'MMUEXT_PIN_L2_TABLE'),
    done(2, 'MMUEXT_PIN_L3_TABLE'),
    done(xen.MMUEXT_PIN_L4_TABLE, 'MMUEXT_PIN_L4_TABLE'),
    done(xen.MMUEXT_UNPIN_TABLE, 'MMUEXT_UNPIN_TABLE'),
    done(xen.MMUEXT_NEW_BASEPTR, 'MMUEXT_NEW_BASEPTR'),
    done(xen.MMUEXT_TLB_FLUSH_LOCAL, 'MMUEXT_TLB_FLUSH_LOCAL'),
    done(xen.MMUEXT_INVLPG_LOCAL, 'MMUEXT_INVLPG_LOCAL'),
    done(xen.MMUEXT_TLB_FLUSH_MULTI, 'MMUEXT_TLB_FLUSH_MULTI'),
    done(xen.MMUEXT_INVLPG_MULTI, 'MMUEXT_INVLPG_MULTI', 'other vCPUs flush everything'),
    done(xen.MMUEXT_TLB_FLUSH_ALL, 'MMUEXT_TLB_FLUSH_ALL'),
    done(xen.MMUEXT_INVLPG_ALL, 'MMUEXT_INVLPG_ALL', 'other vCPUs flush everything'),
    done(xen.MMUEXT_FLUSH_CACHE, 'MMUEXT_FLUSH_CACHE', 'nothing to do; Xen answers -EACCES without a device'),
    done(xen.MMUEXT_SET_LDT, 'MMUEXT_SET_LDT'),
    done(xen.MMUEXT_NEW_USER_BASEPTR, 'MMUEXT_NEW_USER_BASEPTR'),
    done(xen.MMUEXT_CLEAR_PAGE, 'MMUEXT_CLEAR_PAGE'),
    done(xen.MMUEXT_COPY_PAGE, 'MMUEXT_COPY_PAGE'),
    done(
      xen.MMUEXT_FLUSH_CACHE_GLOBAL,
      'MMUEXT_FLUSH_CACHE_GLOBAL',
      'nothing to do; Xen answers -EACCES without a device',
    ),
    refused(xen.MMUEXT_MARK_SUPER, 'MMUEXT_MARK_SUPER', '-EOPNOTSUPP'),
    refused(xen.MMUEXT_UNMARK_SUPER, 'MMUEXT_UNMARK_SUPER', '-EOPNOTSUPP'),
  ]),
  hypercall(refused(H.xsm_op, 'xsm_op', '-ENOSYS: no security module'), notImplemented),
  hypercall(done(H.nmi_op, 'nmi_op'), nmiOp, [
    done(callback.XENNMI_register_callback, 'XENNMI_register_callback'),
    done(callback.XENNMI_unregister_callback, 'XENNMI_unregister_callback'),
  ]),
  hypercall(done(H.sched_op, 'sched_op'), schedOp, [
    done(xen.SCHEDOP_yield, 'SCHEDOP_yield'),
    done(xen.SCHEDOP_block, 'SCHEDOP_block'),
    done(xen.SCHEDOP_shutdown, 'SCHEDOP_shutdown'),
    done(xen.SCHEDOP_poll, 'SCHEDOP_poll'),
    refused(xen.SCHEDOP_remote_shutdown, 'SCHEDOP_remote_shutdown', DOM0_ONLY),
    partly(xen.SCHEDOP_shutdown_code, 'SCHEDOP_shutdown_code', 'accepted, without effect'),
    refused(xen.SCHEDOP_watchdog, 'SCHEDOP_watchdog', '-ENOSYS: no watchdog'),
    refused(xen.SCHEDOP_pin_override, 'SCHEDOP_pin_override', DOM0_ONLY),
  ]),
  hypercall(done(H.callback_op, 'callback_op'), callbackOp, [
    done(callback.CALLBACKOP_register, 'CALLBACKOP_register'),
    done(callback.CALLBACKOP_unregister, 'CALLBACKOP_unregister'),
  ]),
  hypercall(refused(H.xenoprof_op, 'xenoprof_op', '-ENOSYS: no profiler'), notImplemented),
  hypercall(done(H.event_channel_op, 'event_channel_op', 'two-level event channels'), eventChannelOp, [
    done(evtchn.EVTCHNOP_bind_interdomain, 'EVTCHNOP_bind_interdomain'),
    done(evtchn.EVTCHNOP_bind_virq, 'EVTCHNOP_bind_virq'),
    refused(evtchn.EVTCHNOP_bind_pirq, 'EVTCHNOP_bind_pirq', `-EPERM: ${NO_DEVICES}`),
    done(evtchn.EVTCHNOP_close, 'EVTCHNOP_close'),
    done(evtchn.EVTCHNOP_send, 'EVTCHNOP_send'),
    done(evtchn.EVTCHNOP_status, 'EVTCHNOP_status'),
    done(evtchn.EVTCHNOP_alloc_unbound, 'EVTCHNOP_alloc_unbound'),
    done(evtchn.EVTCHNOP_bind_ipi, 'EVTCHNOP_bind_ipi'),
    done(evtchn.EVTCHNOP_bind_vcpu, 'EVTCHNOP_bind_vcpu'),
    done(evtchn.EVTCHNOP_unmask, 'EVTCHNOP_unmask'),
    done(evtchn.EVTCHNOP_reset, 'EVTCHNOP_reset'),
    refused(evtchn.EVTCHNOP_init_control, 'EVTCHNOP_init_control', '-ENOSYS: no FIFO event channels'),
    refused(evtchn.EVTCHNOP_expand_array, 'EVTCHNOP_expand_array', '-ENOSYS: no FIFO event channels'),
    refused(evtchn.EVTCHNOP_set_priority, 'EVTCHNOP_set_priority', '-ENOSYS: no FIFO event channels'),
  ]),
  hypercall(partly(H.physdev_op, 'physdev_op', NO_DEVICES), physdevOp, [
    done(physdev.PHYSDEVOP_IRQ_UNMASK_NOTIFY, 'PHYSDEVOP_IRQ_UNMASK_NOTIFY', 'nothing to do'),
    refused(physdev.PHYSDEVOP_irq_status_query, 'PHYSDEVOP_irq_status_query', '-EINVAL: there are no IRQs'),
    done(physdev.PHYSDEVOP_set_iopl, 'PHYSDEVOP_set_iopl'),
    partly(physdev.PHYSDEVOP_set_iobitmap, 'PHYSDEVOP_set_iobitmap', 'checked, without effect: there are no ports'),
    refused(physdev.PHYSDEVOP_apic_read, 'PHYSDEVOP_apic_read', DOM0_ONLY),
    refused(physdev.PHYSDEVOP_apic_write, 'PHYSDEVOP_apic_write', DOM0_ONLY),
    refused(physdev.PHYSDEVOP_alloc_irq_vector, 'PHYSDEVOP_alloc_irq_vector', DOM0_ONLY),
    refused(physdev.PHYSDEVOP_free_irq_vector, 'PHYSDEVOP_free_irq_vector', '-ENOSYS, as under Xen'),
    refused(physdev.PHYSDEVOP_eoi, 'PHYSDEVOP_eoi', '-EINVAL: there are no IRQs'),
    refused(physdev.PHYSDEVOP_map_pirq, 'PHYSDEVOP_map_pirq', '-EPERM'),
    refused(physdev.PHYSDEVOP_unmap_pirq, 'PHYSDEVOP_unmap_pirq', '-EPERM'),
    refused(physdev.PHYSDEVOP_manage_pci_add, 'PHYSDEVOP_manage_pci_add', DOM0_ONLY),
    refused(physdev.PHYSDEVOP_manage_pci_remove, 'PHYSDEVOP_manage_pci_remove', DOM0_ONLY),
    refused(physdev.PHYSDEVOP_pirq_eoi_gmfn_v1, 'PHYSDEVOP_pirq_eoi_gmfn_v1', '-ENOSYS: there are no IRQs'),
    refused(physdev.PHYSDEVOP_restore_msi, 'PHYSDEVOP_restore_msi', '-ENODEV'),
    refused(physdev.PHYSDEVOP_manage_pci_add_ext, 'PHYSDEVOP_manage_pci_add_ext', DOM0_ONLY),
    refused(physdev.PHYSDEVOP_setup_gsi, 'PHYSDEVOP_setup_gsi', DOM0_ONLY),
    refused(physdev.PHYSDEVOP_get_free_pirq, 'PHYSDEVOP_get_free_pirq', '-ENOSPC: there are no IRQs'),
    refused(physdev.PHYSDEVOP_pci_mmcfg_reserved, 'PHYSDEVOP_pci_mmcfg_reserved', DOM0_ONLY),
    refused(physdev.PHYSDEVOP_pci_device_add, 'PHYSDEVOP_pci_device_add', '-EOPNOTSUPP'),
    refused(physdev.PHYSDEVOP_pci_device_remove, 'PHYSDEVOP_pci_device_remove', '-EOPNOTSUPP'),
    refused(physdev.PHYSDEVOP_restore_msi_ext, 'PHYSDEVOP_restore_msi_ext', '-ENODEV'),
    refused(physdev.PHYSDEVOP_pirq_eoi_gmfn_v2, 'PHYSDEVOP_pirq_eoi_gmfn_v2', '-ENOSYS: there are no IRQs'),
    refused(physdev.PHYSDEVOP_dbgp_op, 'PHYSDEVOP_dbgp_op', DOM0_ONLY),
    refused(physdev.PHYSDEVOP_prepare_msix, 'PHYSDEVOP_prepare_msix', DOM0_ONLY),
    refused(physdev.PHYSDEVOP_release_msix, 'PHYSDEVOP_release_msix', DOM0_ONLY),
  ]),
  hypercall(refused(H.hvm_op, 'hvm_op', '-ENOSYS: PV guests only'), notImplemented),
  hypercall(refused(H.sysctl, 'sysctl', DOM0_ONLY), notPermitted),
  hypercall(refused(H.domctl, 'domctl', DOM0_ONLY), notPermitted),
  hypercall(refused(H.kexec_op, 'kexec_op', DOM0_ONLY), notPermitted),
  hypercall(refused(H.tmem_op, 'tmem_op', '-ENOSYS: gone from Xen since 4.13'), notImplemented),
  hypercall(refused(H.argo_op, 'argo_op', '-ENOSYS: off by default in Xen'), notImplemented),
  hypercall(refused(H.xenpmu_op, 'xenpmu_op', '-EOPNOTSUPP: no performance counters'), xenpmuOp, [
    refused(pmu.XENPMU_mode_get, 'XENPMU_mode_get', '-EOPNOTSUPP'),
    refused(pmu.XENPMU_mode_set, 'XENPMU_mode_set', '-EOPNOTSUPP'),
    refused(pmu.XENPMU_feature_get, 'XENPMU_feature_get', '-EOPNOTSUPP'),
    refused(pmu.XENPMU_feature_set, 'XENPMU_feature_set', '-EOPNOTSUPP'),
    refused(pmu.XENPMU_init, 'XENPMU_init', '-EOPNOTSUPP'),
    refused(pmu.XENPMU_finish, 'XENPMU_finish', '-EOPNOTSUPP'),
    refused(pmu.XENPMU_lvtpc_set, 'XENPMU_lvtpc_set', '-EOPNOTSUPP'),
    refused(pmu.XENPMU_flush, 'XENPMU_flush', '-EOPNOTSUPP'),
  ]),
  hypercall(refused(H.dm_op, 'dm_op', '-ENOSYS: for device models of HVM guests'), notImplemented),
  hypercall(refused(H.hypfs_op, 'hypfs_op', DOM0_ONLY), notPermitted),
  hypercall(refused(H.mca, 'mca', DOM0_ONLY), notPermitted),
];

function handlersByNumber(): HypercallHandler[] {
  const handlers: HypercallHandler[] = new Array<HypercallHandler>(HYPERCALLS_MAX).fill(notImplemented);
  for (const { nr, handler } of HYPERCALLS) handlers[nr] = handler;
  return handlers;
}

/** The handler of each hypercall number. */
export const HYPERCALL_HANDLERS: readonly HypercallHandler[] = handlersByNumber();

// multicall dispatches through the table that lists it.
setMulticallHandlers(HYPERCALL_HANDLERS);
