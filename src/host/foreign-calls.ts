/**
 * How the thread of a vCPU asks something of another domain: it posts the question to the main thread, which has the connections
 * (peers.ts), and sleeps until the answer stands in memory that they share.
 *
 *   i32 0        0 while there is none; then ANSWERED, or ABANDONED by who has asked
 *   i32 1        bytes in the answer
 *   from 16 on   results, i32 each (RESULTS_BYTES), then bytes
 */
import { ESRCH } from '../abi/errno.ts';
import { GNTST_bad_domain, GNTST_eagain } from '../abi/grant-table.ts';
import { DOMAIN, type Domain } from '../hypervisor/domain.ts';
import { COPY_WORDS, FOREIGN_BATCH, type ForeignDomains, GRANT_WORDS } from '../hypervisor/foreign-domains.ts';
import { FLAG_STOP, VCPU, type VcpuBlock } from '../machine/vcpu-block.ts';

/** Words and bytes are as in ForeignDomains; `frames` for 'release' only. */
export interface ForeignCall {
  readonly kind: 'bind' | 'map' | 'release' | 'read' | 'write' | 'transfer';
  readonly domid: number;
  readonly words: Uint32Array<ArrayBuffer>;
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly frames: Int32Array<ArrayBuffer>;
  readonly answer: SharedArrayBuffer;
}

const PAGE_SIZE = 4096;
const RESULTS_AT = 16;
const RESULTS_BYTES = FOREIGN_BATCH * 4;
const BYTES_AT = RESULTS_AT + RESULTS_BYTES;
const ANSWER_BYTES = BYTES_AT + FOREIGN_BATCH * PAGE_SIZE;
/** A vCPU that is to stop looks up this often. */
const LOOK_MS = 100;
const ANSWERED = 1;
const ABANDONED = 2;

/** In the main thread. False: nobody waits for it any more. */
export function answerForeignCall(call: ForeignCall, results: ArrayLike<number>, bytes = new Uint8Array(0)): boolean {
  const words = new Int32Array(call.answer);
  for (let i = 0; i < Math.min(results.length, FOREIGN_BATCH); i++) words[RESULTS_AT / 4 + i] = results[i];
  const length = Math.min(bytes.length, ANSWER_BYTES - BYTES_AT);
  new Uint8Array(call.answer).set(bytes.subarray(0, length), BYTES_AT);
  words[1] = length;
  if (Atomics.compareExchange(words, 0, 0, ANSWERED) !== 0) return false;
  Atomics.notify(words, 0);
  return true;
}

/** There is no such domain. */
export function refuseForeignCall(call: ForeignCall): void {
  const result = call.kind === 'bind' ? -ESRCH : GNTST_bad_domain;
  answerForeignCall(call, new Array<number>(FOREIGN_BATCH).fill(result));
}

/** In a vCPU's thread. */
export class ForeignCalls implements ForeignDomains {
  readonly #domain: Domain;
  readonly #block: VcpuBlock;
  readonly #post: (call: ForeignCall) => void;
  #answer: SharedArrayBuffer | null = null;

  constructor(domain: Domain, block: VcpuBlock, post: (call: ForeignCall) => void) {
    this.#domain = domain;
    this.#block = block;
    this.#post = post;
  }

  bind(domid: number, remotePort: number, localPort: number): number {
    return this.#ask({ kind: 'bind', domid, words: Uint32Array.of(remotePort, localPort) })[RESULTS_AT / 4];
  }

  map(domid: number, requests: Uint32Array, count: number, results: Int32Array): void {
    const answer = this.#ask({ kind: 'map', domid, words: requests.slice(0, count * GRANT_WORDS) });
    for (let i = 0; i < count; i++) results[i] = answer[RESULTS_AT / 4 + i];
  }

  release(domid: number, requests: Uint32Array, count: number, frames: Int32Array): void {
    this.#ask({
      kind: 'release',
      domid,
      words: requests.slice(0, count * GRANT_WORDS),
      frames: Int32Array.from(frames.subarray(0, count)),
    });
  }

  read(domid: number, requests: Uint32Array, count: number, bytes: Uint8Array, results: Int32Array): void {
    const answer = this.#ask({ kind: 'read', domid, words: requests.slice(0, count * COPY_WORDS) });
    let wanted = 0;
    for (let i = 0; i < count; i++) {
      results[i] = answer[RESULTS_AT / 4 + i];
      if (results[i] === 0) wanted += requests[i * COPY_WORDS + 2];
    }
    // Fewer are what a domain that has just gone leaves.
    if (wanted > answer[1]) results.fill(GNTST_bad_domain, 0, count);
    else bytes.set(new Uint8Array(answer.buffer, BYTES_AT, wanted));
  }

  write(domid: number, requests: Uint32Array, count: number, bytes: Uint8Array, results: Int32Array): void {
    const words = requests.slice(0, count * COPY_WORDS);
    const answer = this.#ask({ kind: 'write', domid, words, bytes: Uint8Array.from(bytes) });
    for (let i = 0; i < count; i++) results[i] = answer[RESULTS_AT / 4 + i];
  }

  transfer(domid: number, gref: number, page: Uint8Array): number {
    const question = { kind: 'transfer', domid, words: Uint32Array.of(gref), bytes: Uint8Array.from(page) } as const;
    return this.#ask(question)[RESULTS_AT / 4];
  }

  /** The answer's words. */
  #ask(
    question: Pick<ForeignCall, 'kind' | 'domid' | 'words'> & Partial<Pick<ForeignCall, 'bytes' | 'frames'>>,
  ): Int32Array<SharedArrayBuffer> {
    this.#answer ??= new SharedArrayBuffer(ANSWER_BYTES);
    const words = new Int32Array(this.#answer);
    Atomics.store(words, 0, 0);
    const call = { bytes: new Uint8Array(0), frames: new Int32Array(0), ...question, answer: this.#answer };
    this.#post(call);
    while (Atomics.load(words, 0) === 0) {
      Atomics.wait(words, 0, 0, LOOK_MS);
      const gives = this.#mustStop() ? GNTST_bad_domain : this.#mustPark(call) ? GNTST_eagain : 0;
      if (gives === 0 || Atomics.compareExchange(words, 0, 0, ABANDONED) !== 0) continue;
      // The next question gets an answer of its own.
      this.#answer = null;
      const none = { ...call, answer: new SharedArrayBuffer(ANSWER_BYTES) };
      if (gives === GNTST_bad_domain) refuseForeignCall(none);
      else answerForeignCall(none, new Array<number>(FOREIGN_BATCH).fill(GNTST_eagain));
      return new Int32Array(none.answer);
    }
    return words;
  }

  /**
   * The domain is to stand still. What maps pages may have to wait until the other domain has stood still itself, and that may wait for
   * this one; so the guest is told to try again, as it is for a page that Xen has to bring back first.
   */
  #mustPark({ kind }: ForeignCall): boolean {
    return kind === 'map' && Atomics.load(this.#domain.i32, DOMAIN.paused >> 2) !== 0;
  }

  #mustStop(): boolean {
    const flags = Atomics.load(this.#block.i32, VCPU.flags >> 2);
    return (flags & FLAG_STOP) !== 0 || this.#domain.shutdownReason !== -1;
  }
}
