/**
 * Numbers of the KVM interface and of the few libc structures that the engine fills in by hand.
 *
 * Source: linux/include/uapi/linux/kvm.h and linux/arch/x86/include/uapi/asm/kvm.h (x86-64, KVM API version 12).
 * Offsets are in bytes; words named `*_W` are indexes of 32-bit words in the kvm_run page.
 */

export const KVM_API_VERSION = 12;

// ioctls of /dev/kvm
export const KVM_GET_API_VERSION = 0xae00;
export const KVM_CREATE_VM = 0xae01;
export const KVM_CHECK_EXTENSION = 0xae03;
export const KVM_GET_VCPU_MMAP_SIZE = 0xae04;
export const KVM_GET_SUPPORTED_CPUID = 0xc008ae05;
// ioctls of a VM
export const KVM_CREATE_VCPU = 0xae41;
export const KVM_SET_USER_MEMORY_REGION = 0x4020ae46;
export const KVM_GET_DIRTY_LOG = 0x4010ae42;
export const KVM_SET_TSS_ADDR = 0xae47;
export const KVM_SET_IDENTITY_MAP_ADDR = 0x4008ae48;
// ioctls of a vCPU
export const KVM_RUN = 0xae80;
export const KVM_GET_SREGS = 0x8138ae83;
export const KVM_SET_MSRS = 0x4008ae89;
export const KVM_SET_CPUID2 = 0x4008ae90;
export const KVM_GET_DEBUGREGS = 0x8080aea1;
export const KVM_SET_DEBUGREGS = 0x4080aea2;
export const KVM_GET_TSC_KHZ = 0xaea3;
export const KVM_SET_XCRS = 0x4188aea7;
export const KVM_GET_XSAVE = 0x9000aea4;
export const KVM_SET_XSAVE = 0x5000aea5;

export const KVM_CAP_USER_MEMORY = 3;
export const KVM_CAP_SYNC_REGS = 74;
export const KVM_CAP_IMMEDIATE_EXIT = 136;
/** KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS. */
export const SYNC_ALL = 7;
export const SYNC_REGS_AND_SREGS = 3;

export const KVM_EXIT_IO = 2;
export const KVM_EXIT_HLT = 5;
export const KVM_EXIT_MMIO = 6;
export const KVM_EXIT_SHUTDOWN = 8;
export const KVM_EXIT_FAIL_ENTRY = 9;
export const KVM_EXIT_INTERNAL_ERROR = 17;

/** struct kvm_run: byte 1, written by any thread. */
export const RUN_IMMEDIATE_EXIT = 1;
export const RUN_EXIT_REASON_W = 8 / 4;
/** The exit union; for KVM_EXIT_IO: u8 direction, u8 size, u16 port. */
export const RUN_EXIT_W = 32 / 4;
export const RUN_VALID_REGS_W = 288 / 4;
export const RUN_DIRTY_REGS_W = 296 / 4;
export const RUN_REGS_W = 304 / 4;
export const RUN_SREGS = 448;
export const RUN_SREGS_W = RUN_SREGS / 4;
/** struct kvm_vcpu_events: u8 exception.injected, nr, has_error_code, pending. */
export const RUN_EVENTS_W = 760 / 4;
export const RUN_EVENTS_EXCEPTION_MASK = 0xff0000ff;
export const RUN_EVENTS_NR_SHIFT = 8;
export const RUN_EVENTS_NR_MASK = 0xff00;

/** struct kvm_regs, in 64-bit slots: where each register of the hardware order (rax rcx rdx rbx rsp rbp rsi rdi r8..r15) stands. */
export const KVM_REGS_SLOT: readonly number[] = [0, 2, 3, 1, 6, 7, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15];
export const REGS_RSP_W = RUN_REGS_W + 6 * 2;
export const REGS_RAX_W = RUN_REGS_W;
export const REGS_RBX_W = RUN_REGS_W + 1 * 2;
export const REGS_RCX_W = RUN_REGS_W + 2 * 2;
export const REGS_RDX_W = RUN_REGS_W + 3 * 2;
export const REGS_R11_W = RUN_REGS_W + 11 * 2;
export const REGS_R15_W = RUN_REGS_W + 15 * 2;
export const REGS_RIP_W = RUN_REGS_W + 16 * 2;
export const REGS_RFLAGS_W = RUN_REGS_W + 17 * 2;

