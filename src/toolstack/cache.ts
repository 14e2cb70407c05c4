/**
 * Where Domus keeps what it can make again: unpacked kernels, downloaded packages, built guests.
 *
 * Invariant: a name in the cache is either absent or complete. Writers fill a temporary name beside the final one and
 * rename it, so neither Ctrl-C nor a full disk leaves half a file under a final name.
 */

import { randomBytes } from 'node:crypto';
import { rmSync } from 'node:fs';
import { mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { dirname, join, resolve } from 'node:path';

/** The cache's root: $DOMUS_CACHE_DIR, else $XDG_CACHE_HOME/domus, else ~/.cache/domus. The folder may not exist yet. */
export function cacheRoot(env: NodeJS.ProcessEnv = process.env): string {
  if (env['DOMUS_CACHE_DIR']) return resolve(env['DOMUS_CACHE_DIR']);
  // The XDG specification tells programs to ignore a relative path here.
  if (env['XDG_CACHE_HOME']?.startsWith('/')) return join(env['XDG_CACHE_HOME'], 'domus');
  return join(homedir(), '.cache', 'domus');
}

/** Temporary names in use; what is left of them when the process exits is removed. */
const temporaries = new Set<string>();

/**
 * A name beside `path` that nobody else uses, for a file or folder that will be renamed to `path`. It is removed when the
 * process exits through `process.exit()` or its natural end; a killed process leaves it, under a name nothing reads.
 */
export function temporaryBeside(path: string): string {
  if (temporaries.size === 0) {
    process.once('exit', () => {
      for (const temporary of temporaries) rmSync(temporary, { recursive: true, force: true });
    });
  }
  const temporary = `${path}.tmp-${process.pid}-${randomBytes(4).toString('hex')}`;
  temporaries.add(temporary);
  return temporary;
}

/** Writes a file so that `path` has either its old content or all of the new one. Makes the folder. */
export async function writeFileAtomic(
  path: string,
  content: Uint8Array | string | readonly Uint8Array[],
): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  const temporary = temporaryBeside(path);
  try {
    await writeFile(temporary, typeof content === 'string' || content instanceof Uint8Array ? content : [...content]);
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}
