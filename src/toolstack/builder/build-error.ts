/**
 * What the user asked for cannot be built: kernel, ramdisk, command line and memory do not fit each other.
 * `message` is one line, and names the cause and the numbers in the user's words.
 */
export class BuildError extends Error {
  override readonly name = 'BuildError';

  /** @param message control characters (a file name may have them) become spaces */
  constructor(message: string) {
    super(message.replace(/[\u0000-\u001f\u007f]+/g, ' '));
  }
}
