/**
 * Transactions of one connection.
 *
 * A transaction works on a snapshot of the tree and keeps its requests and the answers it gave. To commit:
 * 1. nothing else was changed since the start: the snapshot becomes the tree;
 * 2. otherwise the requests are executed again on a snapshot of the present tree. If every answer is the same, the
 *    client could not tell that it ran now and not then, and the new snapshot becomes the tree;
 * 3. if one answer differs the commit is refused with EAGAIN.
 *
 * Hence a client that is alone never sees EAGAIN, and others only disturb it by changing what it has seen.
 * Not done: Xen's oxenstored slows down domains whose writes make other domains' commits fail; here a domain that
 * keeps changing a node can keep another one, which reads that node in a transaction, from committing.
 *
 * Source: docs/misc/xenstore.txt, transactions; xs-wire.out recorded from Xen 4.17.
 */
import { XENSTORE_PAYLOAD_MAX, type XsErrorName } from '../abi/io/xs-wire.ts';
import { type Answer, type Change, executeOperation, isRead } from './operations.ts';
import { type Caller, isPrivileged } from './permissions.ts';
import type { Quotas } from './quotas.ts';
import type { KeptRequest } from './records.ts';
import type { Node, Tree } from './tree.ts';

interface AnsweredRequest extends KeptRequest {
  readonly answer: Answer;
}

interface Transaction {
  readonly tree: Tree;
  /** The tree's root when the transaction began. */
  readonly startRoot: Node;
  readonly requests: AnsweredRequest[];
  readonly changes: Change[];
  keptBytes: number;
}

/** What a transaction comes to: the store makes it so. */
export interface Outcome {
  /** The tree after it, a snapshot of the present one; null if it changes nothing. */
  readonly tree: Tree | null;
  readonly changes: readonly Change[];
  /** What has to be executed to come to the same tree. */
  readonly requests: readonly KeptRequest[];
}

/** Ids stay positive as a signed 32-bit number. */
const TRANSACTION_ID_MAX = 0x7fffffff;

export class Transactions {
  readonly #tree: Tree;
  readonly #quotas: Quotas;
  readonly #open = new Map<number, Transaction>();
  #nextId = 1;

  constructor(tree: Tree, quotas: Quotas) {
    this.#tree = tree;
    this.#quotas = quotas;
  }

  has(id: number): boolean {
    return this.#open.has(id);
  }

  get openCount(): number {
    return this.#open.size;
  }

  /** Begins a transaction; its id, or ENOSPC. */
  start(caller: Caller): number | XsErrorName {
    if (!isPrivileged(caller) && this.#open.size >= this.#quotas.transactionsMax) return 'ENOSPC';
    const tree = this.#tree.snapshot();
    const id = this.#takeId();
    this.#open.set(id, { tree, startRoot: tree.root, requests: [], changes: [], keptBytes: 0 });
    return id;
  }

  /** Executes one request inside transaction `id`, which must be open. */
  execute(id: number, caller: Caller, type: number, payload: Uint8Array): Answer {
    const transaction = this.#get(id);
    if (!isPrivileged(caller)) {
      // The answer is not known yet, so it counts with the most it can be.
      const keptBytes = transaction.keptBytes + payload.length + XENSTORE_PAYLOAD_MAX;
      if (transaction.requests.length >= this.#quotas.transactionRequestsMax) return 'ENOSPC';
      if (keptBytes > this.#quotas.transactionBytesMax) return 'ENOSPC';
    }
    const answer = executeOperation(transaction.tree, caller, type, payload, transaction.changes);
    transaction.requests.push({ type, payload, answer });
    transaction.keptBytes += payload.length + answer.length;
    return answer;
  }

  /** Ends transaction `id`, which must be open, without effect. */
  abort(id: number): void {
    this.#open.delete(id);
  }

  /** Ends transaction `id`, which must be open: what it comes to, or EAGAIN. The present tree stays as it is. */
  end(id: number, caller: Caller): Outcome | XsErrorName {
    const transaction = this.#get(id);
    this.#open.delete(id);
    const { changes, tree } = transaction;
    // One that only read saw the tree as it was at its start: nothing to check.
    if (changes.length === 0) return { tree: null, changes, requests: [] };
    const requests = transaction.requests.filter(({ type, answer }) => !isRead(type) && typeof answer !== 'string');
    if (transaction.startRoot === this.#tree.root) return { tree, changes, requests };
    // The second run is a transaction with an id of its own, as the ids recorded from Xen show.
    this.#takeId();
    const again = this.#tree.snapshot();
    const changesAgain: Change[] = [];
    for (const { type, payload, answer } of transaction.requests) {
      if (!sameAnswer(answer, executeOperation(again, caller, type, payload, changesAgain))) return 'EAGAIN';
    }
    return { tree: again, changes: changesAgain, requests };
  }

  /** Ends all without effect. */
  abortAll(): void {
    this.#open.clear();
  }

  #get(id: number): Transaction {
    const transaction = this.#open.get(id);
    if (transaction === undefined) throw new Error(`bug: xenstore transaction ${id} is not open`);
    return transaction;
  }

  #takeId(): number {
    while (this.#nextId > TRANSACTION_ID_MAX || this.#open.has(this.#nextId)) {
      this.#nextId = this.#nextId >= TRANSACTION_ID_MAX ? 1 : this.#nextId + 1;
    }
    return this.#nextId++;
  }
}

function sameAnswer(a: Answer, b: Answer): boolean {
  if (typeof a === 'string' || typeof b === 'string') return a === b;
  if (a === b) return true;
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}
