import { expect, test } from 'vitest';
import * as blkif from './blkif.ts';
import { ringSlots } from './ring.ts';

test('requests lie as the C structures of a 64-bit x86 guest do', () => {
  const { BLKIF_REQUEST: R, BLKIF_REQUEST_DISCARD: D, BLKIF_REQUEST_INDIRECT: I, BLKIF_REQUEST_SEGMENT: S } = blkif;
  // u8 operation, u8 nr_segments, u16 handle, u64 id (aligned), u64 sector_number, seg[11]
  expect([R.operation, R.nr_segments, R.handle, R.id, R.sector_number, R.seg]).toEqual([0, 1, 2, 8, 16, 24]);
  expect(R.SIZE).toBe(R.seg + blkif.BLKIF_MAX_SEGMENTS_PER_REQUEST * S.SIZE);
  // u8 operation, u8 flag, u16 handle, u64 id, u64 sector_number, u64 nr_sectors
  expect([D.operation, D.flag, D.handle, D.id, D.sector_number, D.nr_sectors]).toEqual([0, 1, 2, 8, 16, 24]);
  // u8 operation, u8 indirect_op, u16 nr_segments, u64 id, u64 sector_number, u16 handle, u32 indirect_grefs[8]
  expect([I.operation, I.indirect_op, I.nr_segments, I.id, I.sector_number, I.handle, I.indirect_grefs]).toEqual([
    0, 1, 2, 8, 16, 24, 28,
  ]);
  expect(I.indirect_grefs + 4 * blkif.BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST).toBeLessThanOrEqual(R.SIZE);
  expect(S.SIZE * blkif.SEGS_PER_INDIRECT_FRAME).toBe(4096);
});

test('a ring of one page has 32 slots of a block request, and each more page of order doubles them', () => {
  expect([0, 1, 2, 3, 4].map((order) => ringSlots(4096 << order, blkif.BLKIF_REQUEST.SIZE))).toEqual([
    32, 64, 128, 256, 512,
  ]);
  // Source: netif.h: 12 bytes for transmission, 8 for reception.
  expect([ringSlots(4096, 12), ringSlots(4096, 8)]).toEqual([256, 256]);
});
