/**
 * Builds the demo guest: a Debian kernel, a small busybox ramdisk and an xl.cfg. With `packages` the ramdisk is a Debian system that
 * has them (package-root.ts), and the configuration has the memory that it needs.
 *
 *     OUTDIR/vmlinuz     the package's kernel, unchanged
 *     OUTDIR/initrd.gz   busybox, /init, the Xen frontends (about 1 MB), and packages
 *     OUTDIR/domus.cfg   ready for `xl create`
 *     OUTDIR/stamp.json  what the above was made from; a second build with the same inputs does nothing
 *
 * Needs apt but no root: the ramdisk's device nodes exist only inside the archive. Each file is written under a
 * temporary name and renamed, the stamp last, so an interrupted build is one that never happened.
 */

import { createHash } from 'node:crypto';
import { readFile, rm, stat } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import { gunzipSync, gzipSync, zstdDecompressSync } from 'node:zlib';
import { findPayload } from '../builder/bzimage.ts';
import { cacheRoot, writeFileAtomic } from '../cache.ts';
import { unpackXz } from '../xz.ts';
import { openApt } from './apt.ts';
import { type CpioEntry, writeCpio } from './cpio.ts';
import { readDeb } from './deb.ts';
import { CONSOLE_SCRIPT, GUEST_FILES, GUEST_FOLDERS, INIT_SCRIPT, UDHCPC_SCRIPT } from './init-script.ts';
import { readPackageRoot } from './package-root.ts';

/** A guest cannot be built from what was given. `message` names what is missing. */
export class GuestBuildError extends Error {
  override readonly name = 'GuestBuildError';
}

export interface BuildGuestOptions {
  /** Debian package with the kernel, or a metapackage for it. Default: linux-image-cloud-amd64. */
  readonly kernelPackage?: string;
  /** Suite to take packages from, for example "bookworm-backports". Default: the system's release. */
  readonly suite?: string;
  /** Debian packages for the ramdisk, "NAME" or "NAME:ARCHITECTURE"; with them comes what they depend on. */
  readonly packages?: readonly string[];
  /** A kernel file to use instead of a package; goes with `initrd`. */
  readonly kernel?: string;
  /** A ramdisk to use instead of building one; goes with `kernel`. */
  readonly initrd?: string;
  /** Default: a folder of the cache named after the package and the suite. */
  readonly outDir?: string;
  /** Build even if the stamp says that nothing has changed. */
  readonly force?: boolean;
  readonly onProgress?: (step: string, detail: string) => void;
}

/** Absolute paths of a guest's files. */
export interface BuiltGuest {
  readonly kernel: string;
  readonly ramdisk: string;
  readonly config: string;
}

export const DEFAULT_KERNEL_PACKAGE = 'linux-image-cloud-amd64';

/** Loaded by /init at every boot. xenfs gives /proc/xen. */
const BOOT_MODULES = ['xen-blkfront', 'xen-netfront', 'xenfs'];
/** In the ramdisk for modprobe, which the kernel calls by itself for `mount -t ext4`. Built into the cloud kernel. */
const MOUNT_MODULES = ['ext4', 'crc32c_generic'];

/** Of the guest's own files, those that stay what they are when a package has one of that name. */
const OWN_FILES: readonly string[] = ['etc/hostname', 'etc/hosts', 'etc/inittab'];
/** Memory of a guest beside its ramdisk. */
const MEMORY_MIB = 256;
/** What a name of a folder may have of the packages' names. */
const NAMES_MAX = 60;
/** Packages unpack to hundreds of megabytes, where a better ratio costs minutes. */
const PACKAGES_GZIP_LEVEL = 1;

/** Raise when the ramdisk or the configuration changes in a way that the hashed texts do not show. */
const BUILD_VERSION = 1;

/**
 * Builds a guest, or finds the one built before.
 *
 * @throws GuestBuildError if the options contradict each other or a package lacks what a guest needs
 * @throws AptError if packages cannot be had, DebError if one is damaged, KernelImageError if `kernel` is no kernel
 */
