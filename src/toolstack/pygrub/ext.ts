/**
 * ext2, ext3 and ext4, for reading only: extents and block maps, 64-bit block numbers, inline data, meta block groups,
 * htree directories (whose index blocks look like empty ones to a linear reader). Checksums are not looked at, and a
 * journal that would have to be replayed is not: the files of a boot loader are seldom younger than it.
 *
 * Source: Linux, Documentation/filesystems/ext4.
 */
import type { FileNode, FileSystem } from './file-system.ts';
import { BootDiskError, type Volume } from './volume.ts';

const SUPERBLOCK = {
  OFFSET: 1024,
  SIZE: 1024,
  inodes_count: 0,
  blocks_count_lo: 4,
  first_data_block: 20,
  log_block_size: 24,
  blocks_per_group: 32,
  inodes_per_group: 40,
  magic: 56,
  rev_level: 76,
  inode_size: 88,
  feature_compat: 92,
  feature_incompat: 96,
  feature_ro_compat: 100,
  desc_size: 254,
  first_meta_bg: 260,
  blocks_count_hi: 336,
  backup_bgs: 588,
} as const;

const MAGIC = 0xef53;
const INCOMPAT = {
  COMPRESSION: 0x1,
  JOURNAL_DEV: 0x8,
  META_BG: 0x10,
  EXTENTS: 0x40,
  BIT64: 0x80,
  DIRDATA: 0x1000,
} as const;
const COMPAT_SPARSE_SUPER2 = 0x200;
const RO_COMPAT_SPARSE_SUPER = 0x1;
const ROOT_INODE = 2;

const INODE = { mode: 0, size_lo: 4, flags: 32, block: 40, BLOCK_SIZE: 60, size_high: 108, extra_isize: 128 } as const;
const FLAG = { ENCRYPTED: 0x800, EXTENTS: 0x80000, INLINE_DATA: 0x10000000 } as const;
const EXTENT_MAGIC = 0xf30a;
const EXTENT_DEPTH_MAX = 5;
/** Longer extents are not initialised: they read as zeroes. */
const EXTENT_LENGTH_MAX = 32768;
const XATTR_MAGIC = 0xea020000;
const XATTR_INDEX_SYSTEM = 7;
const DIRECTORY_BYTES_MAX = 64 << 20;
const LINK_BYTES_MAX = 4096;

interface ExtNode extends FileNode {
  readonly inode: number;
  readonly flags: number;
  /** i_block: extents, block numbers, or the first bytes of the content. */
  readonly block: DataView;
  /** Inline content, if it has any. */
  readonly inline: Uint8Array | undefined;
}

const decoder = new TextDecoder();

/** Opens the file system, if the volume has one. @throws BootDiskError if it has one that cannot be read */
export async function openExt(volume: Volume): Promise<FileSystem<ExtNode> | undefined> {
  if (volume.sizeBytes < SUPERBLOCK.OFFSET + SUPERBLOCK.SIZE) return undefined;
  const superblock = await volume.view(SUPERBLOCK.OFFSET, SUPERBLOCK.SIZE);
  if (superblock.getUint16(SUPERBLOCK.magic, true) !== MAGIC) return undefined;
  const fs = new ExtFileSystem(volume, superblock);
  await fs.open();
  return fs;
}

class ExtFileSystem implements FileSystem<ExtNode> {
  readonly kind: string;
  readonly #volume: Volume;
  readonly #superblock: DataView;
  readonly #blockBytes: number;
  readonly #blocks: number;
  readonly #inodes: number;
  readonly #inodeBytes: number;
  readonly #inodesPerGroup: number;
  readonly #blocksPerGroup: number;
  readonly #incompat: number;
  readonly #descriptorBytes: number;
  #root: ExtNode | undefined;

