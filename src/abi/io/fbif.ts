/**
 * The framebuffer interface: a page that both ends share, with the screen's geometry, the frames that hold it, and two rings of
 * events. Indices run freely modulo 2^32; slots are taken modulo their number. Source: xen/include/public/io/fbif.h.
 */

/** struct xenfb_page. */
export const XENFB_PAGE = {
  in_cons: 0x00, // u32 [GST]
  in_prod: 0x04, // u32 [back]
  out_cons: 0x08, // u32 [back]
  out_prod: 0x0c, // u32 [GST]
  width: 0x10, // s32 [GST], pixels
  height: 0x14, // s32 [GST], pixels
  line_length: 0x18, // u32 [GST], bytes
  mem_length: 0x1c, // u32 [GST], bytes
  depth: 0x20, // u8 [GST], bits of a pixel
  /** u64[] [GST]: MFNs of pages that hold the MFNs of the framebuffer's pages, 512 each. */
  pd: 0x28,
} as const;
/** Frames that one page of the directory names. */
export const XENFB_FRAMES_PER_DIRECTORY = 512;

export const XENFB_EVENT_SIZE = 40;
/** Backend to frontend. */
export const XENFB_IN_RING = 1024;
export const XENFB_IN_RING_LEN = 25;
/** Frontend to backend. */
export const XENFB_OUT_RING = 2048;
export const XENFB_OUT_RING_LEN = 51;

/** First byte of an event from the frontend. */
export const XENFB_TYPE_UPDATE = 2;
export const XENFB_TYPE_RESIZE = 3;

/** s32 each: part of the screen that has changed. */
export const XENFB_UPDATE = { x: 4, y: 8, width: 12, height: 16 } as const;
/** s32 each: a new geometry, beginning at a byte offset of the framebuffer. */
export const XENFB_RESIZE = { width: 4, height: 8, stride: 12, depth: 16, offset: 20 } as const;
