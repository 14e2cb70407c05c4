/**
 * A person at the console: `xl create -c` in a pseudo-terminal, keys typed one by one, between two `stty -a`.
 *
 * A PV console has no channel for the window's size: struct xencons_interface is two rings of bytes and nothing else, so a guest
 * under Xen never learns of a resize, and its terminal has 0 rows and 0 columns. The same is expected here.
 * Source: xen/include/public/io/console.h.
 */

import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import * as pty from '@lydell/node-pty';
import { afterAll, beforeAll, describe, expect, it, type TestContext } from 'vitest';
import type { EngineKind } from '../../src/host/engines.ts';
import { type BuiltGuest, buildGuest } from '../../src/toolstack/guest-image/build.ts';
import { SHELL_MARKER } from '../../src/toolstack/guest-image/init-script.ts';
import { ENGINES, whyUnusable } from '../guests/engines.ts';
import { endDomain, uniqueName } from './domains.ts';

const XL = fileURLToPath(new URL('../../src/cli/xl/main.ts', import.meta.url));
const LIMIT_MS = 60_000;
const REPEAT_MS = 3000;
/** What busybox's `stty size` says where there is no size. */
const NO_SIZE = /^(0 0|stty: standard input.*)\n$/;
const PROMPT = /root@domus:\S*# $/;

/** A shell on a pseudo-terminal that runs xl and tells its exit code and the terminal's settings around it. */
class Session {
  readonly #terminal: pty.IPty;
  readonly #name = uniqueName();
  readonly #errors: string;
  readonly #ended: Promise<void>;
  #over = false;
  #shown = '';
  #from = 0;
  #changed: () => void = () => {};

