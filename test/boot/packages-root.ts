/**
 * A guest with Debian packages and, for comparison, the same root file system on the host: programs run in both, on the same bytes.
 *
 * On the host they run in a user namespace of their own, with the ramdisk's tree as its root, so no privilege is needed.
 */

import { spawn } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { gunzipSync, gzipSync } from 'node:zlib';
import { type BuiltGuest, buildGuest } from '../../src/toolstack/guest-image/build.ts';
import { writeCpio } from '../../src/toolstack/guest-image/cpio.ts';

export interface PackagesRoot {
  readonly guest: BuiltGuest;
  /** The ramdisk's tree on the host. */
  readonly folder: string;
}

/** Builds a guest with packages, or finds it in the cache, and unpacks its ramdisk beside it. */
export async function packagesRoot(packages: readonly string[]): Promise<PackagesRoot> {
  const guest = await buildGuest({ packages });
  const folder = join(dirname(guest.ramdisk), 'root');
  const stamp = join(dirname(guest.ramdisk), 'root.stamp');
  const made = readFileSync(join(dirname(guest.ramdisk), 'stamp.json'), 'utf8');
  if (!existsSync(stamp) || readFileSync(stamp, 'utf8') !== made) {
    rmSync(folder, { recursive: true, force: true });
    unpackCpio(gunzipSync(readFileSync(guest.ramdisk)), folder);
    writeFileSync(stamp, made);
  }
  return { guest, folder };
}

/** The guest's ramdisk with more files, in a file beside it. */
export function ramdiskWith(root: PackagesRoot, name: string, files: ReadonlyMap<string, string>): string {
  const folders = new Set<string>();
  for (const path of files.keys()) folders.add(dirname(path));
  const more = writeCpio([
    ...[...folders].map((path) => ({ kind: 'directory', name: path, mode: 0o755 }) as const),
    ...[...files].map(
      ([path, text]) => ({ kind: 'file', name: path, mode: 0o644, content: Buffer.from(text) }) as const,
    ),
  ]);
  const path = join(dirname(root.guest.ramdisk), name);
  // The kernel unpacks one archive after the other.
  writeFileSync(path, Buffer.concat([readFileSync(root.guest.ramdisk), gzipSync(more)]));
  return path;
}

/** Runs a shell command in the tree on the host; undefined if namespaces are not allowed here. */
export async function runOnHost(
  root: PackagesRoot,
  files: ReadonlyMap<string, string>,
  command: string,
): Promise<string | undefined> {
  for (const [path, text] of files) {
    mkdirSync(join(root.folder, dirname(path)), { recursive: true });
    writeFileSync(join(root.folder, path), text);
  }
  const script = 'mount --rbind /dev "$0/dev" && mount --rbind /proc "$0/proc" && exec chroot "$0" /bin/sh -c "$1"';
  const names = ['--user', '--map-root-user', '--mount', '--pid', '--fork', '--kill-child'];
  if ((await output('unshare', [...names, 'sh', '-c', script, root.folder, 'true'])).code !== 0) return undefined;
  return (await output('unshare', [...names, 'sh', '-c', script, root.folder, command])).text;
}

function output(command: string, args: readonly string[]): Promise<{ code: number | null; text: string }> {
  return new Promise((resolve) => {
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'ignore'] });
    let text = '';
    child.stdout.setEncoding('utf8').on('data', (more: string) => {
      text += more;
    });
    child.on('error', () => resolve({ code: null, text }));
    child.on('close', (code) => resolve({ code, text }));
  });
}

const FIELDS = { mode: 1, size: 6, nameSize: 11 } as const;

/** Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst. Device nodes are left out. */
function unpackCpio(archive: Buffer, folder: string): void {
  mkdirSync(folder, { recursive: true });
  const aligned = (at: number): number => (at + 3) & ~3;
  for (let at = 0; ; ) {
    const field = (index: number): number =>
      Number.parseInt(archive.toString('latin1', at + 6 + 8 * index, at + 14 + 8 * index), 16);
    const mode = field(FIELDS.mode);
    const size = field(FIELDS.size);
    const name = archive.toString('utf8', at + 110, at + 110 + field(FIELDS.nameSize) - 1);
    if (name === 'TRAILER!!!') return;
    const start = aligned(at + 110 + field(FIELDS.nameSize));
    const path = join(folder, name);
    switch (mode >> 12) {
      case 4:
        mkdirSync(path, { recursive: true });
        break;
      case 8:
        writeFileSync(path, archive.subarray(start, start + size));
        chmodSync(path, mode & 0o777);
        break;
      case 10:
        symlinkSync(archive.toString('utf8', start, start + size), path);
        break;
    }
    at = aligned(start + size);
  }
}