export async function buildGuest(options: BuildGuestOptions = {}): Promise<BuiltGuest> {
  const { kernelPackage = DEFAULT_KERNEL_PACKAGE, suite, force = false, onProgress } = options;
  if ((options.kernel === undefined) !== (options.initrd === undefined)) {
    throw new GuestBuildError('--kernel and --initrd go together: give both or neither');
  }
  const packages = [...new Set(options.packages ?? [])].sort();
  if (options.kernel !== undefined && packages.length > 0)
    throw new GuestBuildError('--package makes a ramdisk, so it cannot go together with --initrd');
  const own =
    options.kernel !== undefined && options.initrd !== undefined
      ? { kernel: resolve(options.kernel), initrd: resolve(options.initrd) }
      : undefined;
  const folderName = own
    ? `own-${sha256(`${own.kernel}\0${own.initrd}`).slice(0, 12)}`
    : suite
      ? `${kernelPackage}_${suite}${packagesSuffix(packages)}`
      : `${kernelPackage}${packagesSuffix(packages)}`;
  const outDir = resolve(options.outDir ?? join(cacheRoot(), 'guests', folderName.replaceAll('/', '_')));
  const guest: BuiltGuest = {
    kernel: own?.kernel ?? join(outDir, 'vmlinuz'),
    ramdisk: own?.initrd ?? join(outDir, 'initrd.gz'),
    config: join(outDir, 'domus.cfg'),
  };

  const origin = own
    ? `${own.kernel} and ${own.initrd}`
    : `Debian package ${[kernelPackage, ...packages].join(', ')}${suite ? ` of ${suite}` : ''}`;
  const inputs = [
    BUILD_VERSION,
    kernelPackage,
    suite ?? null,
    own ?? null,
    ...(packages.length > 0 ? [packages] : []),
    configText(guest, origin, MEMORY_MIB),
    INIT_SCRIPT,
    CONSOLE_SCRIPT,
    UDHCPC_SCRIPT,
    GUEST_FILES,
    GUEST_FOLDERS,
    BOOT_MODULES,
    MOUNT_MODULES,
  ];
  const key = sha256(JSON.stringify(inputs));
  const stampPath = join(outDir, 'stamp.json');
  if (!force && (await stampMatches(stampPath, key, guest))) return guest;

  await rm(stampPath, { force: true });
  let memoryMib = MEMORY_MIB;
  if (own) {
    // A wrong file is better found now than when the guest starts.
    findPayload(await readInput(own.kernel), own.kernel);
    await readInput(own.initrd);
  } else {
    memoryMib = await buildFromPackages(guest, {
      kernelPackage,
      packages,
      ...(suite === undefined ? {} : { suite }),
      ...(onProgress ? { onProgress } : {}),
    });
  }
  await writeFileAtomic(guest.config, configText(guest, origin, memoryMib));
  await writeFileAtomic(stampPath, `${JSON.stringify({ key, sizes: await sizesOf(guest) }, undefined, 2)}\n`);
  return guest;
}

async function readInput(path: string): Promise<Uint8Array> {
  try {
    return await readFile(path);
  } catch (error) {
    throw new GuestBuildError(`${path}: cannot read it: ${error instanceof Error ? error.message : String(error)}`, {
      cause: error,
    });
  }
}

interface PackageOptions {
  readonly kernelPackage: string;
  readonly packages: readonly string[];
  readonly suite?: string;
  readonly onProgress?: (step: string, detail: string) => void;
}

function packagesSuffix(packages: readonly string[]): string {
  if (packages.length === 0) return '';
  const names = packages.join('+').replaceAll(':', '_');
  return `+${names.length <= NAMES_MAX ? names : `${names.slice(0, NAMES_MAX)}-${sha256(names).slice(0, 12)}`}`;
}