  constructor(config: string, engine: EngineKind, errors: string) {
    this.#errors = errors;
    const command = `'${process.execPath}' '${XL}' create -c '${config}' '${this.#name.setting}' 'engine="${engine}"' 2>'${errors}'`;
    this.#terminal = pty.spawn('/bin/sh', ['-c', `stty -a; echo ---; ${command}; echo "code $?"; echo ---; stty -a`], {
      cols: 120,
      rows: 40,
    });
    this.#terminal.onData((text) => {
      // The shell in the guest asks where the cursor is, and lives without an answer.
      this.#shown += text.replaceAll('\r', '').replaceAll('\x1b[6n', '').replaceAll('\x1b[J', '');
      this.#changed();
    });
    this.#ended = new Promise((resolve) => {
      this.#terminal.onExit(() => {
        this.#over = true;
        this.#changed();
        resolve();
      });
    });
  }

  /** Waits for the pattern behind what was waited for before; gives what came in front of it. */
  async until(pattern: RegExp): Promise<string> {
    const deadline = Date.now() + LIMIT_MS;
    for (;;) {
      const text = this.#shown.slice(this.#from);
      const match = pattern.exec(text);
      if (match !== null) {
        this.#from += match.index + match[0].length;
        return text.slice(0, match.index);
      }
      const left = deadline - Date.now();
      if (left <= 0 || this.#over) {
        throw new Error(
          `${this.#over ? 'xl ended' : 'time ran out'} before ${pattern}; shown last:\n${text.slice(-3000)}`,
        );
      }
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, left);
        this.#changed = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }

  type(keys: string): void {
    this.#terminal.write(keys);
  }

  /** Types a key until the pattern shows: a key that comes before the program has the terminal is the shell's, and lost. */
  async press(key: string, pattern: RegExp): Promise<string> {
    const again = setInterval(() => this.type(key), REPEAT_MS);
    this.type(key);
    try {
      return await this.until(pattern);
    } finally {
      clearInterval(again);
    }
  }

  resize(cols: number, rows: number): void {
    this.#terminal.resize(cols, rows);
  }

  /** Runs a command at the guest's prompt and gives its output. */
  async run(command: string): Promise<string> {
    this.type(`${command}\r`);
    await this.until(/\n/);
    return await this.until(PROMPT);
  }

  async shell(): Promise<void> {
    await this.until(new RegExp(SHELL_MARKER));
    await this.until(PROMPT);
  }

  /** Waits for xl's end. */
  async end(): Promise<{ code: number; before: string; after: string; shown: string; log: string }> {
    await this.until(/code \d+\n/);
    await this.#ended;
    const [before = '', shown = '', after = ''] = this.#shown.split('---\n');
    const code = Number(/code (\d+)\n$/.exec(shown)?.[1]);
    return { code, before, after, shown, log: readFileSync(this.#errors, 'utf8') };
  }

  /** The guest may run on: for a test that failed half way, and for one that left. */
  async close(): Promise<void> {
    if (!this.#over) this.#terminal.kill();
    await endDomain(this.#name.name);
  }
}

describe.skipIf(process.platform !== 'linux').each(ENGINES)('xl create -c at a terminal on %s', (engine) => {
  const folder = mkdtempSync(join(tmpdir(), 'domus-interactive-'));
  const sessions: Session[] = [];
  const unusable = whyUnusable(engine);
  let guest: BuiltGuest;

  beforeAll(async () => {
    if (unusable === null) guest = await buildGuest();
  });
  afterAll(async () => {
    for (const session of sessions) await session.close();
    rmSync(folder, { recursive: true });
  });

  async function start(context: TestContext): Promise<Session> {
    if (unusable !== null) context.skip(unusable);
    const session = new Session(guest.config, engine, join(folder, `errors-${sessions.length}`));
    sessions.push(session);
    await session.shell();
    return session;
  }

  it('gives a shell that one can work in, and the terminal back after poweroff', async (context) => {
    const session = await start(context);

    expect(await session.run('uname -a')).toMatch(/^Linux domus \d+\.\d+\.\d+\S* .* x86_64 GNU\/Linux\n$/);
    expect(await session.run('cat /proc/cpuinfo')).toMatch(/^processor\t: 0\n(.*\n)*flags\t\t: .* lm /);
    expect((await session.run('ls /sys/hypervisor')).split(/\s+/)).toEqual(
      expect.arrayContaining(['properties', 'type', 'uuid', 'version']),
    );
    expect(await session.run('cat /sys/hypervisor/type')).toBe('xen\n');
    expect(await session.run('dmesg | tail -1')).toMatch(/^\[ *\d+\.\d{6}\] .+\n$/);
    expect(await session.run('time sha256sum /bin/busybox')).toMatch(
      /^[0-9a-f]{64} {2}\/bin\/busybox\nreal\t.*s\nuser\t.*s\nsys\t.*s\n$/,
    );

    // Job control.
    expect(await session.run('sleep 100 &')).toBe('');
    expect(await session.run('jobs')).toMatch(/^\[1\]\+ +Running +sleep 100\n$/);
    session.type('fg\r');
    await session.until(/\nsleep 100\n/);
    expect(await session.press('\x1a', PROMPT)).toMatch(/\[1\]\+ +Stopped +sleep 100\n$/);
    expect(await session.run('jobs')).toMatch(/^\[1\]\+ +Stopped +sleep 100\n$/);
    expect(await session.run('kill %1; fg')).toMatch(/^sleep 100\n/);
    expect(await session.run('jobs')).toBe('');

    // Ctrl-C on a command that has the terminal from the start; 130 is 128 + SIGINT.
    session.type('(echo on; sleep 100)\r');
    await session.until(/\non\n/);
    session.type('\x03');
    await session.until(PROMPT);
    expect(await session.run('echo $?')).toBe('130\n');

    // The console has no way to tell a size: see the head of this file.
    expect(await session.run('stty size')).toMatch(NO_SIZE);
    session.resize(100, 30);
    expect(await session.run('stty size')).toMatch(NO_SIZE);
    session.resize(120, 40);

    session.type('poweroff -f\r');
    const { code, before, after, shown, log } = await session.end();
    expect(code).toBe(0);
    expect(shown).toMatch(/reboot: (System halted|Power down)\n/);
    expect(log).not.toMatch(/crash|defect/);
    expect(before).toMatch(/ icanon .* echo /s);
    expect(after).toBe(before);
  });

  it('boots the guest again after reboot, and leaves it on Ctrl-] with the terminal as it was', async (context) => {
    const session = await start(context);
    session.type('reboot -f\r');
    await session.until(/Linux version /);
    await session.shell();
    expect(await session.run('cat /sys/hypervisor/uuid')).toMatch(/^[0-9a-f-]{36}\n$/);
    session.type('\x1d');
    const { code, before, after, shown, log } = await session.end();
    expect(code).toBe(0);
    expect(shown.match(/Linux version /g)).toHaveLength(2);
    expect(log).toMatch(/reboot, action restart\n/);
    expect(log).toMatch(/Ctrl-\]/);
    expect(after).toBe(before);
  });

  it('tells of a guest that panics: exit code, registers and its last lines', async (context) => {
    const session = await start(context);
    session.type('echo c >/proc/sysrq-trigger\r');
    const { code, before, after, shown, log } = await session.end();
    expect(code).toBe(4);
    expect(shown).toMatch(/Kernel panic - not syncing: sysrq triggered crash\n/);
    expect(log).toMatch(/domain `test-\S+' \(\d+\): crash, action destroy\n/);
    expect(log).toMatch(/^\(XEN\) RIP: +e033:\[<[0-9a-f]{16}>\]\n(\(XEN\) .*\n)*\(XEN\) rax: /m);
    const last = shown.split('\n').findLast((line) => line.startsWith('['));
    expect(log).toContain(`console: ${last}\n`);
    expect(after).toBe(before);
  });
});
