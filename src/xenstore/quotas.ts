/**
 * What a domain other than 0 may use of xenstore. The numbers are the defaults of Xen's C xenstored, but for
 * `valueBytesMax`, which both xenstoreds hold domain 0 to as well, and `transactionBytesMax` and `watchEventsMax`, which
 * stand for its limit on memory per domain (2.5 MB).
 *
 * Source: tools/xenstored (Xen 4.17), defaults of --quota; oxenstored.conf (watch events).
 */
export interface Quotas {
  /** Nodes that a domain owns. Over it: ENOSPC. */
  readonly nodesMax: number;
  /** Bytes of one node's value. Over it: E2BIG, for domain 0 too. */
  readonly valueBytesMax: number;
  /** Entries in one node's permissions. Over it: ENOSPC. */
  readonly permissionsMax: number;
  /** Watches of one connection. Over it: ENOSPC. */
  readonly watchesMax: number;
  /** Open transactions of one connection. Over it: ENOSPC. */
  readonly transactionsMax: number;
  /** Requests in one transaction. Over it: ENOSPC. */
  readonly transactionRequestsMax: number;
  /** Bytes of requests and replies that one transaction keeps for its commit. Over it: ENOSPC. */
  readonly transactionBytesMax: number;
  /** Watch events that wait for a client that does not read. Over it events are lost, which hurts that client only. */
  readonly watchEventsMax: number;
}

export const DEFAULT_QUOTAS: Quotas = {
  nodesMax: 1000,
  valueBytesMax: 2048,
  permissionsMax: 5,
  watchesMax: 128,
  transactionsMax: 10,
  transactionRequestsMax: 1024,
  transactionBytesMax: 256 * 1024,
  watchEventsMax: 1024,
};

/** For what was within its limits when it was done. */
export const NO_QUOTAS: Quotas = {
  nodesMax: Infinity,
  valueBytesMax: Infinity,
  permissionsMax: Infinity,
  watchesMax: Infinity,
  transactionsMax: Infinity,
  transactionRequestsMax: Infinity,
  transactionBytesMax: Infinity,
  watchEventsMax: Infinity,
};
