/** The image of a disk that lies over others stands alone afterwards: what `domus disk flatten` does. */

import { DiskImageError } from '../storage/block-file.ts';
import { flattenImage } from '../storage/host/flatten.ts';

/** The user's to solve; one line. The image is as it was. */
export class DiskFlattenError extends Error {
  override readonly name = 'DiskFlattenError';
}

/** The images on which it does not depend any more, the nearest first. @throws DiskFlattenError */
export async function flattenDisk(path: string): Promise<string[]> {
  try {
    return await flattenImage(path);
  } catch (error) {
    if (error instanceof DiskImageError || (error instanceof Error && 'syscall' in error))
      throw new DiskFlattenError(error.message);
    throw error;
  }
}
