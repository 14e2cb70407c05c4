/** Value of a frontend's `protocol` node: how it lays out structures in its rings. Source: xen/include/public/io/protocols.h. */
export const XEN_IO_PROTO_ABI_X86_32 = 'x86_32-abi';
export const XEN_IO_PROTO_ABI_X86_64 = 'x86_64-abi';
