/**
 * Writes a domain while it runs: all of its pages, then those that it has stored into meanwhile, and again, until few are left or
 * it stores faster than they can be sent; what is left is written when it stands still (docs/migration.md).
 */

import type { MachineMemory } from '../machine/memory.ts';
import { SentPages } from '../toolstack/saved/page-deltas.ts';
import type { Part, Sink } from '../toolstack/saved/save-file.ts';
import {
  PART_CHECK,
  PART_CODE,
  PART_DESCRIPTION,
  PART_DOMAIN,
  PART_END,
  PART_M2P,
  PART_M2P_CHANGES,
  PART_PAGES,
  PART_ROUND,
  SaveWriter,
} from '../toolstack/saved/save-file.ts';
import { encodeDescription } from '../toolstack/saved/saved-description.ts';
import { encodeM2p, encodeM2pChanges, encodePages } from '../toolstack/saved/saved-memory.ts';
import { encodeDomain, encodeVcpu, NotSavable } from '../toolstack/saved/saved-state.ts';
import { WatchedNodes } from '../toolstack/saved/watched-nodes.ts';
import type { DirtyTracker } from './dirty-tracker.ts';
import { describe, type SavableDomain, systemTimeNs, writeVcpus } from './save-domain.ts';
import { NODE_CODEC } from './save-stream.ts';

/** So few pages are sent while it stands still: 0.5 MiB. */
const PAGES_FEW = 128;
const ROUNDS_MAX = 30;
/** A round that has not left at least so much less than the one before is one of those that do not help. */
const SHRINKS = 0.8;
const USELESS_ROUNDS_MAX = 3;

export interface Round {
  readonly number: number;
  /** Pages sent, and pages that have been stored into since. */
  readonly pages: number;
  readonly left: number;
  readonly ms: number;
}

export class LiveCopy {
  readonly #saved: SavableDomain;
  readonly #tracker: DirtyTracker;
  readonly #writer: SaveWriter;
  readonly #nodes: WatchedNodes;
  readonly #sent: SentPages;
  readonly #taken: () => Promise<void>;
  readonly #notedCode: () => Promise<readonly Uint32Array[]>;
  #parts = 0;
  /** As it has been sent. */
  #m2p: Uint8Array = new Uint8Array(0);
  #left: readonly number[] = [];

  /**
   * `taken`: resolves when the reader has come to the end of a round, so that what is left then is left for both. `notedCode`: of each vCPU, what
   * code has run since it was called last.
   */
  constructor(
    saved: SavableDomain,
    tracker: DirtyTracker,
    sink: Sink,
    taken: () => Promise<void>,
    notedCode: () => Promise<readonly Uint32Array[]>,
  ) {
    this.#taken = taken;
    this.#notedCode = notedCode;
    this.#saved = saved;
    this.#tracker = tracker;
    this.#writer = new SaveWriter(sink, NODE_CODEC);
    this.#sent = new SentPages(saved.domain.machine);
    this.#nodes = new WatchedNodes(saved.store, saved.domain.domid);
  }

  /** What the reader must know before it can take pages. @throws NotSavable, and what the sink throws */
  async announce(): Promise<void> {
    const { domain } = this.#saved;
    const nowNs = systemTimeNs(domain);
    const shared = encodeDomain(domain, nowNs);
    const description = await describe(this.#saved, nowNs, this.#nodes.start());
    await this.#writer.start();
    await this.#writer.part(PART_DESCRIPTION, encodeDescription(description));
    await this.#writer.part(PART_DOMAIN, shared);
  }

  /** Pages, while the domain runs. `stop` when no more is to be written. @throws what the sink throws */
  async copyRunning(onRound: (round: Round) => void): Promise<void> {
    const { machine } = this.#saved.domain;
    await this.#tracker.start();
    await this.#notedCode();
    let useless = 0;
    let hasCode = false;
    for (let number = 0; ; number++) {
      const fromMs = performance.now();
      const pages = await this.#write(number === 0 ? allPages(machine) : this.#sent.encode(this.#left));
      if (number === 0) {
        this.#m2p = encodeM2p(machine);
        await this.#writer.part(PART_M2P, this.#m2p);
      }
      await this.#rehearseRest();
      await this.#writer.part(PART_ROUND, new Uint8Array(0));
      await this.#taken();
      const before = number === 0 ? pages : this.#left.length;
      this.#left = await this.#tracker.take();
      const left = this.#left.length;
      onRound({ number, pages, left, ms: performance.now() - fromMs });
      if (left > before * SHRINKS) useless++;
      if (left > PAGES_FEW && number + 1 < ROUNDS_MAX && useless < USELESS_ROUNDS_MAX) continue;
      // While the reader prepares for that, there is another round, and as many more as help.
      if (hasCode || !(await this.#writeCode())) return;
      hasCode = true;
      useless = 0;
    }
  }

  /** The rest, of a domain that is frozen; how many pages. `check`: all are sent again, to be compared. @throws NotSavable, and what the sink throws */
  async copyRest(check: boolean): Promise<number> {
    const { domain } = this.#saved;
    const fromMs = performance.now();
    const nowNs = systemTimeNs(domain);
    const describing = describe(this.#saved, nowNs, this.#nodes.now());
    describing.catch(() => undefined);
    // The reader is busy with them meanwhile.
    const pages = await this.#write(this.#sent.encode(await this.#tracker.last(this.#left)));
    const writer = this.#writer;
    const shared = encodeDomain(domain, nowNs);
    const description = await describing;
    const stillMs = Math.round(performance.now() - fromMs);
    await writer.part(PART_DESCRIPTION, encodeDescription({ ...description, stillMs }));
    await writer.part(PART_DOMAIN, shared);
    await writeVcpus(writer, domain);
    await writer.part(PART_M2P_CHANGES, encodeM2pChanges(domain.machine, this.#m2p));
    if (check) for (const part of encodePages(domain.machine)) await writer.part(PART_CHECK, part);
    await writer.part(PART_END, new Uint8Array(Uint32Array.of(this.#parts).buffer));
    return pages;
  }

  /** What `copyRest` does for the rest that is no pages, for nothing: JavaScript has compiled it when the domain stands still. */
  async #rehearseRest(): Promise<void> {
    const { domain } = this.#saved;
    const nowNs = systemTimeNs(domain);
    try {
      encodeDomain(domain, nowNs);
    } catch (error) {
      // What forbids it now may be over then.
      if (!(error instanceof NotSavable)) throw error;
    }
    encodeDescription({ ...(await describe(this.#saved, nowNs, this.#nodes.now())), stillMs: 0 });
    for (const { vcpuId } of domain.vcpus) encodeVcpu(domain, vcpuId);
    encodeM2pChanges(domain.machine, this.#m2p);
  }

  stop(): void {
    this.#nodes.stop();
    this.#tracker.stop();
  }

  /** False: there is nothing to tell. */
  async #writeCode(): Promise<boolean> {
    const noted = await this.#notedCode();
    for (const [vcpuId, words] of noted.entries())
      if (words.length > 0)
        await this.#writer.part(PART_CODE, new Uint8Array(Uint32Array.from([vcpuId, ...words]).buffer));
    return noted.some(({ length }) => length > 0);
  }

  async #write(parts: Iterable<Part>): Promise<number> {
    let pages = 0;
    for (const { kind, bytes } of parts) {
      pages += new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
      await this.#writer.part(kind, bytes);
      this.#parts++;
    }
    return pages;
  }
}

function* allPages(machine: MachineMemory): Generator<Part> {
  for (const bytes of encodePages(machine)) yield { kind: PART_PAGES, bytes };
}
