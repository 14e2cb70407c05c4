/** The image contradicts itself: writing to it any further would make it worse. */
import { DiskImageError } from '../block-file.ts';

export class DamagedImageError extends DiskImageError {
  constructor(path: string, message: string) {
    super(`${path}: the image is damaged: ${message}; "qemu-img check" says more`);
  }
}
