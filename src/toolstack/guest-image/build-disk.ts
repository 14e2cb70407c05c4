/**
 * Builds a guest with a disk of its own: Debian with packages of the user's choice, on ext4.
 *
 *     OUTDIR/disk.raw or disk.qcow2   the whole disk is the root file system, which the guest sees as /dev/xvda
 *     OUTDIR/domus.cfg                ready for `xl create`: pygrub takes kernel and ramdisk from the disk
 *     OUTDIR/stamp.json               what it was made from
 *
 * mmdebstrap makes the tree in a user namespace, mke2fs makes a file system of it; no root is needed and nothing is mounted.
 * Kernel upgrades inside the guest work: its grub.cfg names /vmlinuz and /initrd.img, which Debian keeps pointing at the newest.
 * A disk that is there is never written over unless the user says so: a guest may have worked with it.
 */
import { createHash, randomBytes } from 'node:crypto';
import { copyFile, mkdir, mkdtemp, readFile, rename, rm, stat, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { pack } from 'tar-stream';
import { openDiskImage } from '../../storage/disk-image.ts';
import { hostFiles } from '../../storage/host/node-file.ts';
import { createQcow2 } from '../../storage/qcow2/create.ts';
import { cacheRoot, temporaryBeside, writeFileAtomic } from '../cache.ts';
import { type Apt, openApt } from './apt.ts';
import { DEFAULT_KERNEL_PACKAGE, GuestBuildError } from './build.ts';
import { debianTool, installedTool } from './debian-tool.ts';
import { runTool } from './run-tool.ts';

export type GuestDiskFormat = 'raw' | 'qcow2';

export interface BuildDiskOptions {
  readonly sizeMiB: number;
  readonly format: GuestDiskFormat;
  /** Packages besides the system's own. */
  readonly include?: readonly string[];
  readonly kernelPackage?: string;
  /** Debian release; default: the host's. */
  readonly suite?: string;
  readonly outDir?: string;
  /** Build even if there is a disk. */
  readonly force?: boolean;
  readonly onProgress?: (step: string, detail: string) => void;
}

export interface BuiltDisk {
  readonly disk: string;
  readonly config: string;
}

/** A system that boots, gets an address and can be logged in to. */
const SYSTEM_PACKAGES = [
  ...['systemd-sysv', 'dbus', 'udev', 'kmod', 'initramfs-tools', 'zstd', 'e2fsprogs', 'login', 'less'],
  ...[
    'ifupdown',
    'isc-dhcp-client',
    'iproute2',
    'iputils-ping',
    'netbase',
    'debian-archive-keyring',
    'ca-certificates',
  ],
];
const SIZE_MIB_MIN = 768;
const SIZE_MIB_MAX = 2 << 20;
/** Raise when the disk's content changes in a way that the hashed texts do not show. */
const BUILD_VERSION = 1;
const PACKAGE_NAME = /^[a-z0-9][a-z0-9+.-]*$/;

/**
 * Builds the disk, or finds the one built before.
 *
 * @throws GuestBuildError if the options make no sense, a tool is missing or fails; AptError if packages cannot be had
 */
export async function buildDisk(options: BuildDiskOptions): Promise<BuiltDisk> {
  const { sizeMiB, format, include = [], kernelPackage = DEFAULT_KERNEL_PACKAGE, suite, onProgress } = options;
  if (!Number.isInteger(sizeMiB) || sizeMiB < SIZE_MIB_MIN || sizeMiB > SIZE_MIB_MAX) {
    throw new GuestBuildError(`--disk: expected a size from ${SIZE_MIB_MIN} MiB to 2 TiB, found ${sizeMiB} MiB`);
  }
  const wrong = [...include, kernelPackage].find((name) => !PACKAGE_NAME.test(name));
  if (wrong !== undefined) throw new GuestBuildError(`not a package's name: ${wrong}`);
  const packages = [...SYSTEM_PACKAGES, kernelPackage, ...include];
  const setup = setupFiles();
  const key = sha256(JSON.stringify([BUILD_VERSION, sizeMiB, format, packages, suite ?? null, Object.entries(setup)]));
  const outDir = resolve(options.outDir ?? join(cacheRoot(), 'guests', `disk-${key.slice(0, 12)}`));
  const built: BuiltDisk = { disk: join(outDir, `disk.${format}`), config: join(outDir, 'domus.cfg') };
  const stampPath = join(outDir, 'stamp.json');
  if (options.force !== true && (await isThere(built.disk))) {
    const stamp = await readFile(stampPath, 'utf8').catch(() => '');
    if (stamp === stampOf(key) && (await isThere(built.config))) return built;
    throw new GuestBuildError(`${built.disk}: is there already, made from something else; --force builds it again`);
  }

  await mkdir(outDir, { recursive: true });
  const work = await mkdtemp(join(tmpdir(), 'domus-disk-'));
  const partial = temporaryBeside(built.disk);
  try {
    const apt = await openApt({ cacheDir: cacheRoot(), ...(onProgress === undefined ? {} : { onProgress }) });
    const tree = join(work, 'root.tar');
    await makeTree(apt, { target: tree, work, packages, suite, setup, onProgress });
    const raw = format === 'raw' ? partial : join(work, 'disk.raw');
    onProgress?.('disk', `ext4 of ${sizeMiB} MiB`);
    await makeFileSystem(tree, raw, sizeMiB, work);
    if (format === 'qcow2') {
      onProgress?.('disk', 'qcow2');
      await copyToQcow2(raw, partial);
    }
    await rename(partial, built.disk);
    await writeFileAtomic(built.config, configText(built, format));
    await writeFileAtomic(stampPath, stampOf(key));
    return built;
  } finally {
    await rm(partial, { force: true });
    await rm(work, { recursive: true, force: true });
  }
}

interface TreeOptions {
  /** The tar file to write. */
  readonly target: string;
  readonly work: string;
  readonly packages: readonly string[];
  readonly suite: string | undefined;
  readonly setup: Readonly<Record<string, string>>;
  readonly onProgress: ((step: string, detail: string) => void) | undefined;
}

async function makeTree(apt: Apt, options: TreeOptions): Promise<void> {
  const { target, work, packages, setup, onProgress } = options;
  const mmdebstrap = await debianTool('mmdebstrap', 'mmdebstrap', onProgress);
  const suite = options.suite ?? (await hostCodename());
  // mmdebstrap may run as another user of the namespace, who cannot look into the cache.
  const sources = join(work, 'host.sources');
  if (apt.sourcesPath === undefined)
    throw new GuestBuildError('apt has no sources of Debian from which a guest can be made');
  await copyFile(apt.sourcesPath, sources);
  const proxies = await hostProxies();
  const setupTar = join(work, 'setup.tar');
  const files =
    proxies.length === 0 ? setup : { ...setup, 'etc/apt/apt.conf.d/90host-proxy': `${proxies.join('\n')}\n` };
  await writeSetupTar(setupTar, files);
  const words = [
    ...['--mode=unshare', '--variant=apt', '--format=tar', `--include=${packages.join(',')}`],
    '--aptopt=Acquire::Languages "none"',
    ...proxies.map((line) => `--aptopt=${line}`),
    `--essential-hook=tar-in ${setupTar} /`,
    '--customize-hook=chroot "$1" passwd --delete root',
    ...[suite, target, sources],
  ];
  await runTool(mmdebstrap.path, words, mmdebstrap.env, (line) => {
    const step = /^I: (.*)$/.exec(line)?.[1];
    if (step !== undefined) onProgress?.('mmdebstrap', step);
  });
}

/** The tree with its owners and devices, which only root could make; fakeroot remembers them for mke2fs. */
async function makeFileSystem(tree: string, target: string, sizeMiB: number, work: string): Promise<void> {
  const mke2fs = await debianTool('mke2fs', 'e2fsprogs');
  const fakeroot = await installedTool('fakeroot');
  if (fakeroot === undefined && process.getuid?.() !== 0) {
    throw new GuestBuildError(
      'this machine has no fakeroot, which is needed without root (on Debian: package fakeroot)',
    );
  }
  const root = join(work, 'root');
  await mkdir(root);
  await writeFile(target, '');
  await truncate(target, sizeMiB * 2 ** 20);
  const script = 'tar -x -p --numeric-owner -C "$1" -f "$2" && exec "$3" -q -F -t ext4 -L root -d "$1" "$4"';
  const words = ['sh', '-c', script, 'sh', root, tree, mke2fs.path, target];
  if (fakeroot === undefined) await runTool('sh', words.slice(1), mke2fs.env);
  else await runTool(fakeroot, ['--', ...words], mke2fs.env);
}

/** Copies what is not zero. */
async function copyToQcow2(from: string, to: string): Promise<void> {
  const source = await openDiskImage(hostFiles, from, { format: 'raw', readOnly: true });
  try {
    await writeFile(to, '');
    const file = await hostFiles.open(to, { readOnly: false, sharing: 'exclusive' });
    await createQcow2(file, source.sizeBytes);
    await file.close();
    const target = await openDiskImage(hostFiles, to, { format: 'qcow2', readOnly: false });
    try {
      const piece = new Uint8Array(1 << 20);
      for (let offset = 0; offset < source.sizeBytes; offset += piece.length) {
        const part = piece.subarray(0, Math.min(piece.length, source.sizeBytes - offset));
        await source.read(offset, [part]);
        for (let at = 0; at < part.length; at += 1 << 16) {
          const cluster = part.subarray(at, at + (1 << 16));
          if (
            !Buffer.from(cluster.buffer, cluster.byteOffset, cluster.length).equals(ZEROES.subarray(0, cluster.length))
          ) {
            await target.write(offset + at, [cluster]);
          }
        }
      }
    } finally {
      await target.close();
    }
  } finally {
    await source.close();
  }
}

const ZEROES = Buffer.alloc(1 << 16);

/** What the guest has besides its packages. */
function setupFiles(): Readonly<Record<string, string>> {
  const kernelArgs = 'root=/dev/xvda ro console=hvc0 net.ifnames=0';
  return {
    'etc/fstab': '/dev/xvda / ext4 errors=remount-ro,discard 0 1\n',
    'etc/hostname': 'domus\n',
    'etc/hosts': '127.0.0.1 localhost\n127.0.1.1 domus\n::1 localhost ip6-localhost ip6-loopback\n',
    'etc/network/interfaces': 'auto lo\niface lo inet loopback\n\nallow-hotplug eth0\niface eth0 inet dhcp\n',
    // systemd gives up on a device after 90 s, and on a service too. On a busy machine that comes before udev has seen hvc0, and
    // then there is no login, ever.
    'etc/systemd/system.conf.d/domus.conf': '[Manager]\nDefaultDeviceTimeoutSec=15min\nDefaultTimeoutStartSec=15min\n',
    'etc/issue.d/domus.issue': 'Log in as root; there is no password.\n\n',
    'boot/grub/grub.cfg': `# Written once, when this disk was made. Debian keeps the links up to date.
set default=0
set timeout=0
menuentry "Debian GNU/Linux" {
  linux /vmlinuz ${kernelArgs}
  initrd /initrd.img
}
menuentry "Debian GNU/Linux, with the kernel before" {
  linux /vmlinuz.old ${kernelArgs}
  initrd /initrd.img.old
}
menuentry "Debian GNU/Linux (recovery)" {
  linux /vmlinuz ${kernelArgs} single
  initrd /initrd.img
}
`,
  };
}

async function writeSetupTar(path: string, files: Readonly<Record<string, string>>): Promise<void> {
  const tar = pack();
  const folders = new Set<string>();
  for (const name of Object.keys(files)) {
    const parts = name.split('/').slice(0, -1);
    parts.forEach((_, index) => {
      folders.add(parts.slice(0, index + 1).join('/'));
    });
  }
  for (const name of folders) tar.entry({ name: `./${name}`, type: 'directory', mode: 0o755, uid: 0, gid: 0 });
  for (const [name, text] of Object.entries(files)) tar.entry({ name: `./${name}`, mode: 0o644, uid: 0, gid: 0 }, text);
  tar.finalize();
  await writeFile(path, Buffer.concat(await Array.fromAsync(tar as AsyncIterable<Uint8Array>)));
}

function configText(built: BuiltDisk, format: GuestDiskFormat): string {
  // Xen's own range of addresses. Source: xl-network-configuration(5).
  const mac = `00:16:3e:${Array.from(randomBytes(3), (byte) => (byte & 0x7f).toString(16).padStart(2, '0')).join(':')}`;
  return `# Made by "domus guest build --disk".
# Start it with: xl create -c ${built.config}
# Log in as root; there is no password.
name = "domus-disk"
type = "pv"
bootloader = "pygrub"
memory = 512
vcpus = 1
disk = [ "format=${format},vdev=xvda,access=rw,target=${built.disk}" ]
vif = [ "mac=${mac}" ]
`;
}

function stampOf(key: string): string {
  return `${JSON.stringify({ key })}\n`;
}

async function hostCodename(): Promise<string> {
  const release = await readFile('/etc/os-release', 'utf8').catch(() => '');
  return /^VERSION_CODENAME="?([^"\n]+)"?$/m.exec(release)?.[1] ?? 'stable';
}

/** The host's proxies, as lines of apt.conf: a guest behind them would reach nothing. Other settings stay the host's. */
async function hostProxies(): Promise<string[]> {
  const lines: string[] = [];
  await runTool('apt-config', ['dump'], process.env, undefined, (line) => {
    if (/^Acquire::(http|https)::Proxy "[^"]+";$/i.test(line)) lines.push(line);
  });
  return lines;
}

async function isThere(path: string): Promise<boolean> {
  return await stat(path).then(
    () => true,
    () => false,
  );
}

function sha256(text: string): string {
  return createHash('sha256').update(text).digest('hex');
}
