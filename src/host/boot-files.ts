/**
 * What a domain boots: files of the host, or what its bootloader finds on its first disk. Loaded anew at each restart, as by
 * xl, so that a guest that has installed another kernel boots that one.
 */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { parseXenElf } from '../toolstack/builder/elf.ts';
import { cacheRoot } from '../toolstack/cache.ts';
import type { DomainConfig } from '../toolstack/config/domain-config.ts';
import { loadKernel } from '../toolstack/kernel-image.ts';
import { type BootFiles as DiskFiles, parsePygrubArgs, pygrub } from '../toolstack/pygrub/pygrub.ts';
import { BootDiskError } from '../toolstack/pygrub/volume.ts';
import { openDisk, placeDisk } from './domain-disk.ts';
import { HostError } from './host-error.ts';

export interface BootFiles {
  readonly elf: ReturnType<typeof parseXenElf>;
  /** The kernel's ELF file: some 50 MB, to be let go of after building. */
  readonly kernel: Uint8Array;
  readonly kernelName: string;
  readonly ramdisk: Uint8Array | null;
  readonly ramdiskName: string;
  readonly cmdline: string;
}

type OnProgress = (step: string, detail: string) => void;

/** @throws HostError, KernelImageError or BuildError, each with one line */
export async function loadBootFiles(config: DomainConfig, onProgress: OnProgress): Promise<BootFiles> {
  if (config.bootloader !== null) return await loadFromDisk(config, config.bootloader, onProgress);
  const kernelName = config.kernel!;
  const { elf } = await loadKernel(kernelName, { cacheDir: cacheRoot(), onProgress });
  return {
    elf: parseXenElf(elf, kernelName),
    kernel: elf,
    kernelName,
    ramdisk: config.ramdisk === null ? null : await readRamdisk(config.ramdisk),
    ramdiskName: config.ramdisk ?? 'ramdisk',
    cmdline: config.cmdline,
  };
}

/** Source: tools/libs/light/libxl_bootloader.c: what pygrub is called with, and what of its answer is taken. */
async function loadFromDisk(config: DomainConfig, bootloader: string, onProgress: OnProgress): Promise<BootFiles> {
  const found = await runPygrub(config, bootloader);
  const name = `${config.disks[0]!.vdev}:${found.kernelPath}`;
  // The loader of kernels takes files.
  const folder = await mkdtemp(join(tmpdir(), 'domus-pygrub-'));
  try {
    const path = join(folder, 'boot_kernel');
    await writeFile(path, found.kernel);
    onProgress('pygrub', name);
    const { elf } = await loadKernel(path, { cacheDir: cacheRoot(), onProgress });
    return {
      elf: parseXenElf(elf, name),
      kernel: elf,
      kernelName: name,
      ramdisk: found.ramdisk ?? null,
      ramdiskName: `${config.disks[0]!.vdev}:${found.ramdiskPath ?? ''}`,
      cmdline: found.cmdline,
    };
  } finally {
    await rm(folder, { recursive: true });
  }
}

async function runPygrub(config: DomainConfig, bootloader: string): Promise<DiskFiles> {
  if (basename(bootloader) !== 'pygrub') {
    throw new HostError(`bootloader \`${bootloader}' is not supported: expected pygrub, or a kernel`);
  }
  const [disk] = config.disks;
  if (disk === undefined) throw new HostError('cannot run bootloader with no boot disk');
  try {
    const options = parsePygrubArgs([
      ...(config.kernel === null ? [] : [`--kernel=${config.kernel}`]),
      ...(config.ramdisk === null ? [] : [`--ramdisk=${config.ramdisk}`]),
      ...(config.cmdline === '' ? [] : [`--args=${config.cmdline}`]),
      ...config.bootloaderArgs,
    ]);
    const { path, format } = await placeDisk(disk);
    if (disk.script !== null)
      throw new HostError(`Disk vdev=${disk.vdev}: a bootloader cannot read a disk that has a script`);
    const image = await openDisk({ ...disk, writable: false }, path, format);
    try {
      return await pygrub(image, options);
    } finally {
      await image.close();
    }
  } catch (error) {
    if (error instanceof BootDiskError) throw new HostError(`bootloader failed: ${error.message}`);
    throw error;
  }
}

async function readRamdisk(path: string): Promise<Uint8Array> {
  try {
    return await readFile(path);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    const why =
      code === 'ENOENT'
        ? 'No such file or directory'
        : code === 'EISDIR'
          ? 'Is a directory'
          : code === 'EACCES'
            ? 'Permission denied'
            : String(code);
    throw new HostError(`failed to open file '${path}': ${why}`);
  }
}
