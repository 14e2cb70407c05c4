/** vcpu_op. Source: xen/include/public/vcpu.h; xen/common/domain.c, do_vcpu_op; xen/arch/x86/domain.c, arch_set_info_guest (behaviour). */

import { EBUSY, EEXIST, EFAULT, EINVAL, ENOENT, ENOSYS } from '../../abi/errno.ts';
import * as op from '../../abi/vcpu.ts';
import { SHUTDOWN_poweroff } from '../../abi/xen.ts';
import { NO_ROOT, VCPU, VCPU_STATE_DOWN, VCPU_STATE_UP, type VcpuBlock } from '../../machine/vcpu-block.ts';
import { DOMAIN } from '../domain.ts';
import { notifyVcpu } from '../event-channels.ts';
import { markTable, ramFrame } from '../mmu.ts';
import { runstateInfo, writeRunstate, writeTimeInfo } from '../time.ts';
import type { Vcpu } from '../vcpu.ts';
import { addressOkay } from './guest-handle.ts';

/** cpu_user_regs offsets in the order of VCPU.gpr. */
const R = op.CPU_USER_REGS;
const GPR_OFFSETS = [
  R.rax,
  R.rcx,
  R.rdx,
  R.rbx,
  R.rsp,
  R.rbp,
  R.rsi,
  R.rdi,
  R.r8,
  R.r9,
  R.r10,
  R.r11,
  R.r12,
  R.r13,
  R.r14,
  R.r15,
];

/** Shortest period of VCPUOP_set_periodic_timer, ns. Source: vcpu.h. */
const PERIOD_MIN_NS = 1_000_000;

/** (cmd, vcpuid, argument *) */
export function vcpuOp(v: Vcpu): number {
  const cmd = v.args[0];
  const id = v.args[2];
  const argLo = v.args[4];
  const argHi = v.args[5];
  if (id >= v.domain.vcpus.length) return -ENOENT;
  const target = v.domain.vcpus[id];
  const access = v.access;
  switch (cmd) {
    case op.VCPUOP_initialise:
      return initialise(v, target, argLo, argHi);
    case op.VCPUOP_up: {
      if (target.u32[VCPU.initialised >> 2] === 0) return -EINVAL;
      if (Atomics.exchange(target.i32, VCPU.state >> 2, VCPU_STATE_UP) === VCPU_STATE_DOWN)
        Atomics.add(v.domain.i32, DOMAIN.vcpusUp >> 2, 1);
      notifyVcpu(v.domain, id, v.kicker);
      return 0;
    }
    case op.VCPUOP_down:
      if (Atomics.exchange(target.i32, VCPU.state >> 2, VCPU_STATE_DOWN) === VCPU_STATE_UP) {
        if (Atomics.sub(v.domain.i32, DOMAIN.vcpusUp >> 2, 1) === 1) v.domain.shutdown(SHUTDOWN_poweroff);
      }
      if (id !== v.id) notifyVcpu(v.domain, id, v.kicker);
      return 0;
    case op.VCPUOP_is_up:
      return Atomics.load(target.i32, VCPU.state >> 2) === VCPU_STATE_UP ? 1 : 0;
    case op.VCPUOP_get_runstate_info:
      if (id !== v.id) return -EINVAL;
      return access.copyOut(argLo, argHi, runstateInfo(v), 0, 48) ? 0 : -EFAULT;
    case op.VCPUOP_register_runstate_memory_area: {
      if (!access.readU64(argLo, argHi)) return -EFAULT;
      target.u32[VCPU.runstateVa >> 2] = access.lo;
      target.u32[(VCPU.runstateVa >> 2) + 1] = access.hi;
      if (id === v.id) writeRunstate(v);
      return 0;
    }
    case op.VCPUOP_set_periodic_timer: {
      if (!access.readU64(argLo, argHi)) return -EFAULT;
      const period = access.hi * 4294967296 + access.lo;
      if (period < PERIOD_MIN_NS) return -EINVAL;
      if (id !== v.id) return -EINVAL;
      target.f64[VCPU.periodicNs >> 3] = period;
      target.f64[VCPU.periodicNextNs >> 3] = v.systemTimeNs() + period;
      return 0;
    }
    case op.VCPUOP_stop_periodic_timer:
      target.f64[VCPU.periodicNs >> 3] = 0;
      return 0;
    case op.VCPUOP_set_singleshot_timer: {
      if (id !== v.id) return -EINVAL;
      if (!access.copyIn(argLo, argHi, 16)) return -EFAULT;
      target.f64[VCPU.singleshotNs >> 3] = access.words[1] * 4294967296 + access.words[0] || 1;
      return 0;
    }
    case op.VCPUOP_stop_singleshot_timer:
      if (id !== v.id) return -EINVAL;
      target.f64[VCPU.singleshotNs >> 3] = 0;
      return 0;
    case op.VCPUOP_register_vcpu_info:
      return registerVcpuInfo(v, target, argLo, argHi);
    case op.VCPUOP_send_nmi:
      Atomics.store(target.u32, VCPU.nmiPending >> 2, 1);
      if (id !== v.id) notifyVcpu(v.domain, id, v.kicker);
      return 0;
    case op.VCPUOP_get_physid:
      return -EINVAL;
    case op.VCPUOP_register_vcpu_time_memory_area: {
      if (!access.readU64(argLo, argHi)) return -EFAULT;
      target.u32[VCPU.timeVa >> 2] = access.lo;
      target.u32[(VCPU.timeVa >> 2) + 1] = access.hi;
      if (id === v.id) writeTimeInfo(v);
      return 0;
    }
    default:
      return -ENOSYS;
  }
}

