/** A copy of a domain that runs: it is restored from what the other one was at one moment, with an identity of its own. */

import type { Domain } from '../hypervisor/domain.ts';
import type { MachineMemory } from '../machine/memory.ts';
import { type ForkIdentity, forkedDescription, forkedNodes } from '../toolstack/saved/forked-nodes.ts';
import { SaveFileError } from '../toolstack/saved/save-file.ts';
import type { Description } from '../toolstack/saved/saved-description.ts';
import type { SavedShape } from '../toolstack/saved/saved-state.ts';
import { readDomainNodes, renumberNodes, type SavedNode } from '../toolstack/saved/saved-store.ts';
import type { XenstoreClient } from '../xenstore/client.ts';
import { monotonicNs } from './clock.ts';
import type { CopiedMemory, FrozenMemory } from './copied-memory.ts';
import { type CodePreparer, openSaved, SavedDomain } from './restore-domain.ts';
import { sourceOfFile } from './save-stream.ts';

/** What must be known before a domain's process can get ready for it. */
export interface Outline extends Pick<Description, 'engine' | 'knownDomid' | 'store' | 'console' | 'cmdline'> {
  readonly shape: SavedShape;
  readonly tscKhz: number;
}

/** A domain that goes on instead of being built. */
export interface RestorableDomain {
  readonly outline: Outline;
  /** The nodes that it will have, as domain `domid`, as far as that is known before the rest. */
  earlyNodes(store: XenstoreClient, domid: number): Promise<readonly SavedNode[]>;
  /** Resolves when there is the rest. `ready`: all that can be done before is done; `copied`: the memory, where that can be a copy. */
  arrive(ready: Promise<unknown>, copied: CopiedMemory | null): Promise<void>;
  /** Once it has arrived; of one that moves here, after `load`. */
  readonly description: Description;
  /** How much later it is now for the guest than its clock was when it was described: ns. */
  lateNs(): number;
  /**
   * Reads the rest into a domain of this shape, which has not run. `ready`: its vCPUs are, and have what the guest has seen; `copied`: as for `arrive`;
   * `code`: who prepares for what was noted of it by the same engine.
   * @throws SaveFileError, and what `ready` rejects with
   */
  load(
    machine: MachineMemory,
    domain: Domain,
    ready: Promise<void>,
    copied: CopiedMemory | null,
    code: CodePreparer | null,
  ): Promise<void>;
}

/** A copy that takes longer begins with the time that it was for the guest: no such leap can be meant. */
const LATE_MAX_NS = 2e9;

/** A domain at one moment. */
export interface ForkState {
  /** As in a file of `xl save`. */
  readonly state: string;
  /** The memory is in there; otherwise it comes by itself. */
  readonly hasPages: boolean;
  /** When the copy was asked for, and the domain stopped for it: the host's monotonic clock, ns. */
  readonly askedNs: number;
  readonly stoppedNs: number;
  /** The moment of which the state tells what time it was for the guest: the same clock. */
  readonly describedNs: number;
}

/** What a process is told of a copy before there is one. */
export interface ForkRequest {
  readonly outline: Outline;
  /** The domain that is to be copied. */
  readonly domid: number;
  /** By which its process is asked for what the copy goes on from. */
  readonly ticket: string;
  /** Of the copy, for its disks: there when it is ready. */
  readonly folder: string;
  readonly identity: Omit<ForkIdentity, 'disks'>;
}

/** What a copy goes on from. */
export interface ForkSource extends ForkState, Pick<ForkIdentity, 'disks'> {
  readonly memory: Promise<FrozenMemory | null>;
}

/** Where that comes from. */
export interface CopySource {
  /** What of the memory may be mapped before. Null: nothing. */
  early(): Promise<FrozenMemory | null>;
  /** Called when the process is ready for it. */
  take(): Promise<ForkSource>;
}

export function outlineOf({ description, shape }: SavedDomain): Outline {
  const { engine, knownDomid, tsc, store, console, cmdline } = description;
  return { shape, engine, knownDomid, tscKhz: tsc.khz, store, console, cmdline };
}

