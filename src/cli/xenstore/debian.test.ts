/**
 * The same commands through Debian's xenstore-utils 4.17 and through ours, each against an xenstored of its own: output, error
 * output and exit code are the same, and those recorded from Debian's tools on real Xen 4.17 (oxenstored) where there is a
 * recording (golden xs-*).
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { stopDaemon } from '../../host/domusd.ts';
import { openXenstored } from '../../host/xenstored.ts';
import { cacheRoot } from '../../toolstack/cache.ts';
import { AptError, openApt } from '../../toolstack/guest-image/apt.ts';
import { readDeb } from '../../toolstack/guest-image/deb.ts';
import { XenstoreClient } from '../../xenstore/client.ts';
import { main } from './main.ts';

interface Ran {
  readonly out: string;
  readonly err: string;
  readonly code: number | null;
}

type Run = (words: readonly string[]) => Promise<Ran>;

const LIBRARIES: Readonly<Record<string, string>> = {
  'libxenstore.so.4.0': 'libxenstore.so.4',
  'libxentoolcore.so.1.0': 'libxentoolcore.so.1',
};

let folder = '';
let noDebian = '';
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'domus-xs-'));
  try {
    if (process.platform !== 'linux' || process.arch !== 'x64')
      throw new AptError('the programs are for Linux on x86-64');
    await unpackDebian();
  } catch (error) {
    if (!(error instanceof AptError)) throw error;
    noDebian = error.message;
  }
  for (const name of ['debian', 'ours']) {
    const client = new XenstoreClient(await openXenstored(join(folder, name)));
    // What a booted Dom0 has, so that relative paths lead somewhere.
    await client.write('/local/domain/0/relpath', 'y');
    client.close();
  }
});
afterAll(async () => {
  for (const name of ['debian', 'ours']) await stopDaemon(join(folder, name));
  rmSync(folder, { recursive: true });
});

async function unpackDebian(): Promise<void> {
  const apt = await openApt({ cacheDir: cacheRoot() });
  mkdirSync(join(folder, 'bin'));
  mkdirSync(join(folder, 'lib'));
  for (const name of ['xenstore-utils', 'libxenstore4', 'libxentoolcore1']) {
    const files = await readDeb(
      await apt.download(name),
      (path) => path === 'usr/bin/xenstore' || path.startsWith('usr/lib/x86_64-linux-gnu/'),
    );
    for (const [path, bytes] of files) {
      const base = path.slice(path.lastIndexOf('/') + 1);
      const target = base === 'xenstore' ? join(folder, 'bin', base) : join(folder, 'lib', LIBRARIES[base] ?? base);
      writeFileSync(target, bytes);
      chmodSync(target, 0o755);
    }
  }
}

const socketOf = (name: string): string => join(folder, name, 'xenstored', 'socket');

function finished(child: ChildProcess): Promise<Ran> {
  const out: Buffer[] = [];
  const err: Buffer[] = [];
  child.stdout?.on('data', (bytes: Buffer) => out.push(bytes));
  child.stderr?.on('data', (bytes: Buffer) => err.push(bytes));
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code) =>
      resolve({ out: Buffer.concat(out).toString('latin1'), err: Buffer.concat(err).toString('latin1'), code }),
    );
  });
}

const debian: Run = ([program, ...words]) =>
  finished(
    spawn(join(folder, 'bin', 'xenstore'), words, {
      argv0: program,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { XENSTORED_PATH: socketOf('debian'), LD_LIBRARY_PATH: join(folder, 'lib'), LC_ALL: 'C' },
    }),
  );

/** In this process, which is the same but for the launcher. */
const ours: Run = async (words) => {
  const out: Buffer[] = [];
  let err = '';
  const before = process.env['XENSTORED_PATH'];
  process.env['XENSTORED_PATH'] = socketOf('ours');
  try {
    const code = await main(words, {
      out: (output) => out.push(Buffer.from(output)),
      err: (text) => (err += text),
      columns: null,
    });
    return { out: Buffer.concat(out).toString('latin1'), err, code };
  } finally {
    if (before === undefined) delete process.env['XENSTORED_PATH'];
    else process.env['XENSTORED_PATH'] = before;
  }
};