/** Gives the MiB of memory that the guest needs. */
async function buildFromPackages(
  guest: BuiltGuest,
  { kernelPackage, packages: extra, suite, onProgress }: PackageOptions,
): Promise<number> {
  const foreign = [...new Set(extra.flatMap((name) => name.split(':').slice(1)))].filter((name) => name !== 'amd64');
  const apt = await openApt({
    cacheDir: cacheRoot(),
    ...(suite === undefined ? {} : { suite }),
    ...(foreign.length === 0 ? {} : { foreign: foreign.sort() }),
    ...(onProgress ? { onProgress } : {}),
  });
  // linux-image-cloud-amd64 only depends on the package that has the kernel. Ubuntu keeps the modules in another one.
  let image = kernelPackage;
  let depends = await apt.depends(image);
  const concrete = depends.find((name) => /^linux-image-(unsigned-)?\d/.test(name));
  if (concrete) {
    image = concrete;
    depends = await apt.depends(image);
  }
  const packages = [image, ...depends.filter((name) => /^linux-modules-\d/.test(name))];
  const debs: string[] = [];
  for (const name of packages) debs.push(await apt.download(name));
  const busyboxDeb = await apt.download('busybox-static');
  const system = extra.length === 0 ? [] : await apt.downloadSystem(extra);

  onProgress?.('unpack', packages.join(', '));
  const files = await readKernelPackages(debs);
  const kernelName = [...files.keys()].find((name) => /^boot\/vmlinuz-/.test(name));
  const kernel = kernelName === undefined ? undefined : files.get(kernelName);
  if (kernelName === undefined || !kernel) throw new GuestBuildError(`package ${image} has no boot/vmlinuz-*`);
  const busybox = [...(await readDeb(busyboxDeb, (name) => /(^|\/)bin\/busybox$/.test(name))).values()][0];
  if (!busybox) throw new GuestBuildError('package busybox-static has no bin/busybox');

  const root = await readPackageRoot(system, (path, i) =>
    onProgress?.('unpack', `${i + 1} of ${system.length}: ${basename(path).replace(/_.*/, '')}`),
  );

  const modules = await orderModules(files);
  const release = kernelName.slice('boot/vmlinuz-'.length);
  const archive = writeCpio(withRoot(root, ramdiskEntries(busybox, modules, release)));
  onProgress?.('ramdisk', `${basename(guest.ramdisk)} (${(archive.length / 1e6).toFixed(1)} MB unpacked)`);
  const ramdisk = gzipSync(archive, { level: extra.length === 0 ? 9 : PACKAGES_GZIP_LEVEL });
  await writeFileAtomic(guest.kernel, kernel);
  await writeFileAtomic(guest.ramdisk, ramdisk);
  if (extra.length === 0) return MEMORY_MIB;
  // The kernel holds the ramdisk while it unpacks it into a tmpfs, which takes at most half of the other memory.
  const needed = MEMORY_MIB + (2.1 * archive.length + ramdisk.length) / (1 << 20);
  return Math.ceil(needed / 64) * 64;
}

/** The guest's own entries in the tree of its packages, whose files they do not replace but for what the guest is run by. */
function withRoot(root: ReadonlyMap<string, CpioEntry>, own: readonly CpioEntry[]): CpioEntry[] {
  if (root.size === 0) return [...own];
  const all = new Map(root);
  for (const entry of own) {
    const link = root.get(entry.name.split('/', 1)[0] ?? '');
    const name = link?.kind === 'symlink' ? entry.name.replace(link.name, link.target) : entry.name;
    if (entry.name !== link?.name && !(root.has(name) && !OWN_FILES.includes(entry.name)))
      all.set(name, { ...entry, name });
  }
  return [...all.values()].sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0));
}

/** Reads the kernel and the modules we may need; goes over the package again if they depend on ones not foreseen. */
async function readKernelPackages(debs: readonly string[]): Promise<Map<string, Uint8Array>> {
  const wanted = new Set(
    [...BOOT_MODULES, ...MOUNT_MODULES, 'xen-privcmd', 'jbd2', 'mbcache', 'crc16', 'libcrc32c'].map(canonical),
  );
  const files = new Map<string, Uint8Array>();
  for (let pass = 0; pass < 8; pass++) {
    for (const deb of debs) {
      const found = await readDeb(
        deb,
        (name) => !files.has(name) && (/^boot\/vmlinuz-/.test(name) || wanted.has(moduleName(name) ?? '')),
      );
      for (const [name, content] of found) files.set(name, content);
    }
    const present = new Set([...files.keys()].map(moduleName));
    const missing: string[] = [];
    for (const [name, content] of files) {
      if (moduleName(name) === undefined) continue;
      const unpacked = await unpackModule(name, content);
      for (const dependency of moduleInfo(unpacked, 'depends')
        .flatMap((list) => list.split(','))
        .filter(Boolean)) {
        if (!present.has(canonical(dependency)) && !wanted.has(canonical(dependency)))
          missing.push(canonical(dependency));
      }
    }
    if (missing.length === 0) return files;
    for (const name of missing) wanted.add(name);
  }
  return files;
}

