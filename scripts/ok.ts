/**
 * The gate: `npm run ok`. Each step prints one line with its time; the first that fails prints its output and ends the run.
 * It leaves out the long tests (test/boot, test/package.test.ts), which `npm test` runs.
 */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { delimiter, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));

interface Step {
  readonly name: string;
  readonly command: readonly [string, ...string[]];
  /** The step is passed over while this file does not exist. */
  readonly needs?: string;
  /** Keep the last line that matches, as the step's result. */
  readonly summary?: RegExp;
}

const STEPS: readonly Step[] = [
  { name: 'format, lint', command: ['biome', 'check', '--max-diagnostics=20', '.'], summary: /^Checked (\d+ files)/ },
  { name: 'imports', command: ['node', 'scripts/check-imports.ts'] },
  { name: 'types', command: ['tsc', '-p', 'tsconfig.json'] },
  { name: 'types, browser', command: ['tsc', '-p', 'tsconfig.browser.json'] },
  { name: 'tests', command: ['vitest', 'run', '--project', 'unit'], summary: /^\s*Tests\s+(.*)$/ },
  {
    name: 'support table',
    command: ['node', 'scripts/generate-support.ts', '--check'],
    needs: 'scripts/generate-support.ts',
  },
];

/** The environment of an npm script, also when this file is started by hand: our own Node and tools come first. */
const env = { ...process.env, PATH: join(root, 'node_modules', '.bin') + delimiter + (process.env['PATH'] ?? '') };

function summaryOf(output: string, pattern: RegExp | undefined): string {
  if (pattern === undefined) return '';
  // Without the colours that tools print when they are asked to.
  const lines = output.replace(/\x1b\[[0-9;]*m/g, '').split('\n');
  return lines.findLast((line) => pattern.test(line))?.match(pattern)?.[1] ?? '';
}

const startedMs = performance.now();
for (const { name, command, needs, summary } of STEPS) {
  if (needs !== undefined && !existsSync(join(root, needs))) {
    console.log(`-    ${name.padEnd(16)} passed over: there is no ${needs} yet`);
    continue;
  }
  const stepMs = performance.now();
  const [tool, ...args] = command;
  const result = spawnSync(tool, args, {
    cwd: root,
    env,
    encoding: 'utf8',
    maxBuffer: 1 << 28,
    shell: process.platform === 'win32',
  });
  const seconds = ((performance.now() - stepMs) / 1000).toFixed(1).padStart(6);
  // Complaints first: a log that is cut shows what failed.
  const output = `${result.stderr ?? ''}${result.stdout ?? ''}`;
  if (result.status !== 0) {
    console.log(`FAIL ${name.padEnd(16)}${seconds} s   ${command.join(' ')}`);
    console.log(output.trimEnd() || String(result.error ?? `ended by ${result.signal}`));
    process.exit(1);
  }
  console.log(`ok   ${name.padEnd(16)}${seconds} s   ${summaryOf(output, summary)}`.trimEnd());
  // A skipped test is never silent.
  for (const line of output.split('\n')) if (line.startsWith('skipped: ')) console.log(`       ${line}`);
}
console.log(`ok   everything      ${((performance.now() - startedMs) / 1000).toFixed(1).padStart(6)} s`);
