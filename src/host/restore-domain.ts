/**
 * Reads a saved domain. The file is read to its end, and checked, before anything of the domain exists but its memory.
 */

import type { Domain } from '../hypervisor/domain.ts';
import type { MachineMemory } from '../machine/memory.ts';
import {
  PART_DESCRIPTION,
  PART_DOMAIN,
  PART_END,
  PART_M2P,
  PART_PAGES,
  PART_VCPU,
  SaveFileError,
  SaveReader,
  type Source,
} from '../toolstack/saved/save-file.ts';
import { type Description, decodeDescription } from '../toolstack/saved/saved-description.ts';
import { clearHoles, decodeM2p, decodePages } from '../toolstack/saved/saved-memory.ts';
import { decodeDomain, decodeVcpu, type SavedShape, shapeOf } from '../toolstack/saved/saved-state.ts';
import { NODE_CODEC, openSource } from './save-stream.ts';

/** A saved domain of which so much has been read as is needed to make room for the rest. */
export class SavedDomain {
  readonly description: Description;
  readonly shape: SavedShape;
  readonly #reader: SaveReader;
  readonly #shared: Uint8Array;

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
    this.description = description;
    this.shape = shapeOf(shared);
    const { maxPages } = this.shape;
    if (description.store.pfn >= maxPages || description.console.pfn >= maxPages)
      throw new SaveFileError('damaged: a ring outside the memory');
  }

  /** Reads the rest into a domain of this shape, which has not run. @throws SaveFileError */
  async load(machine: MachineMemory, domain: Domain): Promise<void> {
    const reader = this.#reader;
    decodeDomain(this.#shared, domain);
    for (const { vcpuId } of domain.vcpus) decodeVcpu(await reader.expect(PART_VCPU), domain, vcpuId);
    decodeM2p(await reader.expect(PART_M2P), machine);
    let last = -1;
    for (let parts = 0; ; parts++) {
      const { kind, bytes } = await reader.part();
      if (kind === PART_PAGES) {
        last = decodePages(bytes, machine, last);
        continue;
      }
      const count = bytes.length === 4 ? new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true) : -1;
      if (kind !== PART_END || count !== parts) throw new SaveFileError('damaged: parts are missing');
      break;
    }
    clearHoles(domain);
  }
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
