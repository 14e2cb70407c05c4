/**
 * ISO 9660 with Rock Ridge or Joliet, for reading only.
 *
 * Source: ECMA-119; IEEE P1281 (SUSP) and P1282 (RRIP) drafts 1.12; Microsoft, Joliet Specification.
 */
import type { FileNode, FileSystem } from './file-system.ts';
import { BootDiskError, type Volume } from './volume.ts';

interface Extent {
  readonly offset: number;
  readonly sizeBytes: number;
}

interface IsoNode extends FileNode {
  readonly name: string;
  /** A file of more than 4 GiB has several. */
  readonly extents: readonly Extent[];
  readonly linkTarget: string;
}

const BLOCK = 2048;
const FIRST_DESCRIPTOR = 16;
const DESCRIPTORS_MAX = 64;
const ROOT_RECORD = 156;
const ROOT_RECORD_BYTES = 34;
const RECORD = { extended_length: 1, extent: 2, size: 10, flags: 25, name_length: 32, name: 33 } as const;
const FLAG_DIRECTORY = 2;
const FLAG_MORE_EXTENTS = 0x80;
const DIRECTORY_BYTES_MAX = 16 << 20;
const DIRECTORIES_KEPT = 8;
const CONTINUATIONS_MAX = 32;

type Names = 'rock ridge' | 'joliet' | 'plain';

/** Opens the file system, if the volume has one. */
export async function openIso9660(volume: Volume): Promise<FileSystem<IsoNode> | undefined> {
  let primary: DataView | undefined;
  let joliet: DataView | undefined;
  for (let index = 0; index < DESCRIPTORS_MAX; index++) {
    const offset = (FIRST_DESCRIPTOR + index) * BLOCK;
    if (offset + BLOCK > volume.sizeBytes) break;
    const bytes = await volume.read(offset, BLOCK);
    if (String.fromCharCode(...bytes.subarray(1, 6)) !== 'CD001') break;
    const type = bytes[0];
    if (type === 255) break;
    const view = new DataView(bytes.buffer);
    if (type === 1) primary ??= view;
    // %/@, %/C or %/E: UCS-2 in one of its levels.
    const isJoliet = bytes[88] === 0x25 && bytes[89] === 0x2f && [0x40, 0x43, 0x45].includes(bytes[90]!);
    if (type === 2 && isJoliet) joliet ??= view;
  }
  if (primary === undefined) return undefined;
  const fs = new IsoFileSystem(volume, primary, 'plain');
  const skip = await fs.findRockRidge();
  if (skip !== undefined) return new IsoFileSystem(volume, primary, 'rock ridge', skip);
  return joliet === undefined ? fs : new IsoFileSystem(volume, joliet, 'joliet');
}

class IsoFileSystem implements FileSystem<IsoNode> {
  readonly kind = 'iso9660';
  readonly root: IsoNode;
  readonly #volume: Volume;
  readonly #names: Names;
  /** Bytes before the system use entries in each record. */
  readonly #skip: number;
  /** Directories last read, by where they are. */
  readonly #directories = new Map<number, readonly IsoNode[]>();

  constructor(volume: Volume, descriptor: DataView, names: Names, skip = 0) {
    this.#volume = volume;
    this.#names = names;
    this.#skip = skip;
    const blockBytes = descriptor.getUint16(128, true);
    if (blockBytes !== BLOCK) throw new BootDiskError(`iso9660: blocks of ${blockBytes} bytes, expected ${BLOCK}`);
    const record = new DataView(descriptor.buffer, ROOT_RECORD, ROOT_RECORD_BYTES);
    this.root = { kind: 'directory', name: '', linkTarget: '', ...extentsOf([extentOf(record)]) };
  }

