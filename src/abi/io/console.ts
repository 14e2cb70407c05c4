/** The console ring page. Source: xen/include/public/io/console.h, struct xencons_interface. */
export const XENCONS = {
  in: 0x000, // char[1024]: [back] writes, [GST] reads
  out: 0x400, // char[2048]: [GST] writes, [back] reads
  in_cons: 0xc00, // [GST]
  in_prod: 0xc04, // [back]
  out_cons: 0xc08, // [back]
  out_prod: 0xc0c, // [GST]
  connection: 0xc10, // u8 [back]: 0 = connected
} as const;
export const XENCONS_IN_SIZE = 1024;
export const XENCONS_OUT_SIZE = 2048;
