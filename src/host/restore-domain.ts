/**
 * Reads a saved domain. The file is read to its end, and checked, before the domain runs: until then it is memory, nodes and threads that wait.
 *
 * The stream of a domain that moves here while it runs has pages before the rest, the same ones several times, and then another
 * description and domain part: of when it stood still. Source: docs/migration.md.
 */

import type { Domain } from '../hypervisor/domain.ts';
import { type MachineMemory, PAGE_SIZE } from '../machine/memory.ts';
import { decodeDeltas } from '../toolstack/saved/page-deltas.ts';
import {
  PART_CHECK,
  PART_CODE,
  PART_DELTAS,
  PART_DESCRIPTION,
  PART_DOMAIN,
  PART_END,
  PART_M2P,
  PART_M2P_CHANGES,
  PART_PAGES,
  PART_ROUND,
  PART_VCPU,
  SaveFileError,
  SaveReader,
  type Source,
} from '../toolstack/saved/save-file.ts';
import { type Description, decodeDescription, encodeDescription } from '../toolstack/saved/saved-description.ts';
import {
  clearHoles,
  clearUnowned,
  comparePages,
  compareZeros,
  decodeM2p,
  decodeM2pChanges,
  decodePages,
} from '../toolstack/saved/saved-memory.ts';
import { decodeDomain, decodeVcpu, encodeVcpu, type SavedShape, shapeOf } from '../toolstack/saved/saved-state.ts';
import { NODE_CODEC, openSource } from './save-stream.ts';

/** Of a file, so many parts of some MiB may wait for the domain to be made. */
const PARTS_EARLY = 8;

/** Who has use for what vCPUs have noted elsewhere of the code that they run. */
export interface CodePreparer {
  /** Resolves when it is done with that. */
  prepare(vcpuId: number, noted: Uint32Array): Promise<void>;
  /** Something has been stored within a page of memory 0. */
  stored(offset: number, sizeBytes: number): void;
}

/** A saved domain of which so much has been read as is needed to make room for the rest. */
export class SavedDomain {
  readonly shape: SavedShape;
  readonly #reader: SaveReader;
  #description: Description;
  #shared: Uint8Array;
  /** When the last description came, if time goes on for the domain: ms. */
  #stillSinceMs: number | null = null;
  /** Called when the rest is wanted. */
  onWanted: (() => Promise<void>) | null = null;
  /** Called at the end of each round of pages of a domain that runs. */
  onRound: (() => Promise<void>) | null = null;

  /** @throws SaveFileError */
  static async open(source: Source): Promise<SavedDomain> {
    const reader = new SaveReader(source, NODE_CODEC);
    await reader.start();
    const description = decodeDescription(await reader.expect(PART_DESCRIPTION));
    const shared = await reader.expect(PART_DOMAIN);
    return new SavedDomain(reader, description, shared);
  }

  private constructor(reader: SaveReader, description: Description, shared: Uint8Array) {
    this.#reader = reader;
    this.#shared = shared;
    this.#description = description;
    this.shape = shapeOf(shared);
    const { maxPages } = this.shape;
    if (description.store.pfn >= maxPages || description.console.pfn >= maxPages)
      throw new SaveFileError('damaged: a ring outside the memory');
  }

  /** Parts are read from now on, before there is memory for them. */
  readAhead(): void {
    this.#reader.readAhead(PARTS_EARLY);
  }

  /** As it was when it was saved. Of one that moves here, only after `load`. */
  get description(): Description {
    return this.#description;
  }

