/**
 * The block interface: requests and responses in the ring, as a 64-bit x86 guest lays them out. Sectors are of 512 bytes
 * whatever the disk's sector size. Source: xen/include/public/io/blkif.h.
 */

export const BLKIF_OP_READ = 0;
export const BLKIF_OP_WRITE = 1;
/** All before it is on disk before its data is written, which is on disk before anything after it. */
export const BLKIF_OP_WRITE_BARRIER = 2;
/** What has completed before is on disk when this completes. */
export const BLKIF_OP_FLUSH_DISKCACHE = 3;
export const BLKIF_OP_DISCARD = 5;
/** A read or write whose segments stand in pages of their own. */
export const BLKIF_OP_INDIRECT = 6;

export const BLKIF_RSP_OKAY = 0;
export const BLKIF_RSP_ERROR = -1;
export const BLKIF_RSP_EOPNOTSUPP = -2;

/** Bit of a discard's `flag`: overwrite, so that nobody can read it again. */
export const BLKIF_DISCARD_SECURE = 1;

export const BLKIF_MAX_SEGMENTS_PER_REQUEST = 11;
export const BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST = 8;
/** Segments that one indirect page holds. */
export const SEGS_PER_INDIRECT_FRAME = 512;

export const SECTOR_SIZE = 512;
export const SECTORS_PER_PAGE = 8;

/** Read, write, barrier, flush. [GST] writes all. */
export const BLKIF_REQUEST = {
  SIZE: 112,
  /** u8 */
  operation: 0,
  /** u8 */
  nr_segments: 1,
  /** u16: the virtual device, which the ring has said already. */
  handle: 2,
  /** u64: comes back in the response. */
  id: 8,
  /** u64 */
  sector_number: 16,
  seg: 24,
} as const;

/** Also in indirect pages. The data are the sectors first_sect to last_sect of the granted page. */
export const BLKIF_REQUEST_SEGMENT = {
  SIZE: 8,
  /** u32 */
  gref: 0,
  /** u8 */
  first_sect: 4,
  /** u8 */
  last_sect: 5,
} as const;

export const BLKIF_REQUEST_DISCARD = {
  operation: 0,
  /** u8 */
  flag: 1,
  handle: 2,
  id: 8,
  sector_number: 16,
  /** u64 */
  nr_sectors: 24,
} as const;

export const BLKIF_REQUEST_INDIRECT = {
  operation: 0,
  /** u8: BLKIF_OP_READ or BLKIF_OP_WRITE. */
  indirect_op: 1,
  /** u16 */
  nr_segments: 2,
  id: 8,
  sector_number: 16,
  /** u16 */
  handle: 24,
  /** u32[BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST] */
  indirect_grefs: 28,
} as const;

/** [back] writes all. */
export const BLKIF_RESPONSE = {
  SIZE: 16,
  /** u64 */
  id: 0,
  /** u8: the request's; of an indirect one its indirect_op. */
  operation: 8,
  /** s16 */
  status: 10,
} as const;

/** Bits of the backend's `info` node. */
export const VDISK_CDROM = 1;
export const VDISK_REMOVABLE = 2;
export const VDISK_READONLY = 4;