  /** The SP entry in the root's own record says that Rock Ridge may follow. @returns bytes to skip */
  async findRockRidge(): Promise<number | undefined> {
    const bytes = await this.#volume.read(this.root.extents[0]!.offset, Math.min(BLOCK, this.root.sizeBytes));
    const length = bytes[0] ?? 0;
    if (length < ROOT_RECORD_BYTES + 7 || length > bytes.length) return undefined;
    for (let at = ROOT_RECORD_BYTES; at + 7 <= length; at++) {
      const mark = bytes.subarray(at, at + 6);
      if (mark[0] === 0x53 && mark[1] === 0x50 && mark[2] === 7 && mark[4] === 0xbe && mark[5] === 0xef)
        return bytes[at + 6];
    }
    return undefined;
  }

  async lookup(directory: IsoNode, name: string): Promise<IsoNode | undefined> {
    const entries = await this.#entries(directory);
    const exact = entries.find((entry) => entry.name === name);
    if (exact !== undefined || this.#names === 'rock ridge') return exact;
    return entries.find((entry) => entry.name.toLowerCase() === name.toLowerCase());
  }

  async names(directory: IsoNode): Promise<string[]> {
    return (await this.#entries(directory)).map(({ name }) => name);
  }

  async read(file: IsoNode, offset: number, lengthBytes: number): Promise<Uint8Array> {
    const content = new Uint8Array(lengthBytes);
    let start = 0;
    for (const extent of file.extents) {
      const from = Math.max(offset, start);
      const to = Math.min(offset + lengthBytes, start + extent.sizeBytes);
      if (from < to) content.set(await this.#volume.read(extent.offset + from - start, to - from), from - offset);
      start += extent.sizeBytes;
    }
    return content;
  }

  async target(link: IsoNode): Promise<string> {
    return link.linkTarget;
  }

  async #entries(directory: IsoNode): Promise<readonly IsoNode[]> {
    const offset = directory.extents[0]?.offset ?? 0;
    const kept = this.#directories.get(offset);
    if (kept !== undefined) return kept;
    const entries = await this.#readEntries(directory);
    if (this.#directories.size >= DIRECTORIES_KEPT) this.#directories.delete(this.#directories.keys().next().value!);
    this.#directories.set(offset, entries);
    return entries;
  }

  async #readEntries(directory: IsoNode): Promise<IsoNode[]> {
    if (directory.sizeBytes > DIRECTORY_BYTES_MAX) {
      throw new BootDiskError(
        `iso9660: a directory of ${directory.sizeBytes} bytes, expected at most ${DIRECTORY_BYTES_MAX}`,
      );
    }
    const bytes = await this.read(directory, 0, directory.sizeBytes);
    const entries: IsoNode[] = [];
    let earlier: Extent[] = [];
    for (let at = 0; at < bytes.length; ) {
      const length = bytes[at]!;
      if (length === 0) {
        // Records do not cross blocks.
        at = (Math.floor(at / BLOCK) + 1) * BLOCK;
        continue;
      }
      if (
        length < RECORD.name ||
        at + length > bytes.length ||
        RECORD.name + bytes[at + RECORD.name_length]! > length
      ) {
        throw new BootDiskError('iso9660: a damaged directory');
      }
      const record = new DataView(bytes.buffer, bytes.byteOffset + at, length);
      at += length;
      const nameBytes = record.getUint8(RECORD.name_length);
      const isSelfOrParent = nameBytes === 1 && record.getUint8(RECORD.name) <= 1;
      if (isSelfOrParent) continue;
      earlier.push(extentOf(record));
      if (record.getUint8(RECORD.flags) & FLAG_MORE_EXTENTS) continue;
      entries.push(await this.#node(record, earlier));
      earlier = [];
    }
    return entries;
  }

  async #node(record: DataView, extents: readonly Extent[]): Promise<IsoNode> {
    const nameLength = record.getUint8(RECORD.name_length);
    const nameBytes = new Uint8Array(record.buffer, record.byteOffset + RECORD.name, nameLength);
    const isDirectory = (record.getUint8(RECORD.flags) & FLAG_DIRECTORY) !== 0;
    const kind = isDirectory ? 'directory' : 'file';
    if (this.#names === 'joliet') {
      const name = new TextDecoder('utf-16be').decode(nameBytes).replace(/;\d+$/, '');
      return { kind, name, linkTarget: '', ...extentsOf(extents) };
    }
    const plain = String.fromCharCode(...nameBytes)
      .replace(/;\d+$/, '')
      .replace(/\.$/, '');
    if (this.#names === 'plain') return { kind, name: plain, linkTarget: '', ...extentsOf(extents) };
    const start = RECORD.name + nameLength + (nameLength % 2 === 0 ? 1 : 0) + this.#skip;
    const rockRidge = await this.#systemUse(record, start);
    const name = rockRidge.name || plain;
    if (rockRidge.linkTarget !== undefined)
      return { kind: 'symlink', name, linkTarget: rockRidge.linkTarget, ...extentsOf([]) };
    if (rockRidge.childBlock !== undefined) return await this.#relocated(name, rockRidge.childBlock);
    return { kind, name, linkTarget: '', ...extentsOf(extents) };
  }

  /** A directory too deep for the format lies elsewhere; its own first record has its size. */
  async #relocated(name: string, block: number): Promise<IsoNode> {
    const record = await this.#volume.view(block * BLOCK, ROOT_RECORD_BYTES);
    return { kind: 'directory', name, linkTarget: '', ...extentsOf([extentOf(record)]) };
  }

  async #systemUse(
    record: DataView,
    start: number,
  ): Promise<{ name: string; linkTarget: string | undefined; childBlock: number | undefined }> {
    let area = new Uint8Array(record.buffer, record.byteOffset, record.byteLength).subarray(start);
    let name = '';
    let childBlock: number | undefined;
    let link: { text: string; needsSlash: boolean } | undefined;
    for (let areas = 0; areas < CONTINUATIONS_MAX; areas++) {
      let next: { offset: number; length: number } | undefined;
      for (let at = 0; at + 4 <= area.length; ) {
        const length = area[at + 2]!;
        if (length < 4 || at + length > area.length) break;
        const entry = area.subarray(at, at + length);
        const view = new DataView(entry.buffer, entry.byteOffset, length);
        const tag = String.fromCharCode(entry[0]!, entry[1]!);
        if (tag === 'NM' && length >= 5 && (entry[4]! & 6) === 0) name += new TextDecoder().decode(entry.subarray(5));
        else if (tag === 'SL' && length >= 5) link = addLinkPart(link, entry.subarray(5));
        else if (tag === 'CL' && length >= 12) childBlock = view.getUint32(4, true);
        else if (tag === 'CE' && length >= 28) {
          next = {
            offset: view.getUint32(4, true) * BLOCK + view.getUint32(12, true),
            length: view.getUint32(20, true),
          };
        } else if (tag === 'ST') break;
        at += length;
      }
      if (next === undefined || next.length > BLOCK) break;
      area = (await this.#volume.read(next.offset, next.length)) as Uint8Array<ArrayBuffer>;
    }
    return { name, linkTarget: link?.text, childBlock };
  }
}

/** Components of a link: flags, length, text. */
function addLinkPart(
  link: { text: string; needsSlash: boolean } | undefined,
  components: Uint8Array,
): { text: string; needsSlash: boolean } {
  let { text, needsSlash } = link ?? { text: '', needsSlash: false };
  for (let at = 0; at + 2 <= components.length; ) {
    const flags = components[at]!;
    const length = components[at + 1]!;
    const part = new TextDecoder().decode(components.subarray(at + 2, at + 2 + length));
    if (needsSlash) text += '/';
    if (flags & 8) text = '/';
    else text += flags & 2 ? '.' : flags & 4 ? '..' : part;
    // The component goes on in the next one, or the root ends with a slash of its own.
    needsSlash = (flags & 9) === 0;
    at += 2 + length;
  }
  return { text, needsSlash };
}

function extentOf(record: DataView): Extent {
  const offset = (record.getUint32(RECORD.extent, true) + record.getUint8(RECORD.extended_length)) * BLOCK;
  return { offset, sizeBytes: record.getUint32(RECORD.size, true) };
}

function extentsOf(extents: readonly Extent[]): { extents: readonly Extent[]; sizeBytes: number } {
  return { extents, sizeBytes: extents.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0) };
}