const OK = { out: '', err: '', code: 0 };
const shows = (out: string): Ran => ({ out, err: '', code: 0 });
const fails = (err: string): Ran => ({ out: '', err, code: 1 });
const V2048 = 'v'.repeat(2048);
const CUT_BIG3 = `big3 = "${'v'.repeat(68)}\\..."`;
/** Words of a command, and what was recorded; null: nothing was, the two only have to be the same. */
const SCRIPT: readonly (readonly [words: string, recorded: Ran | null, ...more: string[]])[] = [
  ['xenstore-write /t/a/b hello', OK],
  ['xenstore-write /t/x 1 /t/y 2', OK],
  ['xenstore-write -R /t/r', OK, 'a\\tb\\x41'],
  ['xenstore-write /t/big3', OK, V2048],
  ['xenstore-write /t/e', OK, ''],
  ['xenstore-read /t/a/b', shows('hello\n')],
  ['xenstore-read -p /t/a/b', shows('/t/a/b: hello\n')],
  ['xenstore-read -s /t/a/b', shows('hello\n')],
  ['xenstore-read /t/a/b /t/a', shows('hello\n\n')],
  ['xenstore-read /nosuch', fails("xenstore-read: couldn't read path /nosuch\n")],
  ['xenstore-read', fails('xenstore-read: Usage: xenstore-read [-h] [-p] [-s] [-R] key [...]\n')],
  ['xenstore-read /t/r', shows('a\\\\tb\\\\x41\n')],
  ['xenstore-read -R /t/r', shows('a\\tb\\x41')],
  ['xenstore-read relpath', shows('y\n')],
  ['xenstore-ls /t', shows(`a = ""\n b = "hello"\n${CUT_BIG3}\ne = ""\nr = "a\\\\tb\\\\x41"\nx = "1"\ny = "2"\n`)],
  ['xenstore-ls -s /t', shows(`a = ""\n b = "hello"\n${CUT_BIG3}\ne = ""\nr = "a\\\\tb\\\\x41"\nx = "1"\ny = "2"\n`)],
  [
    'xenstore-ls -p /t',
    shows(
      [
        'a = "" . . . . . . . . . . . . . . . . . . . . . . . . . . .  (n0)',
        ' b = "hello" . . . . . . . . . . . . . . . . . . . . . . . .  (n0)',
        `${CUT_BIG3}  (n0)`,
        'e = "" . . . . . . . . . . . . . . . . . . . . . . . . . . .  (n0)',
        'r = "a\\\\tb\\\\x41" . . . . . . . . . . . . . . . . . . . . . .  (n0)',
        'x = "1"  . . . . . . . . . . . . . . . . . . . . . . . . . .  (n0)',
        'y = "2"  . . . . . . . . . . . . . . . . . . . . . . . . . .  (n0)',
        '',
      ].join('\n'),
    ),
  ],
  [
    'xenstore-ls -fp /t',
    shows(
      `/t/a = ""   (n0)\n/t/a/b = "hello"   (n0)\n/t/big3 = "${V2048}"   (n0)\n/t/e = ""   (n0)\n` +
        '/t/r = "a\\\\tb\\\\x41"   (n0)\n/t/x = "1"   (n0)\n/t/y = "2"   (n0)\n',
    ),
  ],
  ['xenstore-ls nosuch', fails('xenstore-ls: xs_directory (nosuch): No such file or directory\n')],
  ['xenstore-ls -h', fails('xenstore-ls: Usage: xenstore-ls [-h] [-f] [-p] [-s] [path]\n')],
  ['xenstore-list -p /t', shows('/t/a\n/t/big3\n/t/e\n/t/r\n/t/x\n/t/y\n')],
  ['xenstore-exists /nosuch', fails('')],
  ['xenstore-exists /t/a /nosuch', fails('')],
  ['xenstore-write /t/x', fails('xenstore-write: Usage: xenstore-write [-h] [-s] [-R] key value [...]\n')],
  ['xenstore-write t b x', fails('xenstore-write: Usage: xenstore-write [-h] [-s] [-R] key value [...]\n')],
  ['xenstore-write /t/x/ y', fails('xenstore-write: could not write path /t/x/\n')],
  ['xenstore-write /t/big2', fails('xenstore-write: could not write path /t/big2\n'), 'v'.repeat(2049)],
  [`xenstore-write /t/${'a'.repeat(3072)} v`, fails(`xenstore-write: could not write path /t/${'a'.repeat(3072)}\n`)],
  ['xenstore-chmod /t/a r1', OK],
  ['xenstore-ls -fp /t/a', shows('/t/a/b = "hello"   (n0)\n')],
  ['xenstore-chmod /t/a z1', fails("xenstore-chmod: Invalid permission specification: 'z'\n")],
  ['xenstore-chmod /t/a', fails("xenstore-chmod: Error occurred setting permissions on '/t/a': Invalid argument\n")],
  ['xenstore-chmod /t/a n0 r1 b2 w3', OK],
  ['xenstore-chmod -r /t/a b5', OK],
  ['xenstore-ls -fp /t/a', shows('/t/a/b = "hello"   (b5)\n')],
  ['xenstore-rm /t/x', OK],
  ['xenstore-rm /nosuch', OK],
  ['xenstore-rm -t /nosuch', OK],
  ['xenstore-rm /nosuch/', fails('xenstore-rm: could not remove path /nosuch/\n')],
  ['xenstore-rm -t /t/a/b', OK],
  ['xenstore-ls -f /t', shows(`/t/big3 = "${V2048}"\n/t/e = ""\n/t/r = "a\\\\tb\\\\x41"\n/t/y = "2"\n`)],
  ['xenstore', fails('xenstore: Usage: xenstore <mode> [-h] [...]\n')],
  ['xenstore-watch -h', fails('xenstore-watch: Usage: xenstore-watch [-h] [-n NR] key\n')],
  ['xenstore-watch -n 1 @foo', shows('@foo\n')],
  // Not recorded.
  ['xenstore-list /', null],
  ['xenstore-ls', null],
  ['xenstore-ls -fp', null],
  ['xenstore read /t/y', null],
  ['xenstore ls -h', null],
  ['xenstore write', null],
  ['xenstore bogus', null],
  ['xenstore -h', null],
  ['xenstore-exists', null],
  ['xenstore-exists /t/e /t/y', null],
  ['xenstore-exists -p /t', null],
  ['xenstore-list /nosuch', null],
  ['xenstore-list -p / /t', null],
  ['xenstore-list /t /nosuch', null],
  ['xenstore-read /t/y /nosuch', null],
  ['xenstore-read -z /t/y', null],
  ['xenstore-read -t /t/y', null],
  ['xenstore-read --pre --raw /t/y', null],
  ['xenstore-read /t/y -p', null],
  ['xenstore-read -- -p', null],
  ['xenstore read --bogus /t/y', null],
  ['xenstore-read //t', null],
  ['xenstore-write /v/escapes', null, '\\t\\n\\r\\\\\\x1b\\x7\\x0g\\101\\7\\377\\777\\q\\'],
  ['xenstore-read /v/escapes', null],
  ['xenstore-ls /v', null],
  ['xenstore-write -R /v/bytes', null, '\u00e4\u20ac \x7f\x01'],
  ['xenstore-read /v/bytes', null],
  ['xenstore-read -R /v/bytes', null],
  ['xenstore-read --raw -p /v/bytes /t/y', null],
  ['xenstore-write /v/1 a /v/2/ b', null],
  ['xenstore-exists /v/1', null],
  [`xenstore-write /w/${'n'.repeat(70)}/${'m'.repeat(90)} 0123456789`, null],
  ['xenstore-write /w/exact', null, 'x'.repeat(63)],
  ['xenstore-write /w/longer', null, 'x'.repeat(64)],
  ['xenstore-write /w/escaped', null, '\\x01'.repeat(40)],
  ['xenstore-ls /w', null],
  ['xenstore-ls -p /w', null],
  ['xenstore-ls -f /w', null],
  [`xenstore-write /d${'/x'.repeat(85)} deep`, null],
  ['xenstore-ls -p /d', null],
  ['xenstore-chmod -u -r /c/d/e n1', null],
  ['xenstore-write /c/d/e 1 /c/d/f 2', null],
  ['xenstore-chmod -u /c/d/e n1 r2', null],
  ['xenstore-ls -fp /c', null],
  ['xenstore-chmod -r /c b7x w-1', null],
  ['xenstore-chmod -ur /c b7x w08', null],
  ['xenstore-ls -fp /c', null],
  ['xenstore-chmod -u relpath n0', null],
  ['xenstore-chmod /nosuch n0', null],
  ['xenstore-chmod', null],
  ['xenstore-rm /no/such', null],
  ['xenstore-rm -t /c/d/e /c/d/f', null],
  ['xenstore-rm -t relpath', null],
  ['xenstore-rm', null],
  ['xenstore-rm /', null],
  ['xenstore-rm /t/y /no/such', null],
  ['xenstore-exists /t/y', null],
  ['xenstore-watch -n 0 /t', null],
  ['xenstore-watch -n 2 /t /t/y', null],
  ['xenstore-watch -n 1 //', null],
  ['xenstore-watch', null],
  ['xenstore-watch -n', null],
];

