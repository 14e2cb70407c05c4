/**
 * What Xen's pygrub does: finds the kernel that a disk's own boot loader would start, and takes it off the disk.
 *
 * The disk is only read. Its partitions are tried one after the other, the active one first; in each, the configurations of
 * GRUB 2, extlinux and GRUB legacy are looked for at pygrub's places, in pygrub's order. All sizes are bounded.
 *
 * Differences to pygrub: no menu is shown (as with its -q); configurations are run with their conditions and variables; entries
 * of submenus may also be named by path or id; several ramdisks of one entry are joined, as GRUB does; xfs, reiserfs, zfs and
 * ufs are not read; Solaris and NetWare are not looked for.
 */
import type { DiskImage } from '../../storage/disk-image.ts';
import { type BootMenu, chooseEntry } from './boot-menu.ts';
import { openExt } from './ext.ts';
import { parseExtlinuxConfig } from './extlinux-config.ts';
import { openFat } from './fat.ts';
import { type FileNode, type FileSystem, findPath, readWhole } from './file-system.ts';
import { parseGrubLegacyConfig } from './grub-legacy-config.ts';
import { parseGrub2Config } from './grub2-config.ts';
import { openIso9660 } from './iso9660.ts';
import { findPartitions } from './partitions.ts';
import { BootDiskError, Volume } from './volume.ts';

export interface PygrubOptions {
  /** Instead of the configuration's. */
  readonly kernel?: string;
  readonly ramdisk?: string;
  /** Added behind the configuration's, or alone if `kernel` is given. */
  readonly args?: string;
  /** Number or title of the entry. */
  readonly entry?: string;
  /** Bytes from the disk's start to the file system; no partition is looked for. */
  readonly offset?: number;
}

export interface BootFiles {
  readonly kernel: Uint8Array;
  readonly kernelPath: string;
  readonly ramdisk: Uint8Array | undefined;
  readonly ramdiskPath: string | undefined;
  readonly cmdline: string;
}

/** As much of a configuration as pygrub reads. */
const CONFIG_BYTES_MAX = 1 << 20;
const FILE_BYTES_MAX = 1 << 30;
const decoder = new TextDecoder();

type Parse = (text: string, folder: string) => BootMenu;

/** Where configurations are looked for. Source: tools/pygrub/src/pygrub, read_config. */
const CONFIGS: readonly (readonly [Parse, readonly string[]])[] = [
  [parseGrub2Config, ['/boot/grub/grub.cfg', '/grub/grub.cfg', '/boot/grub2/grub.cfg', '/grub2/grub.cfg']],
  [
    parseExtlinuxConfig,
    [
      ...[
        '/boot/isolinux/isolinux.cfg',
        '/isolinux/isolinux.cfg',
        '/boot/extlinux/extlinux.conf',
        '/boot/extlinux.conf',
      ],
      ...[
        '/extlinux/extlinux.conf',
        '/extlinux.conf',
        '/boot/syslinux/syslinux.cfg',
        '/syslinux/syslinux.cfg',
        '/syslinux.cfg',
      ],
    ],
  ],
  [parseGrubLegacyConfig, ['/boot/grub/menu.lst', '/boot/grub/grub.conf', '/grub/menu.lst', '/grub/grub.conf']],
];

/** Opens whatever file system the volume has. @throws BootDiskError if it is damaged */
export async function openFileSystem(volume: Volume): Promise<FileSystem | undefined> {
  const fs = (await openExt(volume)) ?? (await openIso9660(volume)) ?? (await openFat(volume));
  // Each takes nodes of its own making only, and gets no others.
  return fs as FileSystem | undefined;
}

/** A file system that has a boot loader's configuration. */
export interface BootVolume {
  readonly fs: FileSystem;
  readonly menu: BootMenu;
  readonly configPath: string;
}

export async function readBootMenu(fs: FileSystem): Promise<BootVolume | undefined> {
  for (const [parse, paths] of CONFIGS) {
    for (const configPath of paths) {
      const node = await findPath(fs, configPath);
      if (node?.kind !== 'file') continue;
      const bytes = await fs.read(node, 0, Math.min(node.sizeBytes, CONFIG_BYTES_MAX));
      const menu = parse(decoder.decode(bytes), configPath.slice(0, configPath.lastIndexOf('/')) || '/');
      return { fs, menu, configPath };
    }
  }
  return undefined;
}

/**
 * Finds kernel, ramdisk and command line on a disk.
 *
 * @throws BootDiskError that says for each partition why it is not the one
 */
