/**
 * Programs of Debian that Domus can use where they are installed and fetch where they are not: the one in PATH, else the
 * package's, unpacked below the cache folder, with the libraries that the machine lacks. Nothing is installed.
 */
import { execFile } from 'node:child_process';
import { access, mkdir, rename, rm } from 'node:fs/promises';
import { delimiter, join } from 'node:path';
import { promisify } from 'node:util';
import { cacheRoot, temporaryBeside } from '../cache.ts';
import { type Apt, AptError, openApt } from './apt.ts';

const execute = promisify(execFile);

export interface DebianTool {
  readonly path: string;
  /** The environment to run it in. */
  readonly env: NodeJS.ProcessEnv;
}

/** Folders of programs; administrators' tools are not in everybody's PATH. */
const PROGRAM_FOLDERS = ['usr/bin', 'usr/sbin', 'bin', 'sbin'];
const LIBRARY_FOLDERS = ['usr/lib/x86_64-linux-gnu', 'lib/x86_64-linux-gnu'];
const PACKAGES_MAX = 60;

/** The program's path if it is installed. */
export async function installedTool(name: string): Promise<string | undefined> {
  const folders = [...(process.env['PATH'] ?? '').split(delimiter), '/usr/sbin', '/sbin'].filter(Boolean);
  for (const folder of folders) {
    const path = join(folder, name);
    if (await isThere(path)) return path;
  }
  return undefined;
}

/**
 * Finds or fetches a program.
 *
 * @throws AptError if it is not installed and its package cannot be had
 */
export async function debianTool(
  name: string,
  packageName: string,
  onProgress?: (step: string, detail: string) => void,
): Promise<DebianTool> {
  const installed = await installedTool(name);
  if (installed !== undefined) return { path: installed, env: process.env };
  const root = join(cacheRoot(), 'tools', packageName);
  if (!(await isThere(root))) {
    const apt = await openApt({ cacheDir: cacheRoot(), ...(onProgress === undefined ? {} : { onProgress }) });
    const temporary = temporaryBeside(root);
    await mkdir(temporary, { recursive: true });
    try {
      await unpackWithLibraries(apt, packageName, name, temporary);
      // Another process may have come first; its result is as good.
      await rename(temporary, root).catch(async (error: NodeJS.ErrnoException) => {
        if (error.code !== 'ENOTEMPTY' && error.code !== 'EEXIST') throw error;
      });
    } finally {
      await rm(temporary, { recursive: true, force: true });
    }
  }
  const path = await programIn(root, name);
  if (path === undefined) throw new AptError(`the package ${packageName} has no program ${name}`);
  return { path, env: environmentOf(root) };
}

function environmentOf(root: string): NodeJS.ProcessEnv {
  const libraries = LIBRARY_FOLDERS.map((folder) => join(root, folder)).join(':');
  const before = process.env['LD_LIBRARY_PATH'];
  // Programs of the package may run each other.
  const programs = [...PROGRAM_FOLDERS.map((folder) => join(root, folder)), process.env['PATH'] ?? ''].join(delimiter);
  return { ...process.env, PATH: programs, LD_LIBRARY_PATH: before ? `${libraries}:${before}` : libraries };
}

async function programIn(root: string, name: string): Promise<string | undefined> {
  for (const folder of PROGRAM_FOLDERS) {
    const path = join(root, folder, name);
    if (await isThere(path)) return path;
  }
  return undefined;
}

async function unpackWithLibraries(apt: Apt, packageName: string, name: string, root: string): Promise<void> {
  const wanted = [packageName];
  const unpacked = new Set<string>();
  while (wanted.length > 0 && unpacked.size < PACKAGES_MAX) {
    const next = wanted.shift()!;
    if (unpacked.has(next)) continue;
    unpacked.add(next);
    await execute('dpkg-deb', ['-x', await apt.download(next), root]);
    const program = await programIn(root, name);
    if (program !== undefined && !(await lacksLibraries(program, root))) return;
    wanted.push(...(await apt.depends(next)));
  }
}

async function lacksLibraries(program: string, root: string): Promise<boolean> {
  // ldd fails on scripts, which need no libraries.
  const { stdout } = await execute('ldd', [program], { env: environmentOf(root) }).catch(() => ({ stdout: '' }));
  return stdout.includes('not found');
}

async function isThere(path: string): Promise<boolean> {
  return await access(path).then(
    () => true,
    () => false,
  );
}
