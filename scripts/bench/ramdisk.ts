/**
 * What a load needs besides the guest's own ramdisk, in a second archive behind it: Linux unpacks one after the other. The busybox
 * guest has no compiler and no C library, so programs are made static by the host's C compiler; QEMU's disks and cards need Debian's
 * virtio modules; and a script is not bound to the length of a command line.
 *
 * Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst.
 */

import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { cacheRoot } from '../../src/toolstack/cache.ts';
import { openApt } from '../../src/toolstack/guest-image/apt.ts';
import { DEFAULT_KERNEL_PACKAGE } from '../../src/toolstack/guest-image/build.ts';
import { type CpioEntry, writeCpio } from '../../src/toolstack/guest-image/cpio.ts';
import { readDeb } from '../../src/toolstack/guest-image/deb.ts';

/** Plain x86-64, which every guest can run. */
const FLAGS = ['-O2', '-m64', '-march=x86-64', '-static', '-nostdlib', '-fno-math-errno', '-fno-stack-protector'];
/** In the order in which they are loaded. Newer kernels have some of them built in. */
const MODULES = [
  ...['virtio_ring', 'virtio', 'virtio_pci_legacy_dev', 'virtio_pci_modern_dev', 'virtio_pci', 'virtio_blk'],
  ...['failover', 'net_failover', 'virtio_net'],
];
/** Where the script is in the guest. */
export const SCRIPT_PATH = '/bench.sh';

export interface Programs {
  readonly entries: readonly CpioEntry[];
  /** First line of the compiler's --version. */
  readonly compiler: string;
}

/** Programs of this folder, made for the guest: each in / under its own name. Or why there are none. */
export function compile(names: readonly string[]): Programs | string {
  const version = spawnSync('cc', ['--version'], { encoding: 'utf8' });
  if (version.status !== 0) return 'there is no C compiler (cc)';
  const folder = mkdtempSync(join(tmpdir(), 'domus-bench-'));
  try {
    const entries: CpioEntry[] = [];
    for (const name of names) {
      const program = join(folder, name);
      const source = fileURLToPath(new URL(`./${name}.c`, import.meta.url));
      const made = spawnSync('cc', [...FLAGS, '-o', program, source], { encoding: 'utf8' });
      if (made.status !== 0) return `cc cannot make ${name} for x86-64: ${made.stderr.trim().split('\n', 1)[0]}`;
      entries.push({ kind: 'file', name, mode: 0o755, content: readFileSync(program) });
    }
    return { entries, compiler: version.stdout.split('\n', 1)[0] ?? '' };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/**
 * QEMU's drivers for the guest's kernel, in /virtio, named so that they load in order.
 *
 * @throws AptError, DebError
 */
export async function virtioModules(): Promise<CpioEntry[]> {
  const apt = await openApt({ cacheDir: cacheRoot() });
  const image = (await apt.depends(DEFAULT_KERNEL_PACKAGE)).find((name) => /^linux-image-(unsigned-)?\d/.test(name));
  const deb = await apt.download(image ?? DEFAULT_KERNEL_PACKAGE);
  const orderOf = (path: string): number =>
    MODULES.indexOf(
      basename(path)
        .replace(/\.ko(\.xz)?$/, '')
        .replaceAll('-', '_'),
    );
  const files = await readDeb(deb, (name) => name.includes('/kernel/') && orderOf(name) >= 0);
  return [
    { kind: 'directory', name: 'virtio', mode: 0o755 },
    ...[...files].map(
      ([path, content]): CpioEntry => ({
        kind: 'file',
        name: `virtio/${orderOf(path)}-${basename(path)}`,
        mode: 0o644,
        content,
      }),
    ),
  ];
}

/** A text at an absolute path. */
export const fileEntry = (path: string, text: string): CpioEntry => ({
  kind: 'file',
  name: path.slice(1),
  mode: 0o644,
  content: Buffer.from(text),
});

/** Writes the ramdisk with more behind it. */
export function writeRamdisk(target: string, ramdisk: string, entries: readonly CpioEntry[]): void {
  writeFileSync(target, Buffer.concat([readFileSync(ramdisk), gzipSync(writeCpio(entries))]));
}
