import { spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as pty from '@lydell/node-pty';
import { afterAll, describe, expect, it } from 'vitest';

/** `xl create -c` with a guest that shows what it gets as hex: `q` ends it with exit code 5, `x` is an exception nobody catches. */
const PROGRAM = `
import { Duplex } from 'node:stream';
import { main } from ${JSON.stringify(new URL('./xl/main.ts', import.meta.url).href)};
let end;
const ended = new Promise((resolve) => { end = resolve; });
const startDomain = async () => ({ domid: 1, ended, leave: () => {} });
const connectConsole = async () => {
  const say = (text) => console.push(text);
  const console = new Duplex({
    read() {},
    write(bytes, encoding, done) {
      say('got ' + Buffer.from(bytes).toString('hex') + '\\n');
      if (bytes.includes(0x71)) { end(5); clearInterval(flood); console.push(null); console.destroySoon(); }
      if (bytes.includes(0x78)) setTimeout(() => { throw new Error('unheard of'); });
      done();
    },
  });
  console.destroySoon = () => setTimeout(() => console.destroy(), 50);
  const flood = process.env.FLOOD && setInterval(() => say('x'.repeat(1000) + '\\n'), 1);
  console.on('close', () => { clearInterval(flood); clearInterval(alive); });
  const alive = setInterval(() => {}, 1000);
  say('ready ' + process.pid + '\\n');
  return console;
};
const err = (line) => process.stderr.write(line + '\\n');
// As whoever read before us leaves it.
process.stdin.pause();
const words = ['create', '-c', '/dev/null', 'name="b1"', 'kernel="k"'];
process.exitCode = await main(words, { out: (text) => process.stdout.write(text), err, starter: { startDomain, connectConsole } });
`;

const folder = mkdtempSync(join(tmpdir(), 'domus-terminal-'));
const program = join(folder, 'program.mjs');
writeFileSync(program, PROGRAM);
afterAll(() => rmSync(folder, { recursive: true }));

const windows = process.platform === 'win32';

/** Runs the program in a pseudo-terminal between two `stty -a`, does one step after another, and returns all that was shown. */
async function inPty(steps: readonly { await: RegExp; type?: string; signal?: NodeJS.Signals }[]) {
  const script = `stty -a; echo ---; '${process.execPath}' '${program}'; echo "code $?"; echo ---; stty -a; echo end`;
  const terminal = pty.spawn('/bin/sh', ['-c', script], { cols: 80, rows: 24 });
  let shown = '';
  let from = 0;
  let next = 0;
  await new Promise<void>((resolve) => {
    terminal.onData((text) => {
      shown += text;
      for (
        let match = steps[next]?.await.exec(shown.slice(from));
        match;
        match = steps[next]?.await.exec(shown.slice(from))
      ) {
        from += match.index + match[0].length;
        const { type, signal } = steps[next++];
        if (type !== undefined) terminal.write(type);
        if (signal !== undefined) process.kill(Number(/ready (\d+)/.exec(shown)?.[1]), signal);
      }
    });
    terminal.onExit(() => resolve());
  });
  const [before, middle, after] = shown.replaceAll('\r', '').split('---\n');
  return { before, middle, after: after.replace(/end\n$/, '') };
}

describe.skipIf(windows)('openTerminal() on a terminal', () => {
  it('hands every key to the guest, Ctrl-C too, and gives the mode back when the guest ends', async () => {
    const { before, middle, after } = await inPty([
      { await: /ready \d+/, type: 'a\x03\r' },
      { await: /got 61030d/, type: 'q' },
    ]);
    expect(middle).toContain("xl: this is the console of domain `b1'; Ctrl-] leaves it, and the domain runs on\n");
    expect(middle).toMatch(/got 71\ncode 5\n$/);
    expect(before).toMatch(/ icanon .* echo /s);
    expect(after).toBe(before);
  });

  it('leaves on Ctrl-], after what was typed before it', async () => {
    const { before, middle, after } = await inPty([{ await: /ready \d+/, type: 'ab\x1dcd' }]);
    expect(middle).toMatch(/got 6162\ncode 0\n$/);
    expect(after).toBe(before);
  });

  it.each([
    ['SIGTERM', 143],
    ['SIGHUP', 129],
    ['SIGINT', 130],
  ] as const)('gives the mode back after %s', async (signal, code) => {
    const { before, middle, after } = await inPty([{ await: /ready \d+/, signal }]);
    expect(middle).toMatch(new RegExp(`code ${code}\n$`));
    expect(after).toBe(before);
  });

  it('gives the mode back after an exception', async () => {
    const { before, middle, after } = await inPty([{ await: /ready \d+/, type: 'x' }]);
    expect(middle).toMatch(/unheard of.*code 1\n$/s);
    expect(after).toBe(before);
  });
});

describe.skipIf(windows)('openTerminal() on pipes', () => {
  function start() {
    const child = spawn(process.execPath, [program], { stdio: 'pipe' });
    let out = '';
    child.stdout.on('data', (bytes: Buffer) => (out += bytes.toString()));
    let err = '';
    child.stderr.on('data', (bytes: Buffer) => (err += bytes.toString()));
    const until = async (pattern: RegExp) => {
      while (!pattern.test(out)) await new Promise((resolve) => child.stdout.once('data', resolve));
    };
    const ended = new Promise<number | string | null>((resolve) =>
      child.on('close', (code, signal) => resolve(code ?? signal)),
    );
    return { child, until, ended, out: () => out, err: () => err };
  }

  it('hands all bytes to the guest, and lives on when they end', async () => {
    const { child, until, ended, err } = start();
    await until(/ready/);
    child.stdin.end('\x1da');
    await until(/got 1d61/);
    await new Promise((resolve) => setTimeout(resolve, 200));
    expect(child.exitCode).toBeNull();
    child.kill('SIGINT');
    expect(await ended).toBe(130);
    expect(err()).toBe('Parsing config from /dev/null\n');
  });

  it('shows all of the output in order', async () => {
    const { child, ended, out } = start();
    child.stdin.write('q');
    expect(await ended).toBe(5);
    expect(out()).toMatch(/^ready \d+\ngot 71\n$/);
  });

  it('ends in silence when nobody reads its output', () => {
    const script = `{ '${process.execPath}' '${program}'; echo "code $?" >&2; } | head -c 5`;
    const { stdout, stderr } = spawnSync('/bin/sh', ['-c', script], {
      env: { ...process.env, FLOOD: '1' },
      encoding: 'utf8',
    });
    expect(stdout).toBe('ready');
    expect(stderr).toBe('Parsing config from /dev/null\ncode 141\n');
  });
});
