/** The check that every request on a disk passes first. */
import { DiskImageError } from './block-file.ts';

/** @throws DiskImageError if the range is not on the disk, or a write is meant for a disk that is read only */
export function checkRange(
  path: string,
  disk: { readonly sizeBytes: number; readonly readOnly: boolean },
  access: 'read' | 'write',
  offset: number,
  lengthBytes: number,
): void {
  const end = offset + lengthBytes;
  if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(end) || offset < 0 || end < offset) {
    throw new DiskImageError(`${path}: cannot ${access} ${lengthBytes} bytes at ${offset}: not a range of bytes`);
  }
  if (end > disk.sizeBytes) {
    throw new DiskImageError(
      `${path}: cannot ${access} ${lengthBytes} bytes at ${offset}: the disk has ${disk.sizeBytes} bytes`,
    );
  }
  if (access === 'write' && disk.readOnly) {
    throw new DiskImageError(`${path}: cannot write at ${offset}: it is open for reading only`);
  }
}