/** struct vcpu_register_vcpu_info { u64 mfn; u32 offset; u32 rsvd; } */
function registerVcpuInfo(v: Vcpu, target: VcpuBlock, argLo: number, argHi: number): number {
  const access = v.access;
  if (!access.copyIn(argLo, argHi, 16)) return -EFAULT;
  const mfn = access.words[1] * 4294967296 + access.words[0];
  const offset = access.words[2];
  if (offset > 4096 - 64 || (offset & 7) !== 0) return -EINVAL;
  if (target.u32[VCPU.vcpuInfoRegistered >> 2] !== 0) return -EINVAL;
  if (target !== v.block && Atomics.load(target.i32, VCPU.state >> 2) === VCPU_STATE_UP) return -EBUSY;
  const frame = ramFrame(v, mfn);
  if (frame < 0) return -EINVAL;
  const from = target.u32[VCPU.vcpuInfo >> 2];
  const to = frame * 4096 + offset;
  const u8 = v.machine.u8;
  u8.copyWithin(to, from, from + 64);
  target.u32[VCPU.vcpuInfoRegistered >> 2] = 1;
  Atomics.store(target.u32, VCPU.vcpuInfo >> 2, to);
  // Events that arrived at the old place in the meantime: look at everything once. Source: xen/common/domain.c, map_vcpu_info.
  v.machine.u32[(to + 8) >>> 2] = 0xffffffff;
  v.machine.u32[(to + 12) >>> 2] = 0xffffffff;
  Atomics.store(u8, to, 1);
  if (target === v.block) writeTimeInfo(v);
  else writeTimeInfoOf(v, target);
  return 0;
}

function writeTimeInfoOf(v: Vcpu, target: VcpuBlock): void {
  const to = target.u32[VCPU.vcpuInfo >> 2] + 0x20;
  const from = v.block.u32[VCPU.vcpuInfo >> 2] + 0x20;
  v.machine.u8.copyWithin(to, from, from + 32);
}

const canonical = (hi: number): boolean => hi >>> 15 === 0 || hi >>> 15 === 0x1ffff;

function initialise(v: Vcpu, target: VcpuBlock, argLo: number, argHi: number): number {
  const C = op.VCPU_GUEST_CONTEXT;
  const access = v.access;
  if (!access.copyIn(argLo, argHi, C.SIZE)) return -EFAULT;
  const bytes = access.bytes.slice(0, C.SIZE);
  const w = new Uint32Array(bytes.buffer);
  v.domain.lock();
  const rc = target.u32[VCPU.initialised >> 2] !== 0 ? -EEXIST : setContext(v, target, bytes, w);
  v.domain.unlock();
  return rc;
}