test('each command prints and returns the same as Debian`s, which is what was recorded', async (context) => {
  if (noDebian !== '') context.skip(noDebian);
  let recordings = 0;
  for (const [text, recorded, ...more] of SCRIPT) {
    const words = [...text.split(' '), ...more];
    const theirs = await debian(words);
    if (recorded !== null) {
      recordings++;
      expect(theirs, text.slice(0, 100)).toEqual(recorded);
    }
    expect(await ours(words), text.slice(0, 100)).toEqual(theirs);
  }
  expect(recordings).toBeGreaterThan(40);
});

test('our commands print and return what was recorded', async () => {
  const own = join(folder, 'ours');
  await stopDaemon(own);
  rmSync(own, { recursive: true });
  const client = new XenstoreClient(await openXenstored(own));
  await client.write('/local/domain/0/relpath', 'y');
  client.close();
  for (const [text, recorded, ...more] of SCRIPT)
    if (recorded !== null) expect(await ours([...text.split(' '), ...more]), text.slice(0, 100)).toEqual(recorded);
});

test('a directory that fits no message is listed by both', async (context) => {
  if (noDebian !== '') context.skip(noDebian);
  for (const name of ['debian', 'ours']) {
    const client = new XenstoreClient(await openXenstored(join(folder, name)));
    await client.transaction(async (t) => {
      await Promise.all(Array.from({ length: 700 }, (_, i) => t.write(`/many/child-${i}`, `${i}`)));
    });
    client.close();
  }
  const theirs = await debian(['xenstore-list', '/many']);
  expect(theirs.out.split('\n').length).toBe(701);
  expect(await ours(['xenstore-list', '/many'])).toEqual(theirs);
});

