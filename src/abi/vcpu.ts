/** Source: xen/include/public/vcpu.h. */
export const VCPUOP_initialise = 0;
export const VCPUOP_up = 1;
export const VCPUOP_down = 2;
export const VCPUOP_is_up = 3;
export const VCPUOP_get_runstate_info = 4;
export const VCPUOP_register_runstate_memory_area = 5;
export const VCPUOP_set_periodic_timer = 6;
export const VCPUOP_stop_periodic_timer = 7;
export const VCPUOP_set_singleshot_timer = 8;
export const VCPUOP_stop_singleshot_timer = 9;
export const VCPUOP_register_vcpu_info = 10;
export const VCPUOP_send_nmi = 11;
export const VCPUOP_get_physid = 12;
export const VCPUOP_register_vcpu_time_memory_area = 13;

/** struct vcpu_guest_context, 64-bit. Source: xen/include/public/arch-x86/xen.h; offsets by compiling the header. */
export const VCPU_GUEST_CONTEXT = {
  SIZE: 0x1430,
  flags: 0x200,
  user_regs: 0x208,
  trap_ctxt: 0x2d0,
  ldt_base: 0x12d0,
  ldt_ents: 0x12d8,
  gdt_frames: 0x12e0,
  gdt_ents: 0x1360,
  kernel_ss: 0x1368,
  kernel_sp: 0x1370,
  ctrlreg: 0x1378,
  debugreg: 0x13b8,
  event_callback_eip: 0x13f8,
  failsafe_callback_eip: 0x1400,
  syscall_callback_eip: 0x1408,
  vm_assist: 0x1410,
  fs_base: 0x1418,
  gs_base_kernel: 0x1420,
  gs_base_user: 0x1428,
} as const;

/** struct cpu_user_regs, 64-bit. Source: xen/include/public/arch-x86/xen-x86_64.h. */
export const CPU_USER_REGS = {
  r15: 0x00,
  r14: 0x08,
  r13: 0x10,
  r12: 0x18,
  rbp: 0x20,
  rbx: 0x28,
  r11: 0x30,
  r10: 0x38,
  r9: 0x40,
  r8: 0x48,
  rax: 0x50,
  rcx: 0x58,
  rdx: 0x60,
  rsi: 0x68,
  rdi: 0x70,
  rip: 0x80,
  cs: 0x88,
  rflags: 0x90,
  rsp: 0x98,
  ss: 0xa0,
  es: 0xa8,
  ds: 0xb0,
  fs: 0xb8,
  gs: 0xc0,
} as const;

export const VGCF_in_kernel = 4;
export const VGCF_syscall_disables_events = 0x10;
export const VGCF_online = 0x20;