  constructor(volume: Volume, superblock: DataView) {
    this.#volume = volume;
    this.#superblock = superblock;
    const u32 = (offset: number): number => superblock.getUint32(offset, true);
    const logBlock = u32(SUPERBLOCK.log_block_size);
    if (logBlock > 6) throw new BootDiskError(`ext: block size 2^${10 + logBlock}, expected at most 65536`);
    this.#blockBytes = 1024 << logBlock;
    this.#incompat = u32(SUPERBLOCK.feature_incompat);
    const refused = this.#incompat & (INCOMPAT.COMPRESSION | INCOMPAT.JOURNAL_DEV | INCOMPAT.DIRDATA);
    if (refused !== 0) throw new BootDiskError(`ext: feature 0x${refused.toString(16)} is not supported`);
    const is64 = (this.#incompat & INCOMPAT.BIT64) !== 0;
    this.#blocks = u32(SUPERBLOCK.blocks_count_lo) + (is64 ? u32(SUPERBLOCK.blocks_count_hi) * 2 ** 32 : 0);
    this.#inodes = u32(SUPERBLOCK.inodes_count);
    this.#inodesPerGroup = u32(SUPERBLOCK.inodes_per_group);
    this.#blocksPerGroup = u32(SUPERBLOCK.blocks_per_group);
    this.#inodeBytes = u32(SUPERBLOCK.rev_level) === 0 ? 128 : superblock.getUint16(SUPERBLOCK.inode_size, true);
    this.#descriptorBytes = is64 ? superblock.getUint16(SUPERBLOCK.desc_size, true) : 32;
    if (this.#inodesPerGroup === 0 || this.#blocksPerGroup === 0)
      throw new BootDiskError('ext: block groups are empty');
    if (this.#inodeBytes < 128 || this.#inodeBytes > this.#blockBytes) {
      throw new BootDiskError(`ext: inodes of ${this.#inodeBytes} bytes, expected 128 to ${this.#blockBytes}`);
    }
    if (this.#descriptorBytes < 32 || this.#descriptorBytes > this.#blockBytes || this.#descriptorBytes % 8 !== 0) {
      throw new BootDiskError(
        `ext: group descriptors of ${this.#descriptorBytes} bytes, expected 32 to ${this.#blockBytes}`,
      );
    }
    this.kind = (this.#incompat & INCOMPAT.EXTENTS) !== 0 ? 'ext4' : 'ext2';
  }

  async open(): Promise<void> {
    this.#root = await this.#node(ROOT_INODE);
    if (this.#root.kind !== 'directory') throw new BootDiskError('ext: the root inode is no directory');
  }

  get root(): ExtNode {
    return this.#root!;
  }

  async #node(inode: number): Promise<ExtNode> {
    if (inode < 1 || inode > this.#inodes)
      throw new BootDiskError(`ext: inode ${inode}, expected 1 to ${this.#inodes}`);
    const group = Math.floor((inode - 1) / this.#inodesPerGroup);
    const descriptor = await this.#volume.view(this.#descriptorOffset(group), this.#descriptorBytes);
    const high = this.#descriptorBytes >= 64 ? descriptor.getUint32(40, true) : 0;
    const table = descriptor.getUint32(8, true) + high * 2 ** 32;
    const offset = table * this.#blockBytes + ((inode - 1) % this.#inodesPerGroup) * this.#inodeBytes;
    const view = await this.#volume.view(offset, this.#inodeBytes);
    const mode = view.getUint16(INODE.mode, true) & 0xf000;
    const kind = mode === 0x8000 ? 'file' : mode === 0x4000 ? 'directory' : mode === 0xa000 ? 'symlink' : 'other';
    const sizeBytes = view.getUint32(INODE.size_lo, true) + view.getUint32(INODE.size_high, true) * 2 ** 32;
    const flags = view.getUint32(INODE.flags, true);
    const block = new DataView(view.buffer, INODE.block, INODE.BLOCK_SIZE);
    const inline = (flags & FLAG.INLINE_DATA) !== 0 ? inlineContent(view) : undefined;
    return { kind, sizeBytes, inode, flags, block, inline };
  }

  /** Descriptors lie behind the superblock, or with META_BG one block of them at the start of the groups it describes. */
  #descriptorOffset(group: number): number {
    const perBlock = Math.floor(this.#blockBytes / this.#descriptorBytes);
    const block = Math.floor(group / perBlock);
    const first = this.#superblock.getUint32(SUPERBLOCK.first_data_block, true);
    // With blocks of 1024 bytes block 0 is left out, which bigalloc does not count so.
    const firstDataBlock = first === 0 && this.#blockBytes === SUPERBLOCK.OFFSET ? 1 : first;
    const within = (group % perBlock) * this.#descriptorBytes;
    const isMeta = (this.#incompat & INCOMPAT.META_BG) !== 0;
    if (!isMeta || block < this.#superblock.getUint32(SUPERBLOCK.first_meta_bg, true)) {
      return (firstDataBlock + 1 + block) * this.#blockBytes + within;
    }
    const firstGroup = block * perBlock;
    const own = firstDataBlock + firstGroup * this.#blocksPerGroup + (this.#hasSuperblock(firstGroup) ? 1 : 0);
    return own * this.#blockBytes + within;
  }

  #hasSuperblock(group: number): boolean {
    if (group === 0) return true;
    if ((this.#superblock.getUint32(SUPERBLOCK.feature_compat, true) & COMPAT_SPARSE_SUPER2) !== 0) {
      return [0, 4].some((at) => this.#superblock.getUint32(SUPERBLOCK.backup_bgs + at, true) === group);
    }
    if ((this.#superblock.getUint32(SUPERBLOCK.feature_ro_compat, true) & RO_COMPAT_SPARSE_SUPER) === 0) return true;
    if (group === 1) return true;
    return [3, 5, 7].some((base) => {
      let power = base;
      while (power < group) power *= base;
      return power === group;
    });
  }

  async read(node: ExtNode, offset: number, lengthBytes: number): Promise<Uint8Array> {
    if ((node.flags & FLAG.ENCRYPTED) !== 0) throw new BootDiskError(`ext: inode ${node.inode} is encrypted`);
    const content = new Uint8Array(lengthBytes);
    if (node.inline !== undefined) {
      content.set(node.inline.subarray(offset, offset + lengthBytes));
      return content;
    }
    for (let done = 0; done < lengthBytes; ) {
      const at = offset + done;
      const block = Math.floor(at / this.#blockBytes);
      const run = await this.#mapBlock(node, block);
      const within = at - block * this.#blockBytes;
      const length = Math.min(lengthBytes - done, run.count * this.#blockBytes - within);
      if (run.place !== 0) {
        if (run.place + run.count > this.#blocks)
          throw new BootDiskError(`ext: inode ${node.inode} has blocks behind the end`);
        content.set(await this.#volume.read(run.place * this.#blockBytes + within, length), done);
      }
      done += length;
    }
    return content;
  }

  /** Where a file's block lies, and how many follow it in a row; place 0 is a hole. */
  #mapBlock(node: ExtNode, block: number): Promise<{ place: number; count: number }> {
    if ((node.flags & FLAG.EXTENTS) !== 0) return this.#mapByExtents(node, block);
    return this.#mapByBlocks(node, block);
  }

  async #mapByExtents(node: ExtNode, block: number): Promise<{ place: number; count: number }> {
    let view = node.block;
    for (let level = 0; level <= EXTENT_DEPTH_MAX; level++) {
      const entries = view.getUint16(2, true);
      const depth = view.getUint16(6, true);
      if (view.getUint16(0, true) !== EXTENT_MAGIC || 12 + entries * 12 > view.byteLength) {
        throw new BootDiskError(`ext: inode ${node.inode} has a damaged extent tree`);
      }
      let chosen = -1;
      let next = 2 ** 32;
      for (let index = 0; index < entries; index++) {
        const first = view.getUint32(12 + index * 12, true);
        if (first <= block) chosen = index;
        else {
          next = first;
          break;
        }
      }
      const hole = { place: 0, count: Math.max(1, next - block) };
      if (chosen < 0) return hole;
      const at = 12 + chosen * 12;
      if (depth === 0) {
        const length = view.getUint16(at + 4, true);
        const isWritten = length <= EXTENT_LENGTH_MAX;
        const count = isWritten ? length : length - EXTENT_LENGTH_MAX;
        const skipped = block - view.getUint32(at, true);
        if (skipped >= count) return hole;
        const place = view.getUint16(at + 6, true) * 2 ** 32 + view.getUint32(at + 8, true);
        return { place: isWritten ? place + skipped : 0, count: count - skipped };
      }
      const child = view.getUint16(at + 8, true) * 2 ** 32 + view.getUint32(at + 4, true);
      view = await this.#volume.view(child * this.#blockBytes, this.#blockBytes);
    }
    throw new BootDiskError(`ext: inode ${node.inode} has an extent tree deeper than ${EXTENT_DEPTH_MAX}`);
  }

  /** 12 blocks, then trees of one, two and three levels. */
  async #mapByBlocks(node: ExtNode, block: number): Promise<{ place: number; count: number }> {
    if (block < 12) return { place: node.block.getUint32(block * 4, true), count: 1 };
    const perBlock = this.#blockBytes / 4;
    let rest = block - 12;
    for (let levels = 1; levels <= 3; levels++) {
      const covered = perBlock ** levels;
      if (rest >= covered) {
        rest -= covered;
        continue;
      }
      let place = node.block.getUint32((11 + levels) * 4, true);
      for (let level = levels - 1; level >= 0 && place !== 0; level--) {
        const index = Math.floor(rest / perBlock ** level) % perBlock;
        place = (await this.#volume.view(place * this.#blockBytes + index * 4, 4)).getUint32(0, true);
      }
      return { place, count: 1 };
    }
    throw new BootDiskError(`ext: inode ${node.inode} has no block ${block}`);
  }

  async lookup(directory: ExtNode, name: string): Promise<ExtNode | undefined> {
    const wanted = new TextEncoder().encode(name);
    let found: number | undefined;
    await this.#scan(directory, (inode, bytes) => {
      if (bytes.length !== wanted.length || bytes.some((byte, index) => byte !== wanted[index])) return true;
      found = inode;
      return false;
    });
    return found === undefined ? undefined : await this.#node(found);
  }

  async names(directory: ExtNode): Promise<string[]> {
    const names: string[] = [];
    await this.#scan(directory, (_inode, bytes) => {
      const name = decoder.decode(bytes);
      if (name !== '.' && name !== '..') names.push(name);
      return true;
    });
    return names;
  }

  /** Calls `use` with each entry until it gives false. */
  async #scan(directory: ExtNode, use: (inode: number, name: Uint8Array) => boolean): Promise<void> {
    if (directory.inline !== undefined) {
      // The parent's number, then entries, the rest of them in an area of their own.
      const { inline } = directory;
      if (this.#scanBlock(inline.subarray(4, INODE.BLOCK_SIZE), use))
        this.#scanBlock(inline.subarray(INODE.BLOCK_SIZE), use);
      return;
    }
    if (directory.sizeBytes > DIRECTORY_BYTES_MAX) {
      throw new BootDiskError(
        `ext: a directory of ${directory.sizeBytes} bytes, expected at most ${DIRECTORY_BYTES_MAX}`,
      );
    }
    for (let offset = 0; offset < directory.sizeBytes; offset += this.#blockBytes) {
      if (!this.#scanBlock(await this.read(directory, offset, this.#blockBytes), use)) return;
    }
  }

  #scanBlock(bytes: Uint8Array, use: (inode: number, name: Uint8Array) => boolean): boolean {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    for (let at = 0; at + 8 <= bytes.length; ) {
      const inode = view.getUint32(at, true);
      let length = view.getUint16(at + 4, true);
      // Of blocks of 64 KiB the length does not fit.
      if (bytes.length === 65536 && (length === 65535 || length === 0)) length = 65536;
      const nameBytes = bytes[at + 6]!;
      if (length < 8 || at + length > bytes.length || 8 + nameBytes > length) {
        // Inline areas end with unused bytes.
        if (inode === 0) return true;
        throw new BootDiskError('ext: a damaged directory');
      }
      if (inode !== 0 && nameBytes > 0 && !use(inode, bytes.subarray(at + 8, at + 8 + nameBytes))) return false;
      at += length;
    }
    return true;
  }

  async target(link: ExtNode): Promise<string> {
    if (link.sizeBytes > LINK_BYTES_MAX) throw new BootDiskError(`ext: a symbolic link of ${link.sizeBytes} bytes`);
    const isFast = link.sizeBytes < INODE.BLOCK_SIZE && (link.flags & (FLAG.EXTENTS | FLAG.INLINE_DATA)) === 0;
    if (!isFast) return decoder.decode(await this.read(link, 0, link.sizeBytes));
    return decoder.decode(new Uint8Array(link.block.buffer, link.block.byteOffset, link.sizeBytes));
  }
}

/** The content of a small file: i_block, and the rest in the extended attribute system.data of the inode's own space. */
function inlineContent(inode: DataView): Uint8Array {
  const first = new Uint8Array(inode.buffer, INODE.block, INODE.BLOCK_SIZE);
  if (inode.byteLength < INODE.extra_isize + 2) return first;
  const start = 128 + inode.getUint16(INODE.extra_isize, true);
  if (start + 4 > inode.byteLength || inode.getUint32(start, true) !== XATTR_MAGIC) return first;
  const entries = start + 4;
  for (let at = entries; at + 16 <= inode.byteLength; ) {
    const nameBytes = inode.getUint8(at);
    const index = inode.getUint8(at + 1);
    if (nameBytes === 0 && index === 0) break;
    const value = entries + inode.getUint16(at + 2, true);
    const valueBytes = inode.getUint32(at + 8, true);
    const end = at + 16 + nameBytes;
    if (end > inode.byteLength) break;
    const name = decoder.decode(new Uint8Array(inode.buffer, at + 16, nameBytes));
    if (index === XATTR_INDEX_SYSTEM && name === 'data' && value + valueBytes <= inode.byteLength) {
      const content = new Uint8Array(first.length + valueBytes);
      content.set(first);
      content.set(new Uint8Array(inode.buffer, value, valueBytes), first.length);
      return content;
    }
    at = Math.ceil(end / 4) * 4;
  }
  return first;
}
