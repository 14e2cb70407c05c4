/**
 * A program in machine code for the guest. The busybox guest has no compiler and no C library, so the host's C compiler makes a
 * static program of nbody.c, and the guest gets it in a second archive behind its ramdisk: Linux unpacks one after the other.
 * Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst.
 */

import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { writeCpio } from '../../src/toolstack/guest-image/cpio.ts';

const SOURCE = fileURLToPath(new URL('./nbody.c', import.meta.url));
/** Plain x86-64, which every guest can run. */
const FLAGS = ['-O2', '-m64', '-march=x86-64', '-static', '-nostdlib', '-fno-math-errno', '-fno-stack-protector'];

export interface NativeRamdisk {
  readonly path: string;
  /** First line of the compiler's --version. */
  readonly compiler: string;
  /** Removes the file. May be called from a process's `exit` handler. */
  remove(): void;
}

/** The ramdisk with /nbody in it, or why there is none. */
export function withNbody(ramdisk: string): NativeRamdisk | string {
  const version = spawnSync('cc', ['--version'], { encoding: 'utf8' });
  if (version.status !== 0) return 'there is no C compiler (cc)';
  const folder = mkdtempSync(join(tmpdir(), 'domus-bench-'));
  const remove = (): void => rmSync(folder, { recursive: true, force: true });
  const program = join(folder, 'nbody');
  const made = spawnSync('cc', [...FLAGS, '-o', program, SOURCE], { encoding: 'utf8' });
  if (made.status !== 0) {
    remove();
    return `cc cannot make it for x86-64: ${made.stderr.trim().split('\n', 1)[0]}`;
  }
  const archive = writeCpio([{ kind: 'file', name: 'nbody', mode: 0o755, content: readFileSync(program) }]);
  const path = join(folder, 'initrd.gz');
  writeFileSync(path, Buffer.concat([readFileSync(ramdisk), gzipSync(archive)]));
  return { path, compiler: version.stdout.split('\n', 1)[0] ?? '', remove };
}
