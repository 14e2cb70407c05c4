/**
 * The package as its users get it: packed, installed into an empty folder, started. What the source tree has and the package
 * lacks (types that Node strips, devDependencies, files not in `files`) shows here and nowhere else.
 */
import { execFile } from 'node:child_process';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';

const root = dirname(dirname(fileURLToPath(import.meta.url)));

interface Run {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a program to its end, whatever its exit code. @throws Error if it cannot be started or a signal ended it. */
function run(file: string, args: readonly string[], cwd: string): Promise<Run> {
  return new Promise((resolve, reject) => {
    execFile(file, args, { cwd, maxBuffer: 1 << 26 }, (error, stdout, stderr) => {
      if (error !== null && typeof error.code !== 'number') reject(error);
      else resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr });
    });
  });
}

describe('the package', () => {
  let folder = '';
  let tarball = '';

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'domus-package-'));
    const packed = await run('npm', ['pack', '--pack-destination', folder], root);
    expect(packed, packed.stdout + packed.stderr).toMatchObject({ code: 0 });
    tarball = (await readdir(folder)).find((name) => name.endsWith('.tgz')) ?? '';
    await writeFile(join(folder, 'package.json'), '{ "name": "visitor", "private": true }\n');
    const installed = await run(
      'npm',
      ['install', '--no-audit', '--no-fund', '--prefer-offline', join(folder, tarball)],
      folder,
    );
    expect(installed, installed.stdout + installed.stderr).toMatchObject({ code: 0 });
  });

  afterAll(async () => {
    if (folder !== '') await rm(folder, { recursive: true, force: true });
  });

  it('holds JavaScript and no tests or sources', async () => {
    const files = await readdir(join(folder, 'node_modules', 'domus'), { recursive: true });
    expect(files).toContain(join('dist', 'cli', 'xl', 'main.js'));
    expect(files).toContain(join('dist', 'cli', 'domus', 'main.js'));
    expect(files.filter((file) => file.endsWith('.ts') || file.includes('.test.'))).toEqual([]);
  });

  // The answers are those of xl 4.17.
  it('brings an `xl` whose `help` prints the usage', async () => {
    const result = await run(join(folder, 'node_modules', '.bin', 'xl'), ['help'], folder);
    expect(result).toMatchObject({ code: 0, stderr: '' });
    expect(result.stdout).toMatch(/^Usage xl \[-vfNtT\] <subcommand> \[args\]\n/);
  });

  it('brings an `xl` that refuses an unknown command with exit code 1', async () => {
    const result = await run(join(folder, 'node_modules', '.bin', 'xl'), ['bogus'], folder);
    expect(result).toEqual({ code: 1, stdout: '', stderr: 'command not implemented\n' });
  });

  it('brings the commands of xenstore, which start a daemon from the package', async () => {
    const xenstore = (name: string, ...words: string[]): Promise<Run> =>
      run(join(folder, 'node_modules', '.bin', name), words, folder);
    expect(await xenstore('xenstore-write', '/package', 'works')).toEqual({ code: 0, stdout: '', stderr: '' });
    expect(await xenstore('xenstore-read', '/package')).toEqual({ code: 0, stdout: 'works\n', stderr: '' });
    expect(await xenstore('xenstore', 'exists', '/nosuch')).toEqual({ code: 1, stdout: '', stderr: '' });
  });

  it('brings a `domus`', async () => {
    const result = await run(join(folder, 'node_modules', '.bin', 'domus'), ['--help'], folder);
    expect(result, result.stderr).toMatchObject({ code: 0 });
    expect(result.stdout).toContain('domus');
  });
});

describe('package-lock.json', () => {
  it('names no registry', async () => {
    expect((await lockEntries()).filter(([, entry]) => entry.resolved !== undefined)).toEqual([]);
  });

  // npm leaves out an optional package whose `engines` do not suit the Node that npm itself runs on. These run on the Node 24
  // that comes along, so an npm on Node 20 must install them too: their `engines` are taken out of the lock by hand.
  it('has no `engines` for the native parts of @napi-rs/lzma', async () => {
    const natives = (await lockEntries()).filter(([path]) => path.startsWith('node_modules/@napi-rs/lzma-'));
    expect(natives.length).toBeGreaterThan(0);
    expect(natives.filter(([, entry]) => entry.engines !== undefined)).toEqual([]);
  });
});

interface LockEntry {
  readonly resolved?: string;
  readonly engines?: unknown;
}

async function lockEntries(): Promise<[string, LockEntry][]> {
  const lock: unknown = JSON.parse(await readFile(join(root, 'package-lock.json'), 'utf8'));
  return Object.entries((lock as { packages: Record<string, LockEntry> }).packages);
}
