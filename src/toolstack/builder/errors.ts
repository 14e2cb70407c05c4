/**
 * The one error of the kernel-image path: a file that cannot be used as a guest kernel.
 *
 * The user gave the file, so the message is for the user: one line that names the file, what was expected and what
 * was found. Nothing in this folder throws another class for bad input; another exception is our own bug.
 */

/** A file cannot be used as a guest kernel. `message` is one line and starts with the file's name. */
export class KernelImageError extends Error {
  override readonly name = 'KernelImageError';
  /** The file as the user named it. */
  readonly file: string;

  /**
   * @param file the file as the user named it; it becomes the start of the message
   * @param problem what is wrong with it; line breaks and control characters are folded to spaces
   */
  constructor(file: string, problem: string, options?: ErrorOptions) {
    super(`${file}: ${problem}`.replace(/[\u0000-\u001f\u007f]+/g, ' '), options);
    this.file = file;
  }
}