/** Changes while a watch looks on, which ends after so many events; what it printed. */
async function watched(
  run: Run,
  name: string,
  keys: string,
  changes: readonly string[],
  events: number,
): Promise<string> {
  const seen = run(['xenstore-watch', '-n', String(events), ...keys.split(' ')]);
  const client = new XenstoreClient(await openXenstored(join(folder, name)));
  // Until the watch is set there is nothing to be seen of it.
  await sleep(700);
  for (const change of changes) {
    const [what, path, value] = change.split(' ');
    if (what === 'write') await client.write(path, value);
    else if (what === 'rm') await client.remove(path);
    else if (what === 'chmod') await client.setPermissions(path, [value]);
    else if (what === 'introduce') await client.introduce(Number(path), 1, 1);
    else await client.release(Number(path));
  }
  client.close();
  return (await seen).out;
}

test.each<[string, string[], string[]]>([
  ['/t', ['write /t/w 1', 'write /t/w 1', 'rm /t/w', 'write /other 1', 'rm /other'], ['/t', '/t/w', '/t/w', '/t/w']],
  ['/nx', ['write /nx/y/z 1', 'rm /nx'], ['/nx', '/nx/y/z', '/nx']],
  ['/t/e', ['write /t/e 1', 'chmod /t/e r1'], ['/t/e', '/t/e', '/t/e']],
  [
    '@introduceDomain @releaseDomain',
    ['introduce 77', 'release 77'],
    ['@introduceDomain', '@releaseDomain', '@introduceDomain', '@releaseDomain'],
  ],
])('a watch of %s tells of %j', async (keys, changes, paths) => {
  const expected = paths.map((path) => `${path}\n`).join('');
  if (noDebian === '') expect(await watched(debian, 'debian', keys, changes, paths.length)).toBe(expected);
  expect(await watched(ours, 'ours', keys, changes, paths.length)).toBe(expected);
});

