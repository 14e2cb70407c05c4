/** File systems for reading only, behind one interface, and the walk along a path. */
import { BootDiskError } from './volume.ts';

export interface FileNode {
  readonly kind: 'file' | 'directory' | 'symlink' | 'other';
  readonly sizeBytes: number;
}

export interface FileSystem<Node extends FileNode = FileNode> {
  /** "ext4", "fat32", "iso9660". */
  readonly kind: string;
  readonly root: Node;
  /** The entry of that name, links not followed. */
  lookup(directory: Node, name: string): Promise<Node | undefined>;
  /** Names of all entries but "." and "..". */
  names(directory: Node): Promise<string[]>;
  /** Bytes of a file. The range is within it. */
  read(file: Node, offset: number, lengthBytes: number): Promise<Uint8Array>;
  /** Where a symbolic link points to. */
  target(link: Node): Promise<string>;
}

/** As Linux has it. */
const LINKS_MAX = 40;
const PATH_CHARS_MAX = 4096;

/**
 * The file or directory at `path`, links followed within the file system.
 *
 * @returns undefined if there is none
 * @throws BootDiskError for a loop of links, or a file system that is damaged on the way
 */
export async function findPath<Node extends FileNode>(fs: FileSystem<Node>, path: string): Promise<Node | undefined> {
  const walked: Node[] = [fs.root];
  const ahead = path.split('/').reverse();
  let links = 0;
  let chars = path.length;
  while (ahead.length > 0) {
    const name = ahead.pop()!;
    if (name === '' || name === '.') continue;
    if (name === '..') {
      if (walked.length > 1) walked.pop();
      continue;
    }
    const directory = walked.at(-1)!;
    if (directory.kind !== 'directory') return undefined;
    const node = await fs.lookup(directory, name);
    if (node === undefined) return undefined;
    if (node.kind !== 'symlink') {
      walked.push(node);
      continue;
    }
    const target = await fs.target(node);
    chars += target.length;
    if (++links > LINKS_MAX || chars > PATH_CHARS_MAX * LINKS_MAX)
      throw new BootDiskError(`${path}: too many symbolic links`);
    if (target.startsWith('/')) walked.length = 1;
    ahead.push(...target.split('/').reverse());
  }
  return walked.at(-1);
}

/** A whole file. @throws BootDiskError if it has more than `bytesMax` bytes */
export async function readWhole<Node extends FileNode>(
  fs: FileSystem<Node>,
  file: Node,
  bytesMax: number,
): Promise<Uint8Array> {
  if (file.sizeBytes > bytesMax)
    throw new BootDiskError(`a file of ${file.sizeBytes} bytes, expected at most ${bytesMax}`);
  return await fs.read(file, 0, file.sizeBytes);
}
