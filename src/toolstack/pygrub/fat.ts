/**
 * FAT12, FAT16 and FAT32 with long names, for reading only.
 *
 * Source: Microsoft, FAT: General Overview of On-Disk Format, 1.03.
 */
import type { FileNode, FileSystem } from './file-system.ts';
import { BootDiskError, type Volume } from './volume.ts';

interface FatNode extends FileNode {
  readonly firstCluster: number;
}

interface Entry {
  /** Empty if the entry has no long name. */
  readonly long: string;
  readonly short: string;
  readonly node: FatNode;
}

const BOOT = {
  bytes_per_sector: 11,
  sectors_per_cluster: 13,
  reserved_sectors: 14,
  fats: 16,
  root_entries: 17,
  sectors_16: 19,
  media: 21,
  fat_sectors_16: 22,
  sectors_32: 32,
  fat_sectors_32: 36,
  root_cluster: 44,
} as const;

const ENTRY_BYTES = 32;
const ATTRIBUTE = { VOLUME: 0x08, DIRECTORY: 0x10, LONG_NAME: 0x0f } as const;
const NOT_LAST = 0x40;
const DIRECTORY_BYTES_MAX = 2 << 20;
const DIRECTORIES_KEPT = 8;
/** Where a long entry keeps its 13 characters. */
const LONG_NAME_OFFSETS: readonly number[] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];

/** Opens the file system, if the volume has one. */
export async function openFat(volume: Volume): Promise<FileSystem<FatNode> | undefined> {
  if (volume.sizeBytes < 512) return undefined;
  const boot = await volume.view(0, 512);
  const jump = boot.getUint8(0);
  const sectorBytes = boot.getUint16(BOOT.bytes_per_sector, true);
  const clusterSectors = boot.getUint8(BOOT.sectors_per_cluster);
  const reserved = boot.getUint16(BOOT.reserved_sectors, true);
  const fats = boot.getUint8(BOOT.fats);
  const media = boot.getUint8(BOOT.media);
  if (boot.getUint16(510, true) !== 0xaa55 || (jump !== 0xeb && jump !== 0xe9)) return undefined;
  if (![512, 1024, 2048, 4096].includes(sectorBytes) || reserved === 0 || fats < 1 || fats > 2) return undefined;
  if (clusterSectors === 0 || (clusterSectors & (clusterSectors - 1)) !== 0) return undefined;
  if (media !== 0xf0 && media < 0xf8) return undefined;
  const rootEntries = boot.getUint16(BOOT.root_entries, true);
  const fatSectors = boot.getUint16(BOOT.fat_sectors_16, true) || boot.getUint32(BOOT.fat_sectors_32, true);
  const sectors = boot.getUint16(BOOT.sectors_16, true) || boot.getUint32(BOOT.sectors_32, true);
  const rootSectors = Math.ceil((rootEntries * ENTRY_BYTES) / sectorBytes);
  const dataSector = reserved + fats * fatSectors + rootSectors;
  const clusters = Math.floor((sectors - dataSector) / clusterSectors);
  if (fatSectors === 0 || clusters < 1) return undefined;
  const bits = clusters < 4085 ? 12 : clusters < 65525 ? 16 : 32;
  return new FatFileSystem(volume, {
    bits,
    clusters,
    clusterBytes: clusterSectors * sectorBytes,
    fatOffset: reserved * sectorBytes,
    fatBytes: fatSectors * sectorBytes,
    dataOffset: dataSector * sectorBytes,
    rootOffset: (reserved + fats * fatSectors) * sectorBytes,
    rootBytes: rootEntries * ENTRY_BYTES,
    rootCluster: bits === 32 ? boot.getUint32(BOOT.root_cluster, true) : 0,
  });
}

interface Geometry {
  readonly bits: 12 | 16 | 32;
  readonly clusters: number;
  readonly clusterBytes: number;
  readonly fatOffset: number;
  readonly fatBytes: number;
  readonly dataOffset: number;
  /** Of FAT12 and FAT16, whose root directory is no file. */
  readonly rootOffset: number;
  readonly rootBytes: number;
  readonly rootCluster: number;
}

class FatFileSystem implements FileSystem<FatNode> {
  readonly kind: string;
  readonly root: FatNode;
  readonly #volume: Volume;
  readonly #geometry: Geometry;
  /** Directories last read, by their first cluster. */
  readonly #directories = new Map<number, readonly Entry[]>();
  /** Clusters of the file last read, as far as they are known. */
  #chain: { readonly first: number; readonly clusters: number[] } = { first: -1, clusters: [] };

  constructor(volume: Volume, geometry: Geometry) {
    this.#volume = volume;
    this.#geometry = geometry;
    this.kind = `fat${geometry.bits}`;
    this.root = { kind: 'directory', sizeBytes: 0, firstCluster: geometry.rootCluster };
  }