/** Module names use '-' and '_' alike. Source: modprobe(8). */
function canonical(name: string): string {
  return name.replaceAll('-', '_');
}

/** The canonical module name of a path in a package, or undefined if the path is no module. */
function moduleName(path: string): string | undefined {
  const match = /(?:^|\/)([^/]+)\.ko(?:\.(?:xz|gz|zst))?$/.exec(path);
  return match ? canonical(match[1]!) : undefined;
}

async function unpackModule(path: string, content: Uint8Array): Promise<Uint8Array> {
  if (path.endsWith('.xz')) return Buffer.concat(await Array.fromAsync(unpackXz([content], 'xz')));
  if (path.endsWith('.gz')) return gunzipSync(content);
  if (path.endsWith('.zst')) return zstdDecompressSync(content);
  return content;
}

/**
 * Values of one key in a module's .modinfo section, which holds "key=value" strings that each end in NUL.
 * Found by the preceding NUL rather than through section headers: the packages have no modules.dep (depmod makes it at
 * installation), and these two keys cannot stand anywhere else in that form. Source: Linux include/linux/moduleparam.h.
 */
function moduleInfo(module: Uint8Array, key: 'depends' | 'alias'): string[] {
  const bytes = Buffer.from(module.buffer, module.byteOffset, module.byteLength);
  const needle = Buffer.from(`\0${key}=`);
  const values: string[] = [];
  for (let at = bytes.indexOf(needle); at >= 0; at = bytes.indexOf(needle, at + 1)) {
    const start = at + needle.length;
    const end = bytes.indexOf(0, start);
    if (end > start) values.push(bytes.toString('latin1', start, end));
  }
  return values;
}

interface GuestModule {
  readonly name: string;
  readonly fileName: string;
  readonly content: Uint8Array;
  /** Canonical names of direct dependencies that are in the ramdisk. */
  readonly depends: readonly string[];
  readonly aliases: readonly string[];
}

/** Unpacks the modules and puts each behind the ones it depends on. */
async function orderModules(files: ReadonlyMap<string, Uint8Array>): Promise<GuestModule[]> {
  const all = new Map<string, GuestModule>();
  for (const [path, packed] of files) {
    const name = moduleName(path);
    if (name === undefined) continue;
    const content = await unpackModule(path, packed);
    all.set(name, {
      name,
      fileName: basename(path).replace(/\.(xz|gz|zst)$/, ''),
      content,
      depends: moduleInfo(content, 'depends')
        .flatMap((list) => list.split(','))
        .filter(Boolean)
        .map(canonical),
      aliases: moduleInfo(content, 'alias'),
    });
  }
  const ordered = new Set<GuestModule>();
  const visit = (name: string): void => {
    const module = all.get(name);
    if (!module || ordered.has(module)) return;
    for (const dependency of module.depends) visit(dependency);
    ordered.add(module);
  };
  for (const name of [...BOOT_MODULES, ...MOUNT_MODULES]) visit(canonical(name));
  return [...ordered];
}

