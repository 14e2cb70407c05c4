/**
 * The network interface: two rings, seen from the guest. On the tx ring a request is a packet's fragment that the guest sends; on
 * the rx ring a request is a page to receive into, and its response stands in the same slot. Slots are of 12 and 8 bytes.
 *
 * A packet is a chain of requests (tx) or responses (rx) with `more_data` in all but the last. After the first may stand
 * extra infos, each in a slot of its own. Source: xen/include/public/io/netif.h.
 */

/** Fragments that any backend takes. Source: netif.h, XEN_NETIF_NR_SLOTS_MIN. */
export const XEN_NETIF_NR_SLOTS_MIN = 18;

/** [GST] */
export const NETIF_TX_REQUEST = {
  SIZE: 12,
  /** u32 */
  gref: 0,
  /** u16: where in the page. */
  offset: 4,
  /** u16: XEN_NETTXF_*. */
  flags: 6,
  /** u16: comes back in the response. */
  id: 8,
  /** u16: of the whole packet in the first request, of the fragment in the others. */
  size: 10,
} as const;

/** [back] */
export const NETIF_TX_RESPONSE = {
  SIZE: 4,
  /** u16 */
  id: 0,
  /** s16: XEN_NETIF_RSP_*. */
  status: 2,
} as const;

/** [GST] */
export const NETIF_RX_REQUEST = {
  SIZE: 8,
  /** u16: comes back in the response. */
  id: 0,
  /** u32: of a page to be written. */
  gref: 4,
} as const;

/** [back] */
export const NETIF_RX_RESPONSE = {
  SIZE: 8,
  /** u16 */
  id: 0,
  /** u16: where in the page. */
  offset: 2,
  /** u16: XEN_NETRXF_*. */
  flags: 4,
  /** s16: bytes, or XEN_NETIF_RSP_*. */
  status: 6,
} as const;

/** [both] */
export const NETIF_EXTRA_INFO = {
  SIZE: 8,
  /** u8: XEN_NETIF_EXTRA_TYPE_*. */
  type: 0,
  /** u8: XEN_NETIF_EXTRA_FLAG_MORE. */
  flags: 1,
  /** u16: of a segment's payload. */
  gso_size: 2,
  /** u8: XEN_NETIF_GSO_TYPE_*. */
  gso_type: 4,
  /** u8 */
  gso_pad: 5,
  /** u16: XEN_NETIF_GSO_FEAT_*. */
  gso_features: 6,
} as const;

/** The protocol checksum is not there, only its pseudo-header's sum. */
export const XEN_NETTXF_csum_blank = 1 << 0;
/** The data has been found good, or has not left the host. */
export const XEN_NETTXF_data_validated = 1 << 1;
export const XEN_NETTXF_more_data = 1 << 2;
export const XEN_NETTXF_extra_info = 1 << 3;

/** The first two are the other way round on the rx ring. */
export const XEN_NETRXF_data_validated = 1 << 0;
export const XEN_NETRXF_csum_blank = 1 << 1;
export const XEN_NETRXF_more_data = 1 << 2;
export const XEN_NETRXF_extra_info = 1 << 3;

export const XEN_NETIF_EXTRA_TYPE_GSO = 1;
export const XEN_NETIF_EXTRA_TYPE_MCAST_ADD = 2;
export const XEN_NETIF_EXTRA_TYPE_MCAST_DEL = 3;
export const XEN_NETIF_EXTRA_TYPE_HASH = 4;
export const XEN_NETIF_EXTRA_TYPE_XDP = 5;
export const XEN_NETIF_EXTRA_TYPE_MAX = 6;
export const XEN_NETIF_EXTRA_FLAG_MORE = 1;

export const XEN_NETIF_GSO_TYPE_NONE = 0;
export const XEN_NETIF_GSO_TYPE_TCPV4 = 1;
export const XEN_NETIF_GSO_TYPE_TCPV6 = 2;

export const XEN_NETIF_RSP_DROPPED = -2;
export const XEN_NETIF_RSP_ERROR = -1;
export const XEN_NETIF_RSP_OKAY = 0;
/** Of a slot that was an extra info. */
export const XEN_NETIF_RSP_NULL = 1;
