/**
 * Walks through a page of docs as its reader does. Its fenced blocks:
 *
 *   ```sh              commands for the host's shell, in one folder from the first block to the last
 *   ```sh guest NAME   lines that are typed at the console of a guest, each when its shell waits
 *   ```sh install      what has been done for the reader of this test
 *   ```text            what the block before has printed, among other lines: `…` is anything, blanks are as wide as they like
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

const BIN = fileURLToPath(new URL('../../bin/', import.meta.url));
const LIMIT_MS = 180_000;

export interface Block {
  readonly line: number;
  readonly info: string;
  readonly text: string;
}

export function blocksOf(page: string): Block[] {
  const lines = page.split('\n');
  const blocks: Block[] = [];
  for (let i = 0; i < lines.length; i++) {
    const info = /^```(.+)$/.exec(lines[i])?.[1];
    if (info === undefined) continue;
    const end = lines.indexOf('```', i + 1);
    if (end < 0) throw new Error(`line ${i + 1}: the block does not end`);
    blocks.push({ line: i + 1, info, text: lines.slice(i + 1, end).join('\n') });
    i = end;
  }
  return blocks;
}

/** Throws if the lines of `expected` are not all in `printed`, in that order. */
export function mustContain(printed: string, expected: string): void {
  const lines = printed.split('\n');
  let from = 0;
  for (const line of expected.split('\n')) {
    const parts = line.trim().split(/(…|\s+)/);
    const pattern = parts.map((part) =>
      part === '…' ? '.*' : /^\s+$/.test(part) ? '\\s+' : part.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'),
    );
    const wanted = new RegExp(`^\\s*${pattern.join('')}\\s*$`);
    const found = lines.findIndex((one, i) => i >= from && wanted.test(one));
    if (found < 0) throw new Error(`not printed: ${line}\nbut:\n${printed}`);
    from = found + 1;
  }
}

export class Walk {
  readonly #folder: string;
  readonly #env: NodeJS.ProcessEnv;
  #marks = 0;
  readonly #consoles = new Map<string, { readonly child: ChildProcess; shown: string }>();

  /** `folder`: an empty one. `root`: the state folder. */
  constructor(folder: string, root: string) {
    this.#folder = folder;
    const shims = join(folder, '.bin');
    mkdirSync(shims);
    for (const name of ['xl', 'domus', 'xenstore-ls']) {
      writeFileSync(join(shims, name), `#!/bin/sh\nexec "${process.execPath}" "${join(BIN, `${name}.js`)}" "$@"\n`);
      chmodSync(join(shims, name), 0o755);
    }
    this.#env = { ...process.env, DOMUS_STATE_DIR: root, PATH: `${shims}${delimiter}${process.env['PATH'] ?? ''}` };
  }

  /** Does all that the page says; how many blocks that were. Throws with the line of the first that goes otherwise. */
  async through(path: string): Promise<number> {
    let printed = '';
    let count = 0;
    try {
      for (const block of blocksOf(readFileSync(path, 'utf8'))) {
        try {
          const [language, kind, name] = block.info.split(' ');
          if (language === 'text') mustContain(printed, block.text);
          else if (language !== 'sh') continue;
          else if (kind === undefined) printed = await this.#shell(block.text);
          else if (kind === 'guest') printed = await this.#type(name, block.text);
          else if (kind !== 'install') throw new Error(`unknown kind of block: ${block.info}`);
          count++;
        } catch (error) {
          throw new Error(`${path}:${block.line}: ${error instanceof Error ? error.message : String(error)}`);
        }
      }
    } finally {
      for (const { child } of this.#consoles.values()) child.kill('SIGKILL');
    }
    return count;
  }

  #shell(commands: string): Promise<string> {
    const child = spawn('sh', ['-e', '-c', commands], {
      cwd: this.#folder,
      env: this.#env,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let printed = '';
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding('utf8').on('data', (text: string) => {
        printed += text;
      });
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        child.kill('SIGKILL');
        reject(new Error(`does not end: ${commands}\n${printed}`));
      }, LIMIT_MS);
      child.on('error', reject);
      child.on('close', (code) => {
        clearTimeout(timer);
        if (code === 0) resolve(printed);
        else reject(new Error(`exit code ${code}: ${commands}\n${printed}`));
      });
    });
  }

  async #type(name: string, text: string): Promise<string> {
    let printed = '';
    for (const line of text.split('\n')) {
      const console = this.#console(name);
      const from = console.shown.length;
      const mark = ++this.#marks;
      // The echo of what is typed is not what it prints.
      console.child.stdin?.write(`${line}; echo "walked $((${mark})) with $?"\n`);
      const end = new RegExp(`^walked ${mark} with (\\d+)$`, 'm');
      const endMs = performance.now() + LIMIT_MS;
      let match: RegExpExecArray | null = null;
      while (match === null) {
        match = end.exec(console.shown.slice(from));
        if (match === null && (performance.now() > endMs || console.child.exitCode !== null))
          throw new Error(`at the console of ${name}, ${line} does not end:\n${console.shown.slice(-2000)}`);
        await sleep(50);
      }
      const shown = console.shown.slice(from, from + match.index);
      if (match[1] !== '0') throw new Error(`at the console of ${name}, ${line} fails:\n${shown}`);
      printed += shown;
    }
    return printed;
  }

  #console(name: string): { readonly child: ChildProcess; shown: string } {
    let console = this.#consoles.get(name);
    if (console === undefined || console.child.exitCode !== null) {
      const child = spawn('xl', ['console', name], {
        cwd: this.#folder,
        env: this.#env,
        stdio: ['pipe', 'pipe', 'ignore'],
      });
      const made = { child, shown: '' };
      child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
        // Its shell asks the terminal for the cursor's place behind the prompt.
        made.shown += chunk.replace(/\r|\x1b\[[0-9;]*[A-Za-z]/g, '');
      });
      child.stdin.on('error', () => {});
      console = made;
      this.#consoles.set(name, console);
    }
    return console;
  }
}