  /** The cluster that follows, or undefined at the end of the chain. */
  async #next(cluster: number): Promise<number | undefined> {
    const { bits, fatOffset, fatBytes, clusters } = this.#geometry;
    const at = bits === 12 ? Math.floor(cluster * 1.5) : cluster * (bits / 8);
    const width = bits === 32 ? 4 : 2;
    if (at + width > fatBytes) throw new BootDiskError(`fat: cluster ${cluster} is not in the table`);
    const view = await this.#volume.view(fatOffset + at, width);
    let next = bits === 32 ? view.getUint32(0, true) & 0x0fffffff : view.getUint16(0, true);
    if (bits === 12) next = cluster & 1 ? next >> 4 : next & 0xfff;
    const last = bits === 32 ? 0x0ffffff8 : bits === 16 ? 0xfff8 : 0xff8;
    if (next >= last) return undefined;
    if (next < 2 || next >= clusters + 2) throw new BootDiskError(`fat: cluster ${cluster} is followed by ${next}`);
    return next;
  }

  async #clusterAt(first: number, index: number): Promise<number | undefined> {
    const { clusters } = this.#geometry;
    if (first < 2 || first >= clusters + 2) throw new BootDiskError(`fat: a file begins at cluster ${first}`);
    if (this.#chain.first !== first) this.#chain = { first, clusters: [first] };
    const known = this.#chain.clusters;
    while (known.length <= index) {
      if (known.length > clusters) throw new BootDiskError('fat: a file whose clusters go in a circle');
      const next = await this.#next(known.at(-1)!);
      if (next === undefined) return undefined;
      known.push(next);
    }
    return known[index];
  }

  async read(file: FatNode, offset: number, lengthBytes: number): Promise<Uint8Array> {
    const { clusterBytes, dataOffset } = this.#geometry;
    const content = new Uint8Array(lengthBytes);
    for (let done = 0; done < lengthBytes; ) {
      const index = Math.floor((offset + done) / clusterBytes);
      const cluster = await this.#clusterAt(file.firstCluster, index);
      if (cluster === undefined)
        throw new BootDiskError(`fat: a file of ${file.sizeBytes} bytes with ${index} clusters`);
      const within = offset + done - index * clusterBytes;
      const length = Math.min(lengthBytes - done, clusterBytes - within);
      content.set(await this.#volume.read(dataOffset + (cluster - 2) * clusterBytes + within, length), done);
      done += length;
    }
    return content;
  }

  async lookup(directory: FatNode, name: string): Promise<FatNode | undefined> {
    const wanted = name.toLowerCase();
    for (const entry of await this.#entries(directory)) {
      if (entry.long.toLowerCase() === wanted || entry.short.toLowerCase() === wanted) return entry.node;
    }
    return undefined;
  }

  async names(directory: FatNode): Promise<string[]> {
    return (await this.#entries(directory)).map(({ long, short }) => long || short);
  }

  target(): Promise<string> {
    return Promise.reject(new BootDiskError('fat: has no symbolic links'));
  }

  async #entries(directory: FatNode): Promise<readonly Entry[]> {
    const kept = this.#directories.get(directory.firstCluster);
    if (kept !== undefined) return kept;
    const entries = await this.#readEntries(directory);
    if (this.#directories.size >= DIRECTORIES_KEPT) this.#directories.delete(this.#directories.keys().next().value!);
    this.#directories.set(directory.firstCluster, entries);
    return entries;
  }

  async #readEntries(directory: FatNode): Promise<Entry[]> {
    const bytes = await this.#directoryBytes(directory);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    const entries: Entry[] = [];
    let long = '';
    let expected = 0;
    for (let at = 0; at + ENTRY_BYTES <= bytes.length && bytes[at] !== 0; at += ENTRY_BYTES) {
      const attributes = bytes[at + 11]!;
      if (bytes[at] === 0xe5) {
        long = '';
        expected = 0;
        continue;
      }
      if (attributes === ATTRIBUTE.LONG_NAME) {
        // The last part of the name comes first.
        const ordinal = bytes[at]! & 0x1f;
        if (bytes[at]! & NOT_LAST) long = '';
        else if (ordinal !== expected) long = '';
        expected = ordinal - 1;
        const units = LONG_NAME_OFFSETS.map((offset) => view.getUint16(at + offset, true));
        const end = units.indexOf(0);
        long = String.fromCharCode(...(end < 0 ? units : units.slice(0, end))) + long;
        continue;
      }
      if ((attributes & ATTRIBUTE.VOLUME) === 0) {
        const isDirectory = (attributes & ATTRIBUTE.DIRECTORY) !== 0;
        const high = this.#geometry.bits === 32 ? view.getUint16(at + 20, true) : 0;
        const node: FatNode = {
          kind: isDirectory ? 'directory' : 'file',
          sizeBytes: isDirectory ? 0 : view.getUint32(at + 28, true),
          firstCluster: high * 65536 + view.getUint16(at + 26, true),
        };
        const short = shortName(bytes.subarray(at, at + 11));
        if (short !== '.' && short !== '..') entries.push({ long: expected === 0 ? long : '', short, node });
      }
      long = '';
      expected = 0;
    }
    return entries;
  }

  async #directoryBytes(directory: FatNode): Promise<Uint8Array> {
    const { rootOffset, rootBytes, clusterBytes, dataOffset } = this.#geometry;
    if (directory === this.root && directory.firstCluster === 0) return await this.#volume.read(rootOffset, rootBytes);
    const parts: Uint8Array[] = [];
    for (let index = 0; index * clusterBytes < DIRECTORY_BYTES_MAX; index++) {
      const cluster = await this.#clusterAt(directory.firstCluster, index);
      if (cluster === undefined) break;
      parts.push(await this.#volume.read(dataOffset + (cluster - 2) * clusterBytes, clusterBytes));
    }
    const bytes = new Uint8Array(parts.length * clusterBytes);
    for (const [index, part] of parts.entries()) bytes.set(part, index * clusterBytes);
    return bytes;
  }
}

function shortName(bytes: Uint8Array): string {
  const text = (from: number, to: number): string => String.fromCharCode(...bytes.subarray(from, to)).trimEnd();
  const extension = text(8, 11);
  return extension === '' ? text(0, 8) : `${text(0, 8)}.${extension}`;
}
