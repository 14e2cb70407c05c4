/**
 * The keyboard and pointer interface: a page that both ends share, with two rings of events.
 * Source: xen/include/public/io/kbdif.h.
 */

/** struct xenkbd_page. */
export const XENKBD_PAGE = {
  in_cons: 0x00, // u32 [GST]
  in_prod: 0x04, // u32 [back]
  out_cons: 0x08, // u32 [back]
  out_prod: 0x0c, // u32 [GST]
} as const;

export const XENKBD_EVENT_SIZE = 40;
/** Backend to frontend. */
export const XENKBD_IN_RING = 1024;
export const XENKBD_IN_RING_LEN = 51;

export const XENKBD_TYPE_MOTION = 1;
export const XENKBD_TYPE_KEY = 3;
export const XENKBD_TYPE_POS = 4;

/** pressed: u8; keycode: u32, Linux's KEY_* and BTN_*. */
export const XENKBD_KEY = { pressed: 1, keycode: 4 } as const;
/** s32 each: a place on the screen, and how far the wheel has turned. */
export const XENKBD_POSITION = { abs_x: 4, abs_y: 8, rel_z: 12 } as const;
/** s32 each. */
export const XENKBD_MOTION = { rel_x: 4, rel_y: 8, rel_z: 12 } as const;
