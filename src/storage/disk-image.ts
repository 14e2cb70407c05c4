/**
 * Disk images behind one interface, whatever their format, and the door that opens them.
 *
 * Offsets and lengths are bytes of the virtual disk; a block backend hands in multiples of 512. Requests may overlap in
 * time: those that touch the same bytes are done in no particular order, as on real disks.
 */
import { type BlockFile, DiskImageError, type Files, type Sharing } from './block-file.ts';
import type { DiskFormat } from './formats.ts';
import { QCOW2_MAGIC } from './qcow2/header.ts';
import { openQcow2 } from './qcow2/open.ts';
import { RawImage } from './raw.ts';
import { isFooter } from './vhd/format.ts';
import { openVhd } from './vhd/image.ts';

export interface DiskImage {
  /** "raw", "qcow2", "vhd": as in xl's disk specification. */
  readonly format: string;
  /** Size of the virtual disk now; `resize` changes it. */
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  /**
   * Fills the buffers, which may be views of guest memory.
   * @throws DiskImageError if the range is not on the disk or the image is damaged there; or the host's error
   */
  read(offset: number, buffers: readonly Uint8Array[]): Promise<void>;
  /** Writes the buffers one behind the other. Survives a crash only after `flush`. */
  write(offset: number, buffers: readonly Uint8Array[]): Promise<void>;
  /**
   * The same within the call, for `lengthBytes` in `buffers` that are on the disk: for what the host's cache has, the way to another
   * thread and back is most of the time. False: `read` or `write` is wanted, and tells what is wrong, if anything is. Absent
   * where every request has to wait.
   */
  readNow?(offset: number, buffers: readonly Uint8Array[], lengthBytes: number): boolean;
  writeNow?(offset: number, buffers: readonly Uint8Array[], lengthBytes: number): boolean;
  /** Every write, discard and resize that was answered before this call survives a crash. */
  flush(): Promise<void>;
  /** The range is not needed any more: it reads as zeroes or as before. Storage is given back where that is possible. */
  discard(offset: number, lengthBytes: number): Promise<void>;
  /** The range reads as zeroes, with as little storage as the format allows. */
  writeZeroes(offset: number, lengthBytes: number): Promise<void>;
  /** Takes up the size that the file or device has now. Absent where the image says itself how large the disk is. */
  measure?(): Promise<void>;
  /** @throws DiskImageError where the format cannot */
  resize(sizeBytes: number): Promise<void>;
  /** Flushes and closes. Requests under way must have been answered before. */
  close(): Promise<void>;
}

export interface OpenImageOptions {
  /**
   * `auto` looks at the first bytes. A guest can write any first bytes to a raw disk and so make it an image that names
   * files of the host; use `auto` only for images that no guest has written.
   */
  readonly format: DiskFormat | 'auto';
  readonly readOnly: boolean;
  /** What others may do with the file meanwhile; `exclusive` unless given. */
  readonly sharing?: Sharing;
  /** Opens a qcow2 disk as it was: id or name of an internal snapshot. For reading only. */
  readonly snapshot?: string;
}

/** What the first bytes of a file say it is. */
export async function probeFormat(file: BlockFile): Promise<DiskFormat> {
  const bytes = new Uint8Array(512);
  await file.read(0, [bytes]);
  if (new DataView(bytes.buffer).getUint32(0) === QCOW2_MAGIC) return 'qcow2';
  if (isFooter(bytes)) return 'vhd';
  if (file.sizeBytes < bytes.length) return 'raw';
  await file.read(file.sizeBytes - bytes.length, [bytes]);
  return isFooter(bytes) ? 'vhd' : 'raw';
}

/**
 * Opens an image, and with it the files it names.
 *
 * @throws DiskImageError that names the file, and what was expected and found
 */
export function openDiskImage(files: Files, path: string, options: OpenImageOptions): Promise<DiskImage> {
  return openInChain(files, path, options, []);
}

/** A chain longer than this was made by mistake or malice. */
const CHAIN_MAX = 64;

async function openInChain(
  files: Files,
  path: string,
  options: OpenImageOptions,
  above: readonly string[],
): Promise<DiskImage> {
  const sharing = options.sharing ?? 'exclusive';
  // What cannot be resolved cannot be opened either, and that says why.
  const identity = await files.identity(path).catch(() => path);
  if (above.includes(identity))
    throw new DiskImageError(`${path}: is its own backing file, through ${above.length} images`);
  if (above.length >= CHAIN_MAX) {
    throw new DiskImageError(`${path}: is backing file number ${above.length}, expected at most ${CHAIN_MAX - 1}`);
  }
  const file = await files.open(path, { readOnly: options.readOnly, sharing });
  try {
    const format = options.format === 'auto' ? await probeFormat(file) : options.format;
    const openBacking = (name: string, backingFormat?: string): Promise<DiskImage> =>
      openInChain(
        files,
        files.resolve(path, backingPath(path, name)),
        { format: formatOfBacking(path, backingFormat), readOnly: true, sharing },
        [...above, identity],
      );
    if (options.snapshot !== undefined && format !== 'qcow2') {
      throw new DiskImageError(`${path}: images of format ${format} have no snapshots`);
    }
    switch (format) {
      case 'raw':
        return new RawImage(file);
      case 'qcow2': {
        const { snapshot } = options;
        return await openQcow2(files, file, { sharing, openBacking, ...(snapshot === undefined ? {} : { snapshot }) });
      }
      case 'vhd':
        return await openVhd(file, { openParent: (names) => openParent(files, path, names, openBacking) });
    }
  } catch (error) {
    await file.close();
    throw error;
  }
}

/** A differencing disk has several names for its parent, some of them for other systems: the first that is there. */
async function openParent(
  files: Files,
  path: string,
  names: readonly string[],
  open: (name: string) => Promise<DiskImage>,
): Promise<DiskImage> {
  for (const name of names) {
    const isThere = await files.identity(files.resolve(path, name)).then(
      () => true,
      () => false,
    );
    if (isThere) return await open(name);
  }
  throw new DiskImageError(`${path}: its parent is not there: ${names.join(', ')}`);
}

/** The path in a backing file's name. QEMU has more ways to name one than files. */
export function backingPath(imagePath: string, name: string): string {
  const path = name.startsWith('file:') ? name.slice('file:'.length) : name;
  const protocol = /^([A-Za-z0-9+.-]+):/.exec(path);
  if (protocol !== null) {
    throw new DiskImageError(
      `${imagePath}: its backing file is ${JSON.stringify(name)}; expected a file, not "${protocol[1]}:"`,
    );
  }
  return path;
}

function formatOfBacking(imagePath: string, name: string | undefined): DiskFormat | 'auto' {
  switch (name) {
    case undefined:
      return 'auto';
    case 'raw':
    case 'file':
    case 'host_device':
      return 'raw';
    case 'qcow2':
      return 'qcow2';
    case 'vpc':
      return 'vhd';
    default:
      throw new DiskImageError(
        `${imagePath}: its backing file has the format ${JSON.stringify(name)}; expected "raw", "qcow2" or "vpc"`,
      );
  }
}
