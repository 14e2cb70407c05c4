/**
 * Debian's GRUB as a kernel: a PV guest that is not Linux, with the ABI of Xen's first years (a hypercall page, page tables of its own
 * over all of its memory, a console ring that it polls, the time from system_time alone). It comes to its prompt, takes commands, runs
 * its own tests and ends on `halt`. Source: GRUB 2.06, grub-core/kern/xen/init.c, grub-core/tests.
 */

import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { cacheRoot } from '../../src/toolstack/cache.ts';
import { AptError, openApt } from '../../src/toolstack/guest-image/apt.ts';
import { readDeb } from '../../src/toolstack/guest-image/deb.ts';
import { ENGINES, whyUnusable } from '../guests/engines.ts';
import { endDomain, uniqueName } from './domains.ts';

const XL = fileURLToPath(new URL('../../src/cli/xl/main.ts', import.meta.url));
const IMAGE = 'usr/lib/grub-xen/grub-x86_64-xen.bin';
const LIMIT_MS = 60_000;
const PROMPT = /\ngrub> $/;
/** ECMA-48 control sequences: GRUB moves the cursor behind each key. */
const CONTROL = /\x1b\[[0-9;?]*[A-Za-z]/g;
/** They need a screen, a font, or 10 seconds. */
const TESTS_LEFT_OUT = ['videotest_checksum', 'gfxterm_menu', 'cmdline_cat_test', 'sleep_test'];

let folder: string;
let image: Uint8Array | undefined;
let noImage = '';

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'domus-grub-'));
  try {
    const apt = await openApt({ cacheDir: cacheRoot() });
    const files = await readDeb(await apt.download('grub-xen-host'), (name) => name === IMAGE);
    image = files.get(IMAGE);
    noImage = `grub-xen-host has no ${IMAGE}`;
  } catch (error) {
    if (!(error instanceof AptError)) throw error;
    noImage = error.message;
  }
  if (image !== undefined) await writeFile(join(folder, 'grub.bin'), image);
});
afterAll(() => rm(folder, { recursive: true }));

/** GRUB in `xl create -c`, with its console as text. */
class Session {
  readonly #name = uniqueName();
  readonly #xl: ChildProcessWithoutNullStreams;
  readonly #code: Promise<number | null>;
  #shown = '';
  #log = '';
  #changed: () => void = () => {};

  constructor(config: string) {
    this.#xl = spawn(process.execPath, [XL, 'create', '-c', config, this.#name.setting]);
    this.#xl.stdout.setEncoding('latin1').on('data', (text: string) => {
      this.#shown = (this.#shown + text).replaceAll('\r', '').replace(CONTROL, '');
      this.#changed();
    });
    this.#xl.stderr.setEncoding('utf8').on('data', (text: string) => {
      this.#log += text;
    });
    this.#code = new Promise((resolve) => {
      this.#xl.on('close', (code) => {
        resolve(code);
        this.#changed();
      });
    });
  }

  /** What is shown until the prompt comes. */
  async prompt(): Promise<string> {
    const deadline = Date.now() + LIMIT_MS;
    while (!PROMPT.test(this.#shown)) {
      const left = deadline - Date.now();
      if (left <= 0 || this.#xl.exitCode !== null) throw new Error(`no prompt:\n${this.#shown}\n${this.#log}`);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, left);
        this.#changed = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
    const shown = this.#shown;
    this.#shown = '';
    return shown;
  }

  /** Runs a command at the prompt and gives its output. */
  async run(command: string): Promise<string> {
    this.#xl.stdin.write(`${command}\r`);
    const shown = await this.prompt();
    expect(shown.startsWith(`${command}\n`), shown).toBe(true);
    return shown.slice(command.length + 1).replace(/(^|\n)grub> $/, '');
  }

  /** Types the last command; gives xl's exit code. */
  async end(command: string): Promise<number | null> {
    this.#xl.stdin.write(`${command}\r`);
    const timer = setTimeout(() => this.close(), LIMIT_MS);
    const code = await this.#code;
    clearTimeout(timer);
    expect(this.#log).not.toMatch(/crash|bug/);
    return code;
  }

  close(): void {
    this.#xl.kill('SIGKILL');
    void endDomain(this.#name.name);
  }
}

/** Seconds of the day in what `date` shows. */
function seconds(date: string): number {
  const match = /(\d\d):(\d\d):(\d\d)/.exec(date);
  if (match === null) throw new Error(`no time: ${date}`);
  return Number(match[1]) * 3600 + Number(match[2]) * 60 + Number(match[3]);
}

for (const engine of ENGINES)
  test(`GRUB comes to its prompt, works and halts on ${engine}`, async (context) => {
    const unusable = whyUnusable(engine) ?? (image === undefined ? noImage : null);
    if (unusable !== null) return context.skip(unusable);
    const config = join(folder, `${engine}.cfg`);
    const lines = [
      'name="grub"',
      'type="pv"',
      'memory=128',
      `kernel="${join(folder, 'grub.bin')}"`,
      `engine="${engine}"`,
    ];
    await writeFile(config, `${lines.join('\n')}\n`);
    const session = new Session(config);
    try {
      expect(await session.prompt()).toMatch(/GNU GRUB +version 2\./);
      expect(await session.run('echo hello')).toBe('hello');
      expect(await session.run('ls')).toMatch(/^\(memdisk\) \(proc\)/);

      const before = seconds(await session.run('date'));
      await session.run('sleep 3');
      const passed = (seconds(await session.run('date')) - before + 86_400) % 86_400;
      expect(passed).toBeGreaterThanOrEqual(2);
      expect(passed).toBeLessThan(20);

      for (const name of TESTS_LEFT_OUT) expect(await session.run(`rmmod ${name}`)).toBe('');
      const tests = await session.run('functional_test');
      expect(tests).toContain('div_test: PASS');
      expect(tests).toContain('exfctest: PASS');
      expect(tests).toMatch(/ALL TESTS PASSED$/);

      expect(await session.end('halt')).toBe(0);
    } finally {
      session.close();
    }
  });
