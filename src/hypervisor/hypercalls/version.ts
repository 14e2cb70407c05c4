/**
 * xen_version: which Xen this is. Source: xen/include/public/version.h; xen/common/kernel.c (behaviour).
 *
 * Linux calls XENVER_version after it unmasked events with one pending: a hypercall that does nothing, and after which the pending
 * event is delivered. It is therefore on a hot path.
 */

import { EFAULT, EINVAL, ENOSYS, EPERM } from '../../abi/errno.ts';
import * as xenver from '../../abi/version.ts';
import { PAGE_SIZE } from '../../machine/memory.ts';
import { DOMAIN } from '../domain.ts';
import type { Vcpu } from '../vcpu.ts';

/** The Xen whose interface this is. */
export const XEN_MAJOR = 4;
export const XEN_MINOR = 17;
export const XEN_EXTRAVERSION = '-domus';
export const COMPILER = 'Node.js';
export const COMPILE_BY = 'domus';
export const COMPILE_DOMAIN = 'domus';
export const COMPILE_DATE = 'at run time';
export const XEN_CAPABILITIES = 'xen-3.0-x86_64 ';
/** What an unprivileged domain reads instead of what is not for it. Source: xen/common/version.c, xen_deny. */
const DENIED = '<denied>';

/** As Xen gives a PV DomU; bit 17 because a frame number that a guest names is the machine's. */
const FEATURES =
  (1 << xenver.XENFEAT_pae_pgdir_above_4gb) |
  (1 << xenver.XENFEAT_mmu_pt_update_preserve_ad) |
  (1 << xenver.XENFEAT_highmem_assist) |
  (1 << xenver.XENFEAT_gnttab_map_avail_bits) |
  (1 << xenver.XENFEAT_memory_op_vnode_supported) |
  (1 << xenver.XENFEAT_direct_mapped);

/** ASCII text in a field of `size` bytes, NUL-filled. */
function put(bytes: Uint8Array, text: string, at: number, size: number): void {
  for (let i = 0; i < text.length && i < size - 1; i++) bytes[at + i] = text.charCodeAt(i);
}

function field(text: string, size: number): Uint8Array {
  const bytes = new Uint8Array(size);
  put(bytes, text, 0, size);
  return bytes;
}

const extraversion = field(XEN_EXTRAVERSION, xenver.XEN_EXTRAVERSION_LEN);
const capabilities = field(XEN_CAPABILITIES, xenver.XEN_CAPABILITIES_INFO_LEN);
const changeset = field('', xenver.XEN_CHANGESET_INFO_LEN);
const deniedCommandline = field(DENIED, DENIED.length + 1);
const compileInfo = new Uint8Array(xenver.XEN_COMPILE_INFO.SIZE);
put(compileInfo, COMPILER, xenver.XEN_COMPILE_INFO.compiler, 64);
put(compileInfo, COMPILE_BY, xenver.XEN_COMPILE_INFO.compile_by, 16);
put(compileInfo, COMPILE_DOMAIN, xenver.XEN_COMPILE_INFO.compile_domain, 32);
put(compileInfo, COMPILE_DATE, xenver.XEN_COMPILE_INFO.compile_date, 32);

/** (cmd, argument *) */
export function xenVersion(v: Vcpu): number {
  const access = v.access;
  const argLo = v.args[2];
  const argHi = v.args[3];
  switch (v.args[0]) {
    case xenver.XENVER_version:
      return (XEN_MAJOR << 16) | XEN_MINOR;
    case xenver.XENVER_extraversion:
      return access.copyOut(argLo, argHi, extraversion, 0, extraversion.length) ? 0 : -EFAULT;
    case xenver.XENVER_compile_info:
      return access.copyOut(argLo, argHi, compileInfo, 0, compileInfo.length) ? 0 : -EFAULT;
    case xenver.XENVER_capabilities:
      return access.copyOut(argLo, argHi, capabilities, 0, capabilities.length) ? 0 : -EFAULT;
    case xenver.XENVER_changeset:
      return access.copyOut(argLo, argHi, changeset, 0, changeset.length) ? 0 : -EFAULT;
    case xenver.XENVER_platform_parameters:
      return access.writeU64(argLo, argHi, v.engine.facts.m2pVaLo, v.engine.facts.m2pVaHi) ? 0 : -EFAULT;
    case xenver.XENVER_get_features: {
      if (!access.copyIn(argLo, argHi, xenver.XEN_FEATURE_INFO.SIZE)) return -EFAULT;
      if (access.words[0] !== 0) return -EINVAL;
      return access.writeU64(argLo, argHi, 0, FEATURES) ? 0 : -EFAULT;
    }
    case xenver.XENVER_pagesize:
      return (argLo | argHi) === 0 ? PAGE_SIZE : -EINVAL;
    case xenver.XENVER_guest_handle:
      return access.copyOut(argLo, argHi, v.domain.u8, DOMAIN.uuid, xenver.XEN_DOMAIN_HANDLE_LEN) ? 0 : -EFAULT;
    case xenver.XENVER_commandline:
      return access.copyOut(argLo, argHi, deniedCommandline, 0, deniedCommandline.length) ? 0 : -EFAULT;
    case xenver.XENVER_build_id:
      return -EPERM;
    default:
      return -ENOSYS;
  }
}