test('as a program: the launcher gives the name on, and the daemon is started', async () => {
  const bin = (name: string, ...words: string[]): Promise<Ran> =>
    finished(
      spawn(process.execPath, [fileURLToPath(new URL(`../../../bin/${name}.js`, import.meta.url)), ...words], {
        env: { ...process.env, XENSTORED_PATH: '', DOMUS_STATE_DIR: join(folder, 'fresh') },
      }),
    );
  try {
    expect(await bin('xenstore-write', '/a', 'b')).toEqual(OK);
    expect(await bin('xenstore-read', '/a')).toEqual(shows('b\n'));
    expect(await bin('xenstore', 'ls', '-h')).toEqual(
      fails('xenstore: Usage: xenstore ls [-h] [-f] [-p] [-s] [path]\n'),
    );
    expect(await bin('xenstore-control', 'check')).toEqual(shows('OK\n'));
  } finally {
    await stopDaemon(join(folder, 'fresh'));
  }
});

test('without an xenstored where one is named, the error is libxenstore`s', async (context) => {
  const missing = { XENSTORED_PATH: join(folder, 'nowhere', 'socket') };
  const before = process.env['XENSTORED_PATH'];
  process.env['XENSTORED_PATH'] = missing.XENSTORED_PATH;
  let err = '';
  const streams = { out: () => {}, err: (text: string) => void (err += text), columns: null };
  try {
    expect(await main(['xenstore-read', '/a'], streams)).toBe(1);
    expect(err).toBe('xenstore-read: xs_open: No such file or directory\n');
    err = '';
    expect(await main(['xenstore-control', 'check'], streams)).toBe(1);
    expect(err).toBe('Failed to contact Xenstored.\n');
    err = '';
    expect(await main(['xenstore-control'], streams)).toBe(2);
    expect(err).toBe('Usage:\nxenstore-control <command> [<arg>...]\n');
  } finally {
    if (before === undefined) delete process.env['XENSTORED_PATH'];
    else process.env['XENSTORED_PATH'] = before;
  }
  if (noDebian !== '') context.skip(noDebian);
  const theirs = await finished(
    spawn(join(folder, 'bin', 'xenstore'), ['/a'], {
      argv0: 'xenstore-read',
      env: { ...missing, LD_LIBRARY_PATH: join(folder, 'lib') },
    }),
  );
  expect(theirs).toEqual(fails('xenstore-read: xs_open: No such file or directory\n'));
});
