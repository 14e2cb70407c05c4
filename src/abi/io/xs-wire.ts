/**
 * The xenstore wire protocol: message types, message header, error names, and the ring page that a guest and
 * xenstored share. Numbers only; the codec is `xenstore/wire.ts`.
 *
 * Source: xen/include/public/io/xs_wire.h (Xen 4.17), docs/misc/xenstore.txt, docs/misc/xenstore-ring.txt.
 */

/** Message types. 20 (RESTRICT) has been removed and answers ENOSYS. Source: xs_wire.h, enum xsd_sockmsg_type. */
export const XS = {
  CONTROL: 0,
  DIRECTORY: 1,
  READ: 2,
  GET_PERMS: 3,
  WATCH: 4,
  UNWATCH: 5,
  TRANSACTION_START: 6,
  TRANSACTION_END: 7,
  INTRODUCE: 8,
  RELEASE: 9,
  GET_DOMAIN_PATH: 10,
  WRITE: 11,
  MKDIR: 12,
  RM: 13,
  SET_PERMS: 14,
  /** Server to client only. */
  WATCH_EVENT: 15,
  /** Server to client only. */
  ERROR: 16,
  IS_DOMAIN_INTRODUCED: 17,
  RESUME: 18,
  SET_TARGET: 19,
  RESET_WATCHES: 21,
  DIRECTORY_PART: 22,
} as const;

/**
 * Message header, little-endian. A reply repeats req_id and tx_id, and type unless it is an ERROR.
 * Source: xs_wire.h, struct xsd_sockmsg.
 */
export const XSD_SOCKMSG = {
  SIZE: 16,
  type: 0,
  req_id: 4,
  tx_id: 8,
  /** Bytes of payload that follow; at most XENSTORE_PAYLOAD_MAX. */
  len: 12,
} as const;

/** Limits, in bytes. Breaking the first ends the connection, the others get EINVAL. Source: xs_wire.h. */
export const XENSTORE_PAYLOAD_MAX = 4096;
export const XENSTORE_ABS_PATH_MAX = 3072;
export const XENSTORE_REL_PATH_MAX = 2048;

/** Errors go over the wire by name, NUL-terminated. Source: xs_wire.h, xsd_errors[]. */
export const XSD_ERRORS = [
  'EINVAL',
  'EACCES',
  'EEXIST',
  'EISDIR',
  'ENOENT',
  'ENOMEM',
  'ENOSPC',
  'EIO',
  'ENOTEMPTY',
  'ENOSYS',
  'EROFS',
  'EBUSY',
  'EAGAIN',
  'EISCONN',
  'E2BIG',
  'EPERM',
] as const;
export type XsErrorName = (typeof XSD_ERRORS)[number];

/** Bytes in each direction's buffer; an index i of the byte stream lives at i & (XENSTORE_RING_SIZE - 1). */
export const XENSTORE_RING_SIZE = 1024;

/**
 * The ring page. Indices are u32, free-running modulo 2^32; prod - cons is at most XENSTORE_RING_SIZE.
 * Source: xs_wire.h, struct xenstore_domain_interface.
 */
export const XENSTORE_DOMAIN_INTERFACE = {
  SIZE: 2080,
  /** [GST] writes: requests. */
  req: 0,
  /** [XS] writes: replies and watch events. */
  rsp: 1024,
  /** [XS] writes. */
  req_cons: 2048,
  /** [GST] writes. */
  req_prod: 2052,
  /** [GST] writes. */
  rsp_cons: 2056,
  /** [XS] writes. */
  rsp_prod: 2060,
  /** [XS] writes: XENSTORE_SERVER_FEATURE_*. */
  server_features: 2064,
  /** [GST] sets XENSTORE_RECONNECT, [XS] sets back XENSTORE_CONNECTED. */
  connection: 2068,
  /** [XS] writes: XENSTORE_ERROR_*. */
  error: 2072,
  /** Filled in by Xen for dom0less domains only. */
  evtchn_port: 2076,
} as const;

/** Bits of server_features. Source: xs_wire.h. */
export const XENSTORE_SERVER_FEATURE_RECONNECTION = 1;
export const XENSTORE_SERVER_FEATURE_ERROR = 2;
/** Since Xen 4.22: WATCH takes a number of levels, and "@releaseDomain/<domid>". */
export const XENSTORE_SERVER_FEATURE_WATCHDEPTH = 4;

/** Values of connection. Source: xs_wire.h. */
export const XENSTORE_CONNECTED = 0;
export const XENSTORE_RECONNECT = 1;

/** Values of error. Source: xs_wire.h. */
export const XENSTORE_ERROR_NONE = 0;
export const XENSTORE_ERROR_COMM = 1;
export const XENSTORE_ERROR_RINGIDX = 2;
export const XENSTORE_ERROR_PROTO = 3;
