/** Reads a domain's config file as xl does: its errors, and what systems other than Linux put into text files. */

import { readFileSync } from 'node:fs';
import type { Context } from './command.ts';

/** The text, or null after a message. Line ends of Windows and a byte order mark are no part of it. */
export function readConfigFile(file: string, context: Context): string | null {
  // The name stands for "no file" in xl, on every system.
  if (file === '/dev/null') return '';
  try {
    return new TextDecoder().decode(readFileSync(file)).replaceAll('\r\n', '\n');
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? String(error.code) : '';
    const reason = ERRNO_TEXTS[code];
    if (reason === undefined) throw error;
    context.err(`Failed to read config file: ${file}: ${reason}`);
    return null;
  }
}

/** strerror(3) of glibc for what open(2) and read(2) can say of a path. */
const ERRNO_TEXTS: Readonly<Record<string, string>> = {
  EACCES: 'Permission denied',
  EINVAL: 'Invalid argument',
  EIO: 'Input/output error',
  EISDIR: 'Is a directory',
  ELOOP: 'Too many levels of symbolic links',
  EMFILE: 'Too many open files',
  ENAMETOOLONG: 'File name too long',
  ENFILE: 'Too many open files in system',
  ENODEV: 'No such device',
  ENOENT: 'No such file or directory',
  ENOMEM: 'Cannot allocate memory',
  ENOTDIR: 'Not a directory',
  ENXIO: 'No such device or address',
  EPERM: 'Operation not permitted',
  ERR_FS_FILE_TOO_LARGE: 'File too large',
  ERR_INVALID_ARG_VALUE: 'Invalid argument',
};
