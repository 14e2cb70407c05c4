/**
 * physdev_op: real devices. A domain here has none, so all but the I/O privilege level is refused as Xen refuses a DomU, after the
 * same look at the argument. Source: xen/include/public/physdev.h; xen/arch/x86/physdev.c, xen/drivers/pci/physdev.c (behaviour).
 */

import { EFAULT, EINVAL, ENODEV, ENOSPC, ENOSYS, EOPNOTSUPP, EPERM } from '../../abi/errno.ts';
import * as physdev from '../../abi/physdev.ts';
import { VCPU } from '../../machine/vcpu-block.ts';
import type { Vcpu } from '../vcpu.ts';
import { addressOkay } from './guest-handle.ts';

const IO_PORTS = 65536;

/** Reads `size` bytes as Xen does, and refuses. */
function refuse(v: Vcpu, size: number, errno: number): number {
  return v.access.copyIn(v.args[2], v.args[3], size) ? -errno : -EFAULT;
}

/** (cmd, argument *) */
export function physdevOp(v: Vcpu): number {
  const access = v.access;
  switch (v.args[0]) {
    case physdev.PHYSDEVOP_set_iopl: {
      if (!access.readU32(v.args[2], v.args[3])) return -EFAULT;
      if (access.lo > 3) return -EINVAL;
      v.block.u32[VCPU.iopl >> 2] = access.lo;
      return 0;
    }
    case physdev.PHYSDEVOP_set_iobitmap: {
      if (!access.copyIn(v.args[2], v.args[3], physdev.PHYSDEV_SET_IOBITMAP.SIZE)) return -EFAULT;
      if (!addressOkay(access.words[1]) || access.words[physdev.PHYSDEV_SET_IOBITMAP.nr_ports >> 2] > IO_PORTS)
        return -EINVAL;
      return 0;
    }
    case physdev.PHYSDEVOP_eoi:
      return refuse(v, physdev.PHYSDEV_EOI_SIZE, EINVAL);
    case physdev.PHYSDEVOP_irq_status_query:
      return refuse(v, physdev.PHYSDEV_IRQ_STATUS_QUERY_SIZE, EINVAL);
    case physdev.PHYSDEVOP_IRQ_UNMASK_NOTIFY:
      return 0;
    case physdev.PHYSDEVOP_pirq_eoi_gmfn_v1:
    case physdev.PHYSDEVOP_pirq_eoi_gmfn_v2:
      return refuse(v, physdev.PHYSDEV_PIRQ_EOI_GMFN_SIZE, ENOSYS);
    case physdev.PHYSDEVOP_apic_read:
    case physdev.PHYSDEVOP_apic_write:
      return refuse(v, physdev.PHYSDEV_APIC_SIZE, EPERM);
    case physdev.PHYSDEVOP_alloc_irq_vector:
      return refuse(v, physdev.PHYSDEV_IRQ_SIZE, EPERM);
    case physdev.PHYSDEVOP_map_pirq:
      return refuse(v, physdev.PHYSDEV_MAP_PIRQ_SIZE, EPERM);
    case physdev.PHYSDEVOP_unmap_pirq:
      return refuse(v, physdev.PHYSDEV_UNMAP_PIRQ_SIZE, EPERM);
    case physdev.PHYSDEVOP_manage_pci_add:
    case physdev.PHYSDEVOP_manage_pci_remove:
      return refuse(v, physdev.PHYSDEV_MANAGE_PCI_SIZE, EPERM);
    case physdev.PHYSDEVOP_manage_pci_add_ext:
      return refuse(v, physdev.PHYSDEV_MANAGE_PCI_EXT_SIZE, EPERM);
    case physdev.PHYSDEVOP_restore_msi:
      return refuse(v, physdev.PHYSDEV_MANAGE_PCI_SIZE, ENODEV);
    case physdev.PHYSDEVOP_restore_msi_ext:
      return refuse(v, physdev.PHYSDEV_PCI_DEVICE_SIZE, ENODEV);
    case physdev.PHYSDEVOP_prepare_msix:
    case physdev.PHYSDEVOP_release_msix:
      return refuse(v, physdev.PHYSDEV_PCI_DEVICE_SIZE, EPERM);
    case physdev.PHYSDEVOP_setup_gsi:
      return refuse(v, physdev.PHYSDEV_SETUP_GSI_SIZE, EPERM);
    case physdev.PHYSDEVOP_get_free_pirq:
      return refuse(v, physdev.PHYSDEV_GET_FREE_PIRQ_SIZE, ENOSPC);
    case physdev.PHYSDEVOP_pci_mmcfg_reserved:
    case physdev.PHYSDEVOP_dbgp_op:
      return -EPERM;
    case physdev.PHYSDEVOP_pci_device_add:
    case physdev.PHYSDEVOP_pci_device_remove:
      return -EOPNOTSUPP;
    default:
      return -ENOSYS;
  }
}
