/**
 * The hypercall page: 128 stubs of 32 bytes; the guest calls `page + 32 * number`. It is filled before the domain runs
 * when the kernel has the ELF note HYPERCALL_PAGE, or at run time when the guest writes the MSR that CPUID names.
 * Debian's kernels need neither: they execute SYSCALL themselves.
 *
 *   stub n      push %rcx; push %r11; mov $n, %eax; syscall; pop %r11; pop %rcx; ret
 *   stub iret   push %rcx; push %r11; push %rax; mov $23, %eax; syscall          (does not come back)
 *
 * SYSCALL clobbers RCX and R11, so the stub keeps them. iret finds the three pushed words below the frame that it pops.
 * Source: xen/arch/x86/pv/hypercall.c, pv_ring3_init_hypercall_page() (behaviour); arch-x86/xen-x86_64.h,
 * struct iret_context.
 */

const PAGE_SIZE = 4096;
const STUB_SIZE = 32;
/** Source: xen/include/public/xen.h, __HYPERVISOR_iret. */
const HYPERVISOR_IRET = 23;
const INT3 = 0xcc;

/**
 * Fills the first page of `bytes` with the stubs; what they leave over becomes INT3.
 *
 * @throws RangeError when there is less than a page
 */
export function fillHypercallPage(bytes: Uint8Array): void {
  if (bytes.length < PAGE_SIZE) throw new RangeError(`hypercall page: ${bytes.length} bytes, expected ${PAGE_SIZE}`);
  bytes.fill(INT3, 0, PAGE_SIZE);
  for (let number = 0; number < PAGE_SIZE / STUB_SIZE; number++) {
    const stub =
      number === HYPERVISOR_IRET
        ? [0x51, 0x41, 0x53, 0x50, 0xb8, number, 0, 0, 0, 0x0f, 0x05]
        : [0x51, 0x41, 0x53, 0xb8, number, 0, 0, 0, 0x0f, 0x05, 0x41, 0x5b, 0x59, 0xc3];
    bytes.set(stub, number * STUB_SIZE);
  }
}
