/**
 * Downloads Debian packages with the machine's own apt, as any user and without touching the machine.
 *
 * Owns: a private apt state (package lists, caches, sources) below the cache folder. The system's configuration
 * supplies mirrors, proxies and keys; its lists are not used, because they may be missing or years old, and its dpkg
 * status is not used, because nothing is installed. Packages are checked by apt against the signed lists.
 *
 * The private sources hold only the Debian entries of the system's (deb822 and one-line style), so that some unrelated
 * third-party repository being down does not stop a build. A suite that the system does not have, such as
 * bookworm-backports, is added with the mirror and the key of the entry that has the system's own release.
 * Source: sources.list(5), apt.conf(5).
 */

import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { link, mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { temporaryBeside, writeFileAtomic } from '../cache.ts';

/** Packages cannot be had through apt. `message` says what failed, in apt's words where it has any. */
export class AptError extends Error {
  override readonly name = 'AptError';
}

export interface AptOptions {
  /** Folder for lists and packages; made if missing. */
  readonly cacheDir: string;
  /** Take packages from this suite where it has them, for example "bookworm-backports". */
  readonly suite?: string;
  /** Further architectures to take packages from, for example "i386". */
  readonly foreign?: readonly string[];
  readonly onProgress?: (step: string, detail: string) => void;
}

/** One `deb` entry of apt's sources. */
export interface SourceEntry {
  readonly uris: readonly string[];
  readonly suites: readonly string[];
  readonly components: readonly string[];
  /** Other deb822 fields as they stand, such as Signed-By. */
  readonly fields: readonly (readonly [name: string, value: string])[];
}

/** Lists younger than this are used as they are. A package that has vanished from the mirror refreshes them anyway. */
const LISTS_FRESH_MS = 24 * 3600 * 1000;

const ADVICE = 'give a kernel and a ramdisk of your own with --kernel and --initrd';

/** Parses a sources file; `deb-src` and disabled entries are left out. */
export function parseSources(text: string, style: 'deb822' | 'one-line'): SourceEntry[] {
  return style === 'deb822' ? parseDeb822(text) : parseOneLine(text);
}

function parseDeb822(text: string): SourceEntry[] {
  const entries: SourceEntry[] = [];
  const lines = text.split(/\r?\n/).filter((line) => !line.startsWith('#'));
  for (const stanza of lines.join('\n').split(/\n(?:[ \t]*\n)+/)) {
    const fields: [string, string][] = [];
    for (const line of stanza.split('\n')) {
      const last = fields.at(-1);
      if (/^[ \t]/.test(line) && last) last[1] += `\n${line}`;
      else {
        const match = /^([^\s:]+):[ \t]*(.*)$/.exec(line);
        if (match) fields.push([match[1]!, match[2]!]);
      }
    }
    const words = (name: string): string[] =>
      fields
        .find(([field]) => field.toLowerCase() === name)?.[1]
        .split(/\s+/)
        .filter(Boolean) ?? [];
    if (!words('types').includes('deb') || ['no', 'false'].includes(words('enabled')[0] ?? '')) continue;
    const own = ['types', 'uris', 'suites', 'components', 'enabled', 'architectures', 'languages', 'targets'];
    entries.push({
      uris: words('uris'),
      suites: words('suites'),
      components: words('components'),
      fields: fields.filter(([field]) => !own.includes(field.toLowerCase())),
    });
  }
  return entries;
}

function parseOneLine(text: string): SourceEntry[] {
  const entries: SourceEntry[] = [];
  for (const line of text.split(/\r?\n/)) {
    const match = /^\s*deb\s+(?:\[([^\]]*)\]\s*)?(\S+)\s+(\S+)((?:\s+[^\s#]+)*)/.exec(line);
    if (!match) continue;
    const fields: [string, string][] = [];
    for (const option of (match[1] ?? '').split(/\s+/).filter(Boolean)) {
      const [name = '', value = ''] = option.split(/=(.*)/s);
      // The one-line options are the deb822 fields in lower case, but for these, which we set ourselves.
      if (!['arch', 'lang', 'target'].includes(name)) fields.push([name, value]);
    }
    entries.push({
      uris: [match[2]!],
      suites: [match[3]!],
      components: match[4]!.split(/\s+/).filter(Boolean),
      fields,
    });
  }
  return entries;
}

/**
 * Chooses and completes the sources for a build.
 *
 * @param entries the system's entries
 * @param codename the system's release, VERSION_CODENAME of os-release
 * @param suite a further suite to add
 * @param foreign architectures beside amd64
 * @returns deb822 text, or undefined if no entry is the system's own distribution
 * @throws AptError if `suite` cannot be derived from the entries
 */
export function privateSources(
  entries: readonly SourceEntry[],
  codename: string,
  suite?: string,
  foreign: readonly string[] = [],
): string | undefined {
  const ownSuites = new Set(
    ['', '-updates', '-security', '-backports', '-proposed-updates', '/updates'].flatMap((suffix) =>
      [codename, 'oldstable', 'stable', 'testing', 'unstable', 'sid'].map((release) => release + suffix),
    ),
  );
  const chosen: SourceEntry[] = [];
  for (const entry of entries) {
    const suites = entry.suites.filter((name) => ownSuites.has(name) || name === suite);
    if (suites.length > 0 && entry.components.includes('main')) chosen.push({ ...entry, suites, components: ['main'] });
  }
  if (suite && !chosen.some((entry) => entry.suites.includes(suite))) {
    const base = chosen.find((entry) => entry.suites.some((name) => !/[-/]/.test(name)));
    if (!base) {
      throw new AptError(`apt's sources have no Debian mirror from which to derive the suite ${suite}; ${ADVICE}`);
    }
    chosen.push({ ...base, suites: [suite] });
  }
  if (chosen.length === 0) return undefined;
  return chosen
    .map((entry) =>
      [
        'Types: deb',
        `URIs: ${entry.uris.join(' ')}`,
        `Suites: ${entry.suites.join(' ')}`,
        `Components: ${entry.components.join(' ')}`,
        `Architectures: ${['amd64', ...foreign].join(' ')}`,
        ...entry.fields.map(([name, value]) => `${name}: ${value}`),
        '',
      ].join('\n'),
    )
    .join('\n');
}

/** A private apt, opened by `openApt()`. */
export interface Apt {
  /** deb822 file with the sources in use; undefined if they are the system's own. */
  readonly sourcesPath: string | undefined;
  /** The packages `name` depends on directly, alternatives included. */
  depends(name: string): Promise<string[]>;
  /** Downloads a package, or finds it in the cache. Gives the .deb's path. */
  download(name: string): Promise<string>;
  /**
   * Downloads packages, all that they depend on and the essential packages, as a new system would get them. Recommended packages
   * are left out.
   *
   * @param names packages, "NAME" or "NAME:ARCHITECTURE"
   * @returns the .debs' paths
   */
  downloadSystem(names: readonly string[]): Promise<string[]>;
}

/**
 * Prepares a private apt and brings its lists up to date if they are missing or a day old.
 *
 * @throws AptError if the machine has no apt, or the lists cannot be fetched
 */
export async function openApt({ cacheDir, suite, foreign = [], onProgress }: AptOptions): Promise<Apt> {
  if (suite !== undefined && !/^[A-Za-z0-9][A-Za-z0-9._/-]*$/.test(suite))
    throw new AptError(`not a suite's name: ${suite}`);
  for (const name of foreign)
    if (!/^[a-z0-9][a-z0-9-]*$/.test(name)) throw new AptError(`not an architecture's name: ${name}`);
  const stateName = [suite ?? 'default', ...foreign].join('+').replaceAll('/', '_');
  const stateDir = join(cacheDir, 'apt', stateName);
  const debsDir = join(cacheDir, 'debs');
  for (const folder of ['state/lists/partial', 'cache/archives/partial', 'none/partial']) {
    await mkdir(join(stateDir, folder), { recursive: true });
  }
  await mkdir(debsDir, { recursive: true });
  const options = [
    `-oDir::State=${join(stateDir, 'state')}`,
    `-oDir::Cache=${join(stateDir, 'cache')}`,
    '-oDir::State::status=/dev/null',
    '-oAPT::Architecture=amd64',
    `-oAPT::Architectures=${['amd64', ...foreign].join(',')}`,
    '-oAcquire::Languages=none',
    // As root, apt fetches as the user _apt, who cannot write into root's cache folder.
    ...(process.getuid?.() === 0 ? ['-oAPT::Sandbox::User=root'] : []),
    ...(suite ? [`-oAPT::Default-Release=${suite}`] : []),
  ];
  const sources = await systemSources(suite, foreign);
  if (sources !== undefined) {
    const file = join(stateDir, 'domus.sources');
    const old = await readFile(file, 'utf8').catch(() => '');
    if (old !== sources) {
      await rm(join(stateDir, 'updated'), { force: true });
      await writeFileAtomic(file, sources);
    }
    options.push(`-oDir::Etc::sourcelist=${file}`, '-oDir::Etc::sourceparts=/dev/null');
  }

  const updated = join(stateDir, 'updated');
  const update = async (): Promise<void> => {
    onProgress?.('apt', `fetching package lists${suite ? ` with ${suite}` : ''}`);
    try {
      await runWithLock('apt-get', ['update', ...options]);
      await writeFile(updated, '');
    } catch (error) {
      // A mirror in the middle of an update: as apt itself, go on with what there is. The next build tries again.
      if (!(error instanceof AptError) || !/They have been ignored/.test(error.message)) throw error;
      onProgress?.('apt', error.message);
    }
  };
  const ageOfLists = async (): Promise<number> =>
    Date.now() - ((await stat(updated).catch(() => undefined))?.mtimeMs ?? 0);
  if ((await ageOfLists()) > LISTS_FRESH_MS) await update();

  const downloadOnce = async (name: string): Promise<string> => {
    // In a folder without packages: apt says nothing about a file that is already in the current one.
    const plan = await run('apt-get', ['download', '--print-uris', ...options, '--', name], stateDir);
    // 'URI' file-name size SHA256:digest
    const match = /^'[^']*' (\S+) (\d+) SHA256:([0-9a-f]{64})$/m.exec(plan);
    if (!match)
      throw new AptError(`apt-get download --print-uris ${name}: unexpected answer ${JSON.stringify(plan.trim())}`);
    const [, fileName = '', size = '', sha256 = ''] = match;
    const target = join(debsDir, fileName.replaceAll('/', '_'));
    if ((await sha256Of(target)) === sha256) return target;
    onProgress?.('download', `${fileName} (${(Number(size) / 1e6).toFixed(1)} MB)`);
    const folder = temporaryBeside(target);
    await mkdir(folder);
    try {
      await run('apt-get', ['download', ...options, '--', name], folder);
      const [file] = await readdir(folder);
      if (!file || (await sha256Of(join(folder, file))) !== sha256) {
        throw new AptError(`apt-get download ${name}: the file is not the one the package lists promise`);
      }
      await rename(join(folder, file), target);
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
    return target;
  };

  const systemOnce = async (names: readonly string[]): Promise<string[]> => {
    const install = ['install', '--yes', '--no-install-recommends', ...options];
    // apt itself counts as essential, but who has no network and no dpkg database to change needs none.
    const wanted = ['?and(?essential,?architecture(amd64),?not(?name(^apt$)))', ...names];
    // Packages in the folder of archives are not listed, so it must be an empty one.
    const empty = `-oDir::Cache::archives=${join(stateDir, 'none')}/`;
    const plan = await run('apt-get', [
      ...install,
      empty,
      '-oAcquire::ForceHash=SHA256',
      '--print-uris',
      '--',
      ...wanted,
    ]);
    const debs: { path: string; size: number; sha256: string }[] = [];
    for (const match of plan.matchAll(/^'[^']*' (\S+) (\d+) (\S*)$/gm)) {
      const [, fileName = '', size = '', hash = ''] = match;
      const sha256 = /^SHA256:([0-9a-f]{64})$/.exec(hash)?.[1];
      if (sha256 === undefined) throw new AptError(`apt-get install --print-uris: no SHA256 of ${fileName}`);
      debs.push({ path: join(debsDir, fileName.replaceAll('/', '_')), size: Number(size), sha256 });
    }
    if (debs.length === 0) throw new AptError(`apt-get install --print-uris ${names.join(' ')}: no packages`);
    const missing: typeof debs = [];
    for (const deb of debs) {
      const file = await stat(deb.path).catch(() => undefined);
      if (file?.size !== deb.size) missing.push(deb);
    }
    if (missing.length > 0) {
      const megabytes = (missing.reduce((sum, deb) => sum + deb.size, 0) / 1e6).toFixed(1);
      onProgress?.('download', `${missing.length} packages (${megabytes} MB)`);
      const folder = temporaryBeside(join(debsDir, 'system'));
      await mkdir(join(folder, 'partial'), { recursive: true });
      try {
        // What is there already need not be fetched again.
        for (const deb of debs) if (!missing.includes(deb)) await link(deb.path, join(folder, basename(deb.path)));
        await run('apt-get', [...install, `-oDir::Cache::archives=${folder}/`, '--download-only', '--', ...wanted]);
        for (const deb of missing) {
          const file = join(folder, basename(deb.path));
          if ((await sha256Of(file)) !== deb.sha256)
            throw new AptError(`${basename(file)}: the file is not the one the package lists promise`);
          await rename(file, deb.path);
        }
      } finally {
        await rm(folder, { recursive: true, force: true });
      }
    }
    return debs.map((deb) => deb.path);
  };
  /** The mirror may have replaced the versions our lists name; if the lists are fresh, the error stands. */
  const afresh = async <T>(attempt: () => Promise<T>): Promise<T> => {
    try {
      return await attempt();
    } catch (error) {
      if (!(error instanceof AptError) || (await ageOfLists()) < 60_000) throw error;
      await update();
      return await attempt();
    }
  };

  return {
    sourcesPath: sources === undefined ? undefined : join(stateDir, 'domus.sources'),
    async depends(name) {
      checkName(name);
      const text = await run('apt-cache', ['depends', ...options, '--', name]);
      return [...text.matchAll(/^ [ |](?:Pre)?Depends: ([^\s<>]+)/gm)].map((match) => match[1]!);
    },
    async download(name) {
      checkName(name);
      return await afresh(() => downloadOnce(name));
    },
    async downloadSystem(names) {
      for (const name of names) checkName(name.replace(/:[a-z0-9-]+$/, ''));
      return await afresh(() => systemOnce(names));
    },
  };
}

/** Package names. Source: Debian policy 5.6.1. Checked so that no name can be an option or a path. */
function checkName(name: string): void {
  if (!/^[a-z0-9][a-z0-9+.-]+$/.test(name)) throw new AptError(`not a package's name: ${name}`);
}

async function systemSources(suite: string | undefined, foreign: readonly string[]): Promise<string | undefined> {
  const paths = await run('apt-config', [
    'shell',
    'LIST',
    'Dir::Etc::sourcelist/f',
    'PARTS',
    'Dir::Etc::sourceparts/d',
  ]);
  const list = /^LIST='(.*)'$/m.exec(paths)?.[1] ?? '';
  const parts = /^PARTS='(.*)'$/m.exec(paths)?.[1] ?? '';
  const names = (await readdir(parts || '/nonexistent').catch(() => [])).sort();
  const entries: SourceEntry[] = [];
  for (const file of [list, ...names.map((name) => join(parts, name))]) {
    const style = file.endsWith('.sources') ? 'deb822' : file.endsWith('.list') ? 'one-line' : undefined;
    if (!style) continue;
    const text = await readFile(file, 'utf8').catch(() => '');
    entries.push(...parseSources(text, style));
  }
  const release = await readFile('/etc/os-release', 'utf8').catch(() => '');
  const codename = /^VERSION_CODENAME="?([^"\n]+)"?$/m.exec(release)?.[1] ?? 'stable';
  return privateSources(entries, codename, suite, foreign);
}

async function sha256Of(path: string): Promise<string | undefined> {
  const hash = createHash('sha256');
  try {
    await pipeline(createReadStream(path), hash);
  } catch {
    // Absent or unreadable: in either case it is fetched.
    return undefined;
  }
  return hash.digest('hex');
}

/** `apt-get update` fails at once when another update runs on the same lists; that one is soon over. */
async function runWithLock(command: string, args: readonly string[]): Promise<string> {
  for (let attempt = 0; ; attempt++) {
    try {
      return await run(command, args);
    } catch (error) {
      if (attempt >= 60 || !(error instanceof AptError) || !/could not get lock/i.test(error.message)) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

/** Runs a command and gives its standard output; its error lines become the AptError's message. */
function run(command: string, args: readonly string[], cwd?: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, LC_ALL: 'C', DEBIAN_FRONTEND: 'noninteractive' },
      ...(cwd === undefined ? {} : { cwd }),
    });
    let output = '';
    let complaint = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      output += text;
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      complaint += text;
    });
    child.on('error', (error: NodeJS.ErrnoException) =>
      reject(
        new AptError(
          error.code === 'ENOENT' ? `this machine has no ${command}; ${ADVICE}` : `${command}: ${error.message}`,
        ),
      ),
    );
    child.on('close', (code) => {
      if (code === 0) {
        resolve(output);
        return;
      }
      const lines = complaint
        .split('\n')
        .filter((line) => line.startsWith('E: '))
        .map((line) => line.slice(3));
      const words = lines.length > 0 ? lines.join('; ') : complaint.trim() || `ended with ${code}`;
      reject(new AptError(`${command} ${args.find((arg) => !arg.startsWith('-')) ?? ''}: ${words}`));
    });
  });
}
