/**
 * Keeps the order of the rooms: a room (the first folder below src/) imports itself and what the table allows, nothing else.
 * The table is the one of docs/architecture.md. Tests are exempt from it, since a test sets up what it needs; but no source may
 * import a test. The browser-safe part (tsconfig.browser.json) must not import `node:` modules either.
 *
 * Prints `file:line: message` for each breach and exits with 1.
 */
import { existsSync, globSync, readFileSync } from 'node:fs';
import { dirname, join, posix } from 'node:path';
import { fileURLToPath } from 'node:url';

/**
 * What each room may import besides itself: whole rooms (`abi/`), folders of a room (`toolstack/config/`), or single files.
 * Every entry is a prefix of a path below src/.
 */
const ALLOWED: Readonly<Record<string, readonly string[]>> = {
  abi: [],
  machine: ['abi/'],
  engine: ['machine/', 'abi/'],
  hypervisor: ['machine/', 'abi/', 'engine/engine.ts'],
  xenstore: ['abi/'],
  storage: [],
  network: [],
  backends: ['xenstore/', 'storage/', 'network/', 'machine/', 'abi/'],
  toolstack: ['abi/', 'machine/', 'engine/', 'hypervisor/', 'xenstore/', 'storage/', 'network/', 'backends/'],
  host: ['abi/', 'machine/', 'engine/', 'hypervisor/', 'xenstore/', 'storage/', 'network/', 'backends/', 'toolstack/'],
  // Whatever runs is reached through xenstored and the domains' sockets. These are the host's doors.
  cli: [
    'abi/',
    'host/start-domain.ts',
    'host/domain-client.ts',
    'host/domain-record.ts',
    'host/migration-client.ts',
    'host/migration-carrier.ts',
    'host/receive-domain.ts',
    'host/keys/',
    'host/xl-conf-file.ts',
    'host/host-memory.ts',
    'host/seen-state.ts',
    'host/control-protocol.ts',
    'host/restore-domain.ts',
    'host/fork-domain.ts',
    'host/snapshots.ts',
    'host/console-ends.ts',
    'host/xenstored.ts',
    'host/domusd.ts',
    'host/state-dir.ts',
    'xenstore/client.ts',
    'toolstack/',
  ],
};

export interface ImportSite {
  readonly specifier: string;
  readonly line: number;
}

/**
 * The modules that a source names: static imports and re-exports (types too), `import()`, and files handed to `new URL()`,
 * which is how workers are started. The formatter puts static imports at the start of a line; that is relied on here.
 */
export function importSites(source: string): ImportSite[] {
  const patterns = [
    /^(?:import|export)\b[^'"`;]*?\bfrom\s*['"]([^'"]+)['"]/gm,
    /^import\s*['"]([^'"]+)['"]/gm,
    /^(?!\s*(?:\*|\/\/|\/\*)).*?\bimport\(\s*['"]([^'"]+)['"]/gm,
    /^(?!\s*(?:\*|\/\/|\/\*)).*?['"](\.\.?\/[^'"]+\.ts)['"][^'"]*['"][^'"]*\.js['"],\s*import\.meta\.url\b/gm,
  ];
  const sites: ImportSite[] = [];
  for (const pattern of patterns) {
    for (const match of source.matchAll(pattern)) {
      const specifier = match[1] ?? '';
      const at = match.index + match[0].lastIndexOf(specifier);
      sites.push({ specifier, line: source.slice(0, at).split('\n').length });
    }
  }
  return sites.sort((a, b) => a.line - b.line);
}

function roomOf(path: string): string {
  return path.split('/', 1)[0] ?? '';
}

/** What is wrong with `file` importing `specifier`, or undefined. `file` is relative to src/, with `/`. */
export function breachOf(file: string, specifier: string, browserSafe: boolean): string | undefined {
  if (specifier.startsWith('node:')) {
    return browserSafe ? `imports ${specifier}, but is browser-safe code (tsconfig.browser.json)` : undefined;
  }
  if (!specifier.startsWith('.')) return undefined;
  const target = posix.join(posix.dirname(file), specifier);
  if (target.startsWith('..')) return `imports ${specifier}, which is outside src/`;
  if (target.endsWith('.test.ts')) return `imports the test ${target}`;
  const room = roomOf(file);
  if (roomOf(target) === room) return undefined;
  const allowed = ALLOWED[room];
  if (allowed === undefined) return `room ${room}/ is not in the table of scripts/check-imports.ts`;
  if (allowed.some((prefix) => target.startsWith(prefix))) return undefined;
  const may = allowed.length === 0 ? 'only itself' : `itself, ${allowed.join(', ')}`;
  return `imports ${target}, but ${room}/ may import ${may}`;
}

/** The files that tsconfig.browser.json covers, relative to the root. */
function browserSafeFiles(root: string): Set<string> {
  const text = readFileSync(join(root, 'tsconfig.browser.json'), 'utf8');
  const config: unknown = JSON.parse(text.replace(/^\s*\/\/.*$/gm, ''));
  const { include, exclude } = config as { include: string[]; exclude: string[] };
  return new Set(globSync(include, { cwd: root, exclude }).map((path) => path.replaceAll('\\', '/')));
}

/** All breaches below `root`, one line each. */
export function checkImports(root: string): string[] {
  const breaches: string[] = [];
  const browserSafe = browserSafeFiles(root);
  const files = globSync('src/**/*.ts', { cwd: root }).map((path) => path.replaceAll('\\', '/'));
  for (const file of files.sort()) {
    const belowSrc = file.slice('src/'.length);
    if (!belowSrc.includes('/')) breaches.push(`${file}:1: is in no room; move it into a folder of src/`);
    if (file.endsWith('.test.ts')) continue;
    for (const { specifier, line } of importSites(readFileSync(join(root, file), 'utf8'))) {
      const breach = breachOf(belowSrc, specifier, browserSafe.has(file));
      if (breach !== undefined) breaches.push(`${file}:${line}: ${breach}`);
      else if (specifier.startsWith('.') && !existsSync(join(root, dirname(file), specifier))) {
        breaches.push(`${file}:${line}: imports ${specifier}, which does not exist`);
      }
    }
  }
  return breaches;
}

if (import.meta.main) {
  const breaches = checkImports(dirname(dirname(fileURLToPath(import.meta.url))));
  for (const breach of breaches) console.error(breach);
  if (breaches.length > 0) process.exitCode = 1;
}
