/** Source: xen/include/public/xen.h, "Commands to HYPERVISOR_console_io()". */
export const CONSOLEIO_write = 0;
export const CONSOLEIO_read = 1;