/** From a file, or from another host, where it still runs: its nodes will hardly change then. */
export function fromSaved(saved: SavedDomain): RestorableDomain {
  return {
    outline: outlineOf(saved),
    earlyNodes: async (_store, domid) => renumberNodes(saved.description.nodes, saved.description.domid, domid),
    arrive: async () => {},
    get description() {
      return saved.description;
    },
    lateNs: () => saved.lateNs(),
    load: (machine, domain, ready, _copied, code) => saved.load(machine, domain, ready, code),
  };
}

export class ForkedDomain implements RestorableDomain {
  readonly outline: Outline;
  readonly #request: ForkRequest;
  readonly #source: CopySource;
  readonly #rehearse: (nodes: readonly SavedNode[]) => Promise<unknown>;
  #isRehearsed: Promise<unknown> = Promise.resolve();
  #from: ForkSource | null = null;
  #saved: SavedDomain | null = null;
  #description: Description | null = null;

  /** `rehearse`: what its process does before, with the nodes of the domain that is to be copied. */
  constructor(
    request: ForkRequest,
    source: CopySource,
    rehearse: (nodes: readonly SavedNode[]) => Promise<unknown> = async () => {},
  ) {
    this.outline = request.outline;
    this.#request = request;
    this.#source = source;
    this.#rehearse = rehearse;
  }

  async earlyNodes(store: XenstoreClient, domid: number): Promise<readonly SavedNode[]> {
    const { domid: from, identity } = this.#request;
    const before = await readDomainNodes(store, from);
    // All that it can bring is time: what is wrong is found again when the copy comes.
    this.#isRehearsed = this.#rehearse(before).catch(() => undefined);
    return renumberNodes(forkedNodes(before, from, { ...identity, disks: {} }), from, domid);
  }

  async arrive(ready: Promise<unknown>, copied: CopiedMemory | null): Promise<void> {
    await ready;
    await this.#isRehearsed;
    // All that it can bring is time.
    await this.#expect(copied).catch(() => undefined);
    this.#from = await this.#source.take();
    const { state, hasPages } = this.#from;
    // Without its pages it is small.
    const domain = hasPages ? (await openSaved(state)).domain : await SavedDomain.open(sourceOfFile(state));
    const { shape } = domain;
    const { ramPages, maxPages, vcpus } = this.outline.shape;
    if (shape.ramPages !== ramPages || shape.maxPages !== maxPages || shape.vcpus !== vcpus)
      throw new SaveFileError('the domain has got another shape meanwhile');
    this.#saved = domain;
    const identity = { ...this.#request.identity, disks: this.#from.disks };
    this.#description = forkedDescription(domain.description, identity);
  }

  get description(): Description {
    if (this.#description === null) throw new Error('bug: a copy is described before it has arrived');
    return this.#description;
  }

  /** What it took to get here has passed for the guest too. */
  lateNs(): number {
    if (this.#from === null) throw new Error('bug: a copy goes on before it has arrived');
    const lateNs = monotonicNs() - this.#from.describedNs;
    return lateNs > 0 && lateNs < LATE_MAX_NS ? lateNs : 0;
  }

  async load(machine: MachineMemory, domain: Domain, ready: Promise<void>, copied: CopiedMemory | null): Promise<void> {
    if (this.#saved === null || this.#from === null) throw new Error('bug: a copy is loaded before it has arrived');
    const adopted = adopt(this.#from.memory, copied);
    adopted.catch(() => undefined);
    // What is not memory is read meanwhile.
    const isReady = Promise.all([ready, adopted]).then(() => undefined);
    isReady.catch(() => undefined);
    await this.#saved.load(machine, domain, isReady);
    // All that was read.
    this.#saved = null;
  }

  async #expect(copied: CopiedMemory | null): Promise<void> {
    const early = copied === null ? null : await this.#source.early();
    if (early !== null) copied?.expect(early);
  }
}

/** @throws SaveFileError, HostError */
async function adopt(frozen: Promise<FrozenMemory | null>, copied: CopiedMemory | null): Promise<void> {
  const memory = await frozen;
  if (memory === null) return;
  if (copied === null) throw new SaveFileError('memory cannot be shared here');
  try {
    copied.adopt(memory);
  } catch (error) {
    if (!(error instanceof Error && 'syscall' in error)) throw error;
    throw new SaveFileError(`the memory of the domain that is copied: ${error.message}`);
  }
}
