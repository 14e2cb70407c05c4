/** Reads the guest's page tables as the CPU would, for the few things that the engine must read in the guest's address space. */

import { MFN_BASE } from '../../machine/memory.ts';
import type { VcpuViews } from './vcpu-views.ts';

/** Frame index in memory 0 that a root maps a VA to by 4 KiB pages, or -1. */
export function walk(views: VcpuViews, root: number, vaLo: number, vaHi: number): number {
  const mem = views.memory;
  let frame = root;
  for (let level = 3; level >= 0; level--) {
    if (frame < 0 || frame >= views.framesMax) return -1;
    const index =
      level === 3
        ? (vaHi >>> 7) & 511
        : level === 2
          ? ((vaHi << 2) | (vaLo >>> 30)) & 511
          : (vaLo >>> (12 + 9 * level)) & 511;
    const word = frame * 1024 + index * 2;
    const lo = mem[word];
    if ((lo & 1) === 0) return -1;
    frame = ((lo >>> 12) | ((mem[word + 1] & 0xfffff) << 20)) - MFN_BASE;
    if (level !== 0 && (lo & 0x80) !== 0) return -1;
  }
  return frame >= 0 && frame < views.framesMax ? frame : -1;
}
