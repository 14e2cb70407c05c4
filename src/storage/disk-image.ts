/**
 * Disk images behind one interface, whatever their format, and the door that opens them.
 *
 * Offsets and lengths are bytes of the virtual disk; a block backend hands in multiples of 512. Requests may overlap in
 * time: those that touch the same bytes are done in no particular order, as on real disks.
 */
import { type BlockFile, DiskImageError, type Files, type Sharing } from './block-file.ts';
import { RawImage } from './raw.ts';

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
  /** Every write, discard and resize that was answered before this call survives a crash. */
  flush(): Promise<void>;
  /** The range is not needed any more: it reads as zeroes or as before. Storage is given back where that is possible. */
  discard(offset: number, lengthBytes: number): Promise<void>;
  /** The range reads as zeroes, with as little storage as the format allows. */
  writeZeroes(offset: number, lengthBytes: number): Promise<void>;
  /** @throws DiskImageError where the format cannot */
  resize(sizeBytes: number): Promise<void>;
  /** Flushes and closes. Requests under way must have been answered before. */
  close(): Promise<void>;
}

export type DiskFormat = 'raw' | 'qcow2' | 'vhd';

export interface OpenImageOptions {
  /**
   * `auto` looks at the first bytes. A guest can write any first bytes to a raw disk and so make it an image that names
   * files of the host; use `auto` only for images that no guest has written.
   */
  readonly format: DiskFormat | 'auto';
  readonly readOnly: boolean;
  /** What others may do with the file meanwhile; `exclusive` unless given. */
  readonly sharing?: Sharing;
}

/** What the first bytes of a file say it is. */
export async function probeFormat(_file: BlockFile): Promise<DiskFormat> {
  return 'raw';
}

/**
 * Opens an image, and with it the files it names.
 *
 * @throws DiskImageError that names the file, and what was expected and found
 */
export async function openDiskImage(files: Files, path: string, options: OpenImageOptions): Promise<DiskImage> {
  const file = await files.open(path, { readOnly: options.readOnly, sharing: options.sharing ?? 'exclusive' });
  try {
    const format = options.format === 'auto' ? await probeFormat(file) : options.format;
    switch (format) {
      case 'raw':
        return new RawImage(file);
      default:
        throw new DiskImageError(`${path}: images of format ${format} are not supported yet`);
    }
  } catch (error) {
    await file.close();
    throw error;
  }
}