/** `modules` in loading order. */
function ramdiskEntries(busybox: Uint8Array, modules: readonly GuestModule[], release: string): CpioEntry[] {
  const folder = `lib/modules/${release}`;
  const text = (name: string, mode: number, content: string): CpioEntry => ({
    kind: 'file',
    name,
    mode,
    content: Buffer.from(content),
  });
  const byName = new Map(modules.map((module) => [module.name, module]));
  /** A module's dependencies, nearest first, as modules.dep has them. */
  const closure = (module: GuestModule): GuestModule[] =>
    modules.filter((other) => other !== module && reaches(module, other.name)).reverse();
  const reaches = (from: GuestModule, name: string): boolean =>
    from.depends.some(
      (dependency) => dependency === name || reaches(byName.get(dependency) ?? { ...from, depends: [] }, name),
    );
  const atBoot = new Set(
    BOOT_MODULES.map(canonical).flatMap((name) => {
      const module = byName.get(name);
      return module ? [module, ...closure(module)] : [];
    }),
  );
  return [
    ...GUEST_FOLDERS.map(
      (name): CpioEntry => ({
        kind: 'directory',
        name,
        mode: name === 'tmp' ? 0o1777 : name === 'root' ? 0o700 : 0o755,
      }),
    ),
    { kind: 'directory', name: folder, mode: 0o755 },
    { kind: 'character-device', name: 'dev/console', mode: 0o600, major: 5, minor: 1 },
    { kind: 'character-device', name: 'dev/null', mode: 0o666, major: 1, minor: 3 },
    { kind: 'file', name: 'bin/busybox', mode: 0o755, content: busybox },
    { kind: 'symlink', name: 'bin/sh', target: 'busybox' },
    text('init', 0o755, INIT_SCRIPT),
    text('etc/console', 0o755, CONSOLE_SCRIPT),
    text('etc/udhcpc.script', 0o755, UDHCPC_SCRIPT),
    ...Object.entries(GUEST_FILES).map(([name, content]) => text(name, 0o644, content)),
    text(
      'etc/domus-modules',
      0o644,
      modules
        .filter((module) => atBoot.has(module))
        .map((module) => `/${folder}/${module.fileName}\n`)
        .join(''),
    ),
    text(
      `${folder}/modules.dep`,
      0o644,
      modules
        .map(
          (module) =>
            `${module.fileName}:${closure(module)
              .map((other) => ` ${other.fileName}`)
              .join('')}\n`,
        )
        .join(''),
    ),
    text(
      `${folder}/modules.alias`,
      0o644,
      modules.flatMap((module) => module.aliases.map((alias) => `alias ${alias} ${module.name}\n`)).join(''),
    ),
    ...modules.map(
      (module): CpioEntry => ({
        kind: 'file',
        name: `${folder}/${module.fileName}`,
        mode: 0o644,
        content: module.content,
      }),
    ),
  ];
}

function configText(guest: BuiltGuest, origin: string, memoryMib: number): string {
  return `# Made by "domus guest build" from ${origin}.
# Start it with: xl create -c ${guest.config}
#
# cmdline may also have
#   root=/dev/xvda     boot the root file system on a disk (add one with disk = [...])
#   domus.run=BASE64   run a base64-encoded shell script on the console, then power off
name = "domus"
type = "pv"
kernel = ${quote(guest.kernel)}
ramdisk = ${quote(guest.ramdisk)}
memory = ${memoryMib}
vcpus = 1
cmdline = "console=hvc0"
`;
}

/** xl.cfg strings have no escapes, only two kinds of quotes. */
function quote(path: string): string {
  if (!path.includes('"')) return `"${path}"`;
  if (!path.includes("'")) return `'${path}'`;
  throw new GuestBuildError(`${path}: an xl.cfg cannot hold a path with both kinds of quotes`);
}

/** Size and, for files that are not ours, time of each file: enough to see that one was replaced. */
async function sizesOf(guest: BuiltGuest): Promise<string[]> {
  return Promise.all(
    [guest.kernel, guest.ramdisk, guest.config].map(async (path) => {
      const { size, mtimeMs } = await stat(path);
      return `${size} ${mtimeMs}`;
    }),
  );
}

async function stampMatches(stampPath: string, key: string, guest: BuiltGuest): Promise<boolean> {
  try {
    const stamp: unknown = JSON.parse(await readFile(stampPath, 'utf8'));
    return JSON.stringify(stamp) === JSON.stringify({ key, sizes: await sizesOf(guest) });
  } catch {
    // No stamp, a damaged stamp or a missing file: all mean that there is something to build.
    return false;
  }
}

function sha256(text: string): string {
  return createHash('sha256').update(text).digest('hex');
}