  /** How much later it is now for the guest than its clock was when it was described: ns. */
  lateNs(): number {
    if (this.#stillSinceMs === null) return 0;
    return ((this.#description.stillMs ?? 0) + performance.now() - this.#stillSinceMs) * 1e6;
  }

  /**
   * Reads the rest into a domain of this shape, which has not run: its memory at once, the state of its vCPUs when they are `ready` for it. `code`: for
   * what vCPUs of the same engine have noted.
   * @throws SaveFileError, and what `onWanted` throws or `ready` rejects with
   */
  async load(
    machine: MachineMemory,
    domain: Domain,
    ready: Promise<void>,
    code: CodePreparer | null = null,
  ): Promise<void> {
    const reader = this.#reader;
    // Whoever sends it must hear that it is not wanted before it has sent all.
    if (this.onWanted !== null) await ready;
    await this.onWanted?.();
    reader.readAhead();
    let next = await reader.part();
    let partsBefore = 0;
    const ofPages = [PART_PAGES, PART_DELTAS, PART_M2P, PART_CODE, PART_ROUND];
    const isLive = [...ofPages, PART_DESCRIPTION].includes(next.kind);
    // What cannot be of it is refused early, and what reads it again when the guest stands still is compiled.
    if (isLive) this.#takeDomain(domain);
    let hasM2p = false;
    const preparing: Promise<void>[] = [];
    const prepared = new Set<number>();
    const stored = (frame: number): void => {
      if (preparing.length > 0) code?.stored(frame * PAGE_SIZE, PAGE_SIZE);
    };
    for (; ofPages.includes(next.kind); next = await reader.part()) {
      if (next.kind === PART_CODE) {
        const words = wordsOf(next.bytes);
        if (words.length === 0 || prepared.has(words[0]) || words[0] >= domain.vcpus.length)
          throw new SaveFileError(`damaged: code of vCPU ${words[0]}`);
        prepared.add(words[0]);
        preparing.push(code?.prepare(words[0], words.subarray(1)) ?? Promise.resolve());
        continue;
      }
      if (next.kind === PART_ROUND) {
        this.#rehearseRest(domain);
        await Promise.all(preparing);
        await this.onRound?.();
        continue;
      }
      if (next.kind === PART_M2P) {
        decodeM2p(next.bytes, machine);
        // Of these, nothing has been sent twice: no words will come that are to be put into what is cleared here.
        clearUnowned(machine);
        hasM2p = true;
        continue;
      }
      if (next.kind === PART_DELTAS) decodeDeltas(next.bytes, machine, stored);
      else decodePages(next.bytes, machine, -1, stored);
      partsBefore++;
    }
    if (isLive) {
      if (next.kind !== PART_DESCRIPTION) throw new SaveFileError(`damaged: a part of kind ${next.kind} behind pages`);
      this.#standsStill(decodeDescription(next.bytes), await reader.expect(PART_DOMAIN));
      next = await reader.part();
    }
    const vcpus: Uint8Array[] = [];
    while (vcpus.length < domain.vcpus.length) {
      if (next.kind !== PART_VCPU) throw new SaveFileError(`damaged: a part of kind ${next.kind} for a vCPU`);
      vcpus.push(next.bytes);
      next = await reader.part();
    }
    if (next.kind !== (isLive ? PART_M2P_CHANGES : PART_M2P) || isLive !== hasM2p)
      throw new SaveFileError(`damaged: a part of kind ${next.kind} for the M2P`);
    if (isLive) {
      decodeM2pChanges(next.bytes, machine);
      clearUnowned(machine);
    } else decodeM2p(next.bytes, machine);
    let last = -1;
    let hasChecked = false;
    for (let parts = partsBefore; ; ) {
      const { kind, bytes } = await reader.part();
      if (kind === PART_CHECK && isLive) {
        last = comparePages(bytes, machine, last);
        hasChecked = true;
        continue;
      }
      if (kind === PART_PAGES && !isLive) {
        parts++;
        last = decodePages(bytes, machine, last);
        continue;
      }
      const count = bytes.length === 4 ? new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true) : -1;
      if (kind !== PART_END || count !== parts) throw new SaveFileError('damaged: parts are missing');
      break;
    }
    if (hasChecked) compareZeros(machine, last, machine.layout.nameableFrames);
    await ready;
    for (const { vcpuId } of domain.vcpus) decodeVcpu(vcpus[vcpuId], domain, vcpuId);
    this.#takeDomain(domain);
  }

  #takeDomain(domain: Domain): void {
    decodeDomain(this.#shared, domain);
    clearHoles(domain);
  }

  /** What is read when the domain stands still, of what is here already: JavaScript has compiled it then. */
  #rehearseRest(domain: Domain): void {
    this.#standsStill(decodeDescription(encodeDescription(this.#description)), this.#shared);
    this.#stillSinceMs = null;
    for (const { vcpuId } of domain.vcpus) decodeVcpu(encodeVcpu(domain, vcpuId), domain, vcpuId);
    // No holes are cleared: what was a page table when this was written may be another page by now.
    decodeDomain(this.#shared, domain);
  }

  /** What was checked before its pages were taken must be true of it now. */
  #standsStill(description: Description, shared: Uint8Array): void {
    const fixed = ({ knownDomid, engine, cpu, store, console, cmdline, tsc }: Description): string =>
      JSON.stringify([knownDomid, engine, cpu, store, console, cmdline, tsc.khz]);
    if (
      fixed(description) !== fixed(this.#description) ||
      JSON.stringify(shapeOf(shared)) !== JSON.stringify(this.shape)
    )
      throw new SaveFileError('damaged: another domain behind the pages than before them');
    this.#description = description;
    this.#shared = shared;
    this.#stillSinceMs = performance.now();
  }
}

/** @throws SaveFileError */
function wordsOf(bytes: Uint8Array): Uint32Array {
  if (bytes.length < 4 || bytes.length % 4 !== 0) throw new SaveFileError(`damaged: words in ${bytes.length} bytes`);
  return new Uint32Array(Uint8Array.from(bytes).buffer);
}

export interface OpenSaved {
  readonly domain: SavedDomain;
  /** The file is needed no more. */
  close(): void;
}

/** Opens a file of this host. @throws SaveFileError */
export async function openSaved(path: string): Promise<OpenSaved> {
  const { source, close } = openSource(path);
  try {
    return { domain: await SavedDomain.open(source), close };
  } catch (error) {
    close();
    if (error instanceof Error && 'syscall' in error) throw new SaveFileError(`${path}: ${error.message}`);
    throw error;
  }
}