/**
 * struct kvm_segment, as six 32-bit words: base (2), limit, then
 *
 *   word 3  selector | type << 16 | present << 24
 *   word 4  dpl | db << 8 | s << 16 | l << 24
 *   word 5  g | avl << 8 | unusable << 16
 */
export const SEGMENT_WORDS = 6;
export const SEGMENT_UNUSABLE_W5 = 0x00010000;
export const SREGS_CS_W = RUN_SREGS_W;
export const SREGS_DS_W = RUN_SREGS_W + 6;
export const SREGS_ES_W = RUN_SREGS_W + 12;
export const SREGS_FS_W = RUN_SREGS_W + 18;
export const SREGS_GS_W = RUN_SREGS_W + 24;
export const SREGS_SS_W = RUN_SREGS_W + 30;
export const SREGS_TR_W = RUN_SREGS_W + 36;
export const SREGS_LDT_W = RUN_SREGS_W + 42;
/** struct kvm_dtable: u64 base, u16 limit. */
export const SREGS_GDT_W = RUN_SREGS_W + 192 / 4;
export const SREGS_IDT_W = RUN_SREGS_W + 208 / 4;
export const SREGS_CR0_W = RUN_SREGS_W + 224 / 4;
export const SREGS_CR2_W = RUN_SREGS_W + 232 / 4;
export const SREGS_CR3_W = RUN_SREGS_W + 240 / 4;
export const SREGS_CR4_W = RUN_SREGS_W + 248 / 4;
export const SREGS_EFER_W = RUN_SREGS_W + 264 / 4;

/** struct kvm_cpuid2: header, then entries of { function, index, flags, eax, ebx, ecx, edx, padding[3] }. */
export const CPUID2_HEADER_WORDS = 2;
export const CPUID_ENTRY_WORDS = 10;
export const KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1;

/** struct kvm_debugregs: db[4], dr6, dr7, flags, reserved[9]. */
export const DEBUGREGS_BYTES = 128;
/** struct kvm_xsave: an XSAVE area in the standard form, components where the host's CPU has them. */
export const XSAVE_BYTES = 4096;
/** struct kvm_xcrs: nr_xcrs, flags, { u32 xcr, reserved, u64 value }[16], padding. */
export const XCRS_BYTES = 392;

// Model-specific registers. Source: AMD64 APM vol. 2, appendix A; Intel SDM vol. 4.
export const MSR_STAR = 0xc0000081;
export const MSR_LSTAR = 0xc0000082;
export const MSR_CSTAR = 0xc0000083;
export const MSR_SYSCALL_MASK = 0xc0000084;

// Control registers. Source: Intel SDM vol. 3, 2.5.
/** PE, MP, ET, NE, WP, AM, PG: what Xen runs PV guests with. */
export const CR0_BASE = 0x80050033;
export const CR0_TS = 8;
export const CR4_TSD = 4;
export const CR4_DE = 8;
/** PAE, OSFXSR, OSXMMEXCPT. */
export const CR4_BASE = 0x620;
export const CR4_FSGSBASE = 0x10000;
export const CR4_OSXSAVE = 0x40000;
/** SCE, LME, LMA, NXE. */
export const EFER_BASE = 0xd01;

// RFLAGS. Source: Intel SDM vol. 1, 3.4.3.
/** IF and the bit that is always 1. */
export const RFLAGS_FORCED_ON = 0x202;
/** IOPL, VM, VIF, VIP: never set while guest code runs. */
export const RFLAGS_FORCED_OFF = 0x1a3000;
/** TF, IF, DF, IOPL, NT, AC: cleared by SYSCALL. */
export const SYSCALL_MASK = 0x47700;

/** Flag of a memory slot: stores of the guest are logged. */
export const KVM_MEM_LOG_DIRTY_PAGES = 1;

// libc. Source: linux/include/uapi/asm-generic/{fcntl,mman-common,errno-base}.h, time.h, signal.h.
export const O_RDWR = 2;
export const O_CLOEXEC = 0x80000;
export const PROT_READ_WRITE = 3;
export const MAP_SHARED = 1;
export const EPERM = 1;
export const ENOENT = 2;
export const EINTR = 4;
export const EAGAIN = 11;
export const EACCES = 13;
export const CLOCK_MONOTONIC = 1;
export const TIMER_ABSTIME = 1;
export const SIGEV_THREAD_ID = 4;
export const SA_RESTART = 0x10000000;
/** A real-time signal that neither libc nor Node uses. */
export const KICK_SIGNAL = 40;