function setContext(v: Vcpu, target: VcpuBlock, bytes: Uint8Array, w: Uint32Array): number {
  const C = op.VCPU_GUEST_CONTEXT;
  const u = target.u32;
  const copy = (to: number, from: number): void => {
    u[to >> 2] = w[from >> 2];
    u[(to >> 2) + 1] = w[(from >> 2) + 1];
  };
  const mfnOf = (at: number): number => w[(at >> 2) + 1] * 0x100000 + (w[at >> 2] >>> 12);
  const gdtEntries = w[C.gdt_ents >> 2];
  const ldtEntries = w[C.ldt_ents >> 2];
  if (gdtEntries > 14 * 512 || ldtEntries > 8192) return -EINVAL;
  if ((w[C.ldt_base >> 2] & 0xfff) !== 0 || !addressOkay(w[(C.ldt_base >> 2) + 1])) return -EINVAL;
  for (const at of [
    C.event_callback_eip,
    C.failsafe_callback_eip,
    C.syscall_callback_eip,
    C.kernel_sp,
    C.fs_base,
    C.gs_base_kernel,
    C.gs_base_user,
  ])
    if (!canonical(w[(at >> 2) + 1])) return -EINVAL;
  if (!canonical(w[((C.user_regs + R.rip) >> 2) + 1])) return -EINVAL;
  const gdtFrames: number[] = [];
  for (let i = 0; i < Math.ceil(gdtEntries / 512); i++) {
    const at = (C.gdt_frames >> 2) + i * 2;
    const frame = ramFrame(v, w[at + 1] * 4294967296 + w[at]);
    if (frame < 0) return -EINVAL;
    gdtFrames.push(frame);
  }
  const root = ramFrame(v, mfnOf(C.ctrlreg + 3 * 8));
  if (root < 0 || markTable(v, root, 4) !== 0) return -EINVAL;
  let userRoot = NO_ROOT;
  if ((w[(C.ctrlreg + 8) >> 2] | w[((C.ctrlreg + 8) >> 2) + 1]) !== 0) {
    userRoot = ramFrame(v, mfnOf(C.ctrlreg + 8));
    if (userRoot < 0 || markTable(v, userRoot, 4) !== 0) return -EINVAL;
    v.engine.prepareRoot(userRoot * 4096);
  }
  v.engine.prepareRoot(root * 4096);

  for (let i = 0; i < 16; i++) copy(VCPU.gpr + i * 8, C.user_regs + GPR_OFFSETS[i]);
  copy(VCPU.rip, C.user_regs + R.rip);
  u[VCPU.rflags >> 2] = (w[(C.user_regs + R.rflags) >> 2] & 0x244cd5) | 0x202;
  u[(VCPU.rflags >> 2) + 1] = 0;
  const selector = (offset: number): number => w[(C.user_regs + offset) >> 2] & 0xffff;
  u[VCPU.cs >> 2] = selector(R.cs) | 3;
  u[VCPU.ss >> 2] = selector(R.ss) | 3;
  u[VCPU.ds >> 2] = selector(R.ds);
  u[VCPU.es >> 2] = selector(R.es);
  u[VCPU.fs >> 2] = selector(R.fs);
  u[VCPU.gs >> 2] = selector(R.gs);
  const kernel = (w[C.flags >> 2] & op.VGCF_in_kernel) !== 0;
  if (!kernel && userRoot === NO_ROOT) return -EINVAL;
  u[VCPU.userMode >> 2] = kernel ? 0 : 1;
  copy(VCPU.fsBase, C.fs_base);
  copy(kernel ? VCPU.gsBase : VCPU.gsBaseInactive, C.gs_base_kernel);
  copy(kernel ? VCPU.gsBaseInactive : VCPU.gsBase, C.gs_base_user);
  u[VCPU.kernelRoot >> 2] = root;
  u[VCPU.userRoot >> 2] = userRoot;
  u[VCPU.kernelSs >> 2] = (w[C.kernel_ss >> 2] & 0xffff) | 3;
  copy(VCPU.kernelSp, C.kernel_sp);
  copy(VCPU.ldtBase, C.ldt_base);
  u[VCPU.ldtEntries >> 2] = ldtEntries;
  u[VCPU.gdtEntries >> 2] = gdtEntries;
  gdtFrames.forEach((frame, i) => {
    u[(VCPU.gdtFrames >> 2) + i] = frame;
  });
  copy(VCPU.eventCallback, C.event_callback_eip);
  copy(VCPU.failsafeCallback, C.failsafe_callback_eip);
  copy(VCPU.syscallCallback, C.syscall_callback_eip);
  u[VCPU.callbackFlags >> 2] = (w[C.flags >> 2] & op.VGCF_syscall_disables_events) !== 0 ? 1 : 0;
  for (let i = 0; i < 8; i++) copy(VCPU.dr + i * 8, C.debugreg + i * 8);
  u[(VCPU.dr >> 2) + 12] = 0xffff0ff0;
  u[(VCPU.dr >> 2) + 14] = 0x400;
  u[VCPU.cr4 >> 2] = 0x660;
  u[VCPU.xcr0 >> 2] = 1;
  u[VCPU.iopl >> 2] = (w[(C.user_regs + R.rflags) >> 2] >>> 12) & 3;
  const traps = VCPU.traps >> 2;
  for (let i = 0; i < 256; i++) {
    const at = C.trap_ctxt + i * 16;
    u[traps + i * 4] = w[(at + 8) >> 2];
    u[traps + i * 4 + 1] = w[((at + 8) >> 2) + 1];
    u[traps + i * 4 + 2] = bytes[at + 1];
    u[traps + i * 4 + 3] = bytes[at + 2] | (bytes[at + 3] << 8);
  }
  u[VCPU.initialised >> 2] = 1;
  return 0;
}
