/**
 * CONTROL: commands for xenstored itself, which only domain 0 may give. Words in, text out.
 *
 *   quota            the limits of a domain, a line each
 *   quota DOMID      how many nodes a domain owns
 *   print TEXT       a line in xenstored's log
 *   allocate-domid   the domid for a new domain (Domus's own; in Xen the hypervisor hands them out)
 *
 *   claim-domid DOMID  that very domid for a new domain: OK, or TAKEN (Domus's own)
 *
 * What would have an effect in the C xenstored and has none here is ENOSYS. Everything else is answered with OK, as recorded
 * from Xen 4.17's oxenstored, `check` and `help` included.
 *
 * Source: docs/misc/xenstore.txt, CONTROL; tools/xenstored, layout of `quota`.
 */
import { type Answer, OK } from './operations.ts';
import type { Quotas } from './quotas.ts';
import type { Store } from './store.ts';
import { joinStrings } from './wire.ts';

/** Commands of the C xenstored that are not for this one: it logs, limits and replaces itself in its own way. */
const REFUSED: readonly string[] = ['live-update', 'log', 'logfile', 'memreport', 'quota-soft'];
/** Longer lines would only fill the log. */
const PRINT_MAX = 1024;

export function executeControl(store: Store, words: readonly string[]): Answer {
  switch (words[0]) {
    case 'quota': {
      const domid = words[1] ?? '';
      if (domid === '') return joinStrings([quotaLines(store.quotas)]);
      if (domid === 'set' || domid === 'max') return 'ENOSYS';
      if (!/^\d{1,5}$/.test(domid)) return 'EINVAL';
      return joinStrings([quotaLine('nodes', store.tree.nodesOwnedBy(Number(domid)), `owned by domain ${domid}`)]);
    }
    case 'print': {
      const text = (words[1] ?? '').slice(0, PRINT_MAX).replaceAll(/[^ -~]/g, '?');
      store.log(`xenstored: ${text}`);
      return OK;
    }
    case 'allocate-domid': {
      const domid = store.allocateDomid();
      return typeof domid === 'string' ? domid : joinStrings([String(domid)]);
    }
    case 'claim-domid': {
      const domid = words[1] ?? '';
      if (!/^[1-9]\d{0,4}$/.test(domid)) return 'EINVAL';
      const claimed = store.claimDomid(Number(domid));
      return typeof claimed === 'string' ? claimed : joinStrings([claimed ? 'OK' : 'TAKEN']);
    }
    default:
      return REFUSED.includes(words[0] ?? '') ? 'ENOSYS' : OK;
  }
}

function quotaLine(name: string, value: number, what: string): string {
  return `${name.padEnd(17)}: ${String(value).padStart(8)} ${what}\n`;
}

function quotaLines(quotas: Quotas): string {
  return [
    quotaLine('nodes', quotas.nodesMax, 'nodes a domain owns'),
    quotaLine('watches', quotas.watchesMax, 'watches of a connection'),
    quotaLine('transactions', quotas.transactionsMax, 'open transactions of a connection'),
    quotaLine('transaction-nodes', quotas.transactionRequestsMax, 'requests in a transaction'),
    quotaLine('node-size', quotas.valueBytesMax, "bytes of a node's value"),
    quotaLine('permissions', quotas.permissionsMax, 'permissions of a node'),
  ].join('');
}
