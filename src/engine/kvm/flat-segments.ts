/** Segments in kvm_run that no descriptor table is asked for: Xen's flat ones, the engine's own for ring 0, and null. */

import { SEGMENT_UNUSABLE_W5, SREGS_CS_W, SREGS_SS_W } from './abi.ts';
import { FLAT_CS32, FLAT_CS64, FLAT_SS, RING0_CS, RING0_SS } from './hypervisor-area.ts';

/** Words 3 and 4 of struct kvm_segment (see abi.ts) without selector. */
const CODE_W3 = 0x010b0000;
const DATA_W3 = 0x01030000;
const CODE64_DPL3_W4 = 0x01010003;
const FLAT32_DPL3_W4 = 0x00010103;
const CODE64_DPL0_W4 = 0x01010000;
const DATA_DPL0_W4 = 0x00010100;

/** `w` is the segment's first word in kvm_run. */
function writeSegment(r: Uint32Array, w: number, selector: number, w3: number, w4: number, w5: number): void {
  r[w] = 0;
  r[w + 1] = 0;
  r[w + 2] = 0xffffffff;
  r[w + 3] = w3 | selector;
  r[w + 4] = w4;
  r[w + 5] = w5;
}

export function writeFlatCode64(r: Uint32Array): void {
  writeSegment(r, SREGS_CS_W, FLAT_CS64, CODE_W3, CODE64_DPL3_W4, 1);
}

export function writeFlatCode32(r: Uint32Array): void {
  writeSegment(r, SREGS_CS_W, FLAT_CS32, CODE_W3, FLAT32_DPL3_W4, 1);
}

export function writeFlatData(r: Uint32Array, w: number): void {
  writeSegment(r, w, FLAT_SS, DATA_W3, FLAT32_DPL3_W4, 1);
}

/** With a selector of 0 to 3. */
export function writeNullSegment(r: Uint32Array, w: number, selector: number): void {
  writeSegment(r, w, selector, 0, 3, SEGMENT_UNUSABLE_W5);
}

export function writeRing0Segments(r: Uint32Array): void {
  writeSegment(r, SREGS_CS_W, RING0_CS, CODE_W3, CODE64_DPL0_W4, 1);
  writeSegment(r, SREGS_SS_W, RING0_SS, DATA_W3, DATA_DPL0_W4, 1);
}
