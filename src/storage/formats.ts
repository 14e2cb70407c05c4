/** Formats of disk images, by name: those that are opened here, and those that QEMU's tools are asked for. */

export const OWN_FORMATS = ['raw', 'qcow2', 'vhd'] as const;
export type DiskFormat = (typeof OWN_FORMATS)[number];

/** Names as qemu-img has them. */
export const QEMU_FORMATS = ['qcow', 'qed', 'vmdk', 'vdi', 'vhdx', 'parallels'] as const;
export type QemuFormat = (typeof QEMU_FORMATS)[number];

export function isQemuFormat(format: string): format is QemuFormat {
  return (QEMU_FORMATS as readonly string[]).includes(format);
}