export async function pygrub(
  disk: Pick<DiskImage, 'sizeBytes' | 'read'>,
  options: PygrubOptions = {},
): Promise<BootFiles> {
  const whole = new Volume(disk);
  const { offset } = options;
  const partitions =
    offset === undefined ? await findPartitions(whole) : [{ number: 0, offset, sizeBytes: disk.sizeBytes - offset }];
  const reasons: string[] = [];
  for (const partition of partitions) {
    const name = partition.number === 0 ? `at ${partition.offset}` : `partition ${partition.number}`;
    try {
      const fs = await openFileSystem(new Volume(disk, partition.offset, partition.sizeBytes));
      if (fs === undefined) {
        reasons.push(`${name}: no ext2/3/4, FAT or ISO 9660 file system`);
        continue;
      }
      const found = await bootFrom(fs, options);
      if (typeof found !== 'string') return found;
      reasons.push(`${name} (${fs.kind}): ${found}`);
    } catch (error) {
      if (!(error instanceof BootDiskError)) throw error;
      reasons.push(`${name}: ${error.message}`);
    }
  }
  throw new BootDiskError(`Unable to find partition containing kernel: ${reasons.join('; ')}`);
}

/** The files, or why there are none. */
async function bootFrom(fs: FileSystem, options: PygrubOptions): Promise<BootFiles | string> {
  let { kernel, args: cmdline = '' } = options;
  let ramdisks = options.ramdisk === undefined ? [] : [options.ramdisk];
  if (kernel === undefined) {
    const volume = await readBootMenu(fs);
    if (volume === undefined) return 'no configuration of GRUB or extlinux';
    const { menu, configPath } = volume;
    const entry = menu.entries[chooseEntry(menu, options.entry)];
    if (entry === undefined) return `${configPath} has no entries`;
    if (entry.kernel === undefined) return `${configPath}: the entry "${entry.title}" starts no Linux kernel`;
    kernel = entry.kernel;
    if (options.ramdisk === undefined) ramdisks = [...entry.ramdisks];
    cmdline = [entry.args, cmdline].filter((part) => part !== '').join(' ');
  }
  const kernelBytes = await readPath(fs, kernel);
  if (kernelBytes === undefined) return `there is no ${kernel}`;
  const parts: Uint8Array[] = [];
  let ramdiskBytes = 0;
  for (const path of ramdisks) {
    const bytes = await readPath(fs, path);
    if (bytes === undefined) return `there is no ${path}`;
    ramdiskBytes += bytes.length;
    if (ramdiskBytes > FILE_BYTES_MAX) return `the ramdisks have more than ${FILE_BYTES_MAX} bytes`;
    parts.push(bytes);
  }
  return {
    kernel: kernelBytes,
    kernelPath: kernel,
    ramdisk: parts.length === 0 ? undefined : joined(parts),
    ramdiskPath: ramdisks.length === 0 ? undefined : ramdisks.join(' '),
    cmdline,
  };
}

async function readPath(fs: FileSystem, path: string): Promise<Uint8Array | undefined> {
  const node: FileNode | undefined = await findPath(fs, path);
  if (node?.kind !== 'file') return undefined;
  try {
    return await readWhole(fs, node, FILE_BYTES_MAX);
  } catch (error) {
    if (error instanceof BootDiskError) throw new BootDiskError(`${path}: ${error.message}`);
    throw error;
  }
}

/** Each begins at a multiple of four bytes, as the kernel wants them. */
function joined(parts: readonly Uint8Array[]): Uint8Array {
  if (parts.length === 1) return parts[0]!;
  const padded = (bytes: Uint8Array): number => Math.ceil(bytes.length / 4) * 4;
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + padded(part), 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += padded(part);
  }
  return whole;
}

/**
 * Reads pygrub's own arguments, as `bootloader_args` has them.
 *
 * @throws BootDiskError for those it does not know
 */
export function parsePygrubArgs(words: readonly string[]): PygrubOptions {
  const options: { -readonly [Key in keyof PygrubOptions]: PygrubOptions[Key] } = {};
  const ahead = [...words];
  while (ahead.length > 0) {
    const word = ahead.shift()!;
    const match = /^--(kernel|ramdisk|args|entry|offset)(?:=(.*))?$/s.exec(word);
    if (match !== null) {
      const value = match[2] ?? ahead.shift();
      if (value === undefined) throw new BootDiskError(`pygrub: option ${word} requires argument`);
      if (match[1] !== 'offset') options[match[1] as 'kernel' | 'ramdisk' | 'args' | 'entry'] = value;
      else if (/^\d+$/.test(value)) options.offset = Number(value);
      else throw new BootDiskError(`pygrub: offset value must be an integer, found ${JSON.stringify(value)}`);
    } else if (!['-q', '--quiet', '--debug', '-i', '--interactive'].includes(word)) {
      throw new BootDiskError(
        `pygrub: option ${word} is not supported; expected -q, --kernel=, --ramdisk=, --args=, --entry= or --offset=`,
      );
    }
  }
  return options;
}
