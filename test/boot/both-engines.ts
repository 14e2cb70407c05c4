/**
 * For the kernel's command line: programs that are linked with glibc keep to what both engines have, where KVM cannot trap CPUID. A Linux kernel hands what it does
 * not know to the first process, as its environment.
 *
 * glibc 2.36 takes these names of AVX-512, and chooses nothing by the others. The dynamic linker is to have no XSAVE area in its hands when the guest moves, since that has
 * the components of the CPU that it has found. Source: glibc 2.36 sysdeps/x86/cpu-tunables.c, sysdeps/x86_64/dl-trampoline.h.
 */
const PARTS = ['F', 'VL', 'BW', 'CD', 'DQ'];
export const KEEPS_TO_BOTH = `LD_BIND_NOW=1 GLIBC_TUNABLES=glibc.cpu.hwcaps=${PARTS.map((part) => `-AVX512${part}`).join(',')}`;
