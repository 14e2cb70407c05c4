/** Boots a guest with `xl create -c`, runs a script in it and gives back what its console showed. */

import { type ChildProcess, spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { stateRoot } from '../../src/host/state-dir.ts';
import { buildGuest } from '../../src/toolstack/guest-image/build.ts';
import { endDomain, uniqueName } from './domains.ts';

const XL = fileURLToPath(new URL('../../src/cli/xl/main.ts', import.meta.url));

export interface GuestRun {
  /** Exit code of xl. */
  readonly code: number | null;
  /** The guest's console, carriage returns removed. */
  readonly console: string;
  /** What xl itself said. */
  readonly log: string;
}

export interface GuestOptions {
  readonly kernelPackage?: string;
  readonly suite?: string;
  /** Shell script that the guest's init runs on its console before it powers off. */
  readonly script: string;
  readonly overrides?: readonly string[];
  readonly cmdline?: string;
  readonly timeoutMs?: number;
}

export async function runGuest(options: GuestOptions): Promise<GuestRun> {
  const guest = await buildGuest({
    ...(options.kernelPackage === undefined ? {} : { kernelPackage: options.kernelPackage }),
    ...(options.suite === undefined ? {} : { suite: options.suite }),
  });
  const run = Buffer.from(options.script).toString('base64');
  const cmdline = `console=hvc0 ${options.cmdline ?? ''} domus.run=${run}`;
  return await xl(
    ['create', '-c', guest.config, `cmdline="${cmdline}"`, ...(options.overrides ?? [])],
    options.timeoutMs,
  );
}

/** Runs xl to its end; kills it, and the domain, after the time limit, and then the code is null. `xl create` gives the domain a name of its own. */
export async function xl(
  given: readonly string[],
  timeoutMs = 120_000,
  env: NodeJS.ProcessEnv = process.env,
): Promise<GuestRun> {
  const { name, setting } = uniqueName();
  const words = given[0] === 'create' && !given.some((word) => word.startsWith('name=')) ? [...given, setting] : given;
  const { child, done } = startXl(words, env);
  const timer = setTimeout(() => {
    child.kill('SIGKILL');
    void endDomain(name, stateRoot(env));
  }, timeoutMs);
  try {
    return await done;
  } finally {
    clearTimeout(timer);
  }
}

/** Starts xl. `done` resolves at its end. `prefix`: a command that runs the command behind it. */
export function startXl(
  words: readonly string[],
  env: NodeJS.ProcessEnv,
  prefix: readonly string[] = [],
): { readonly child: ChildProcess; readonly done: Promise<GuestRun> } {
  const [command, ...rest] = [...prefix, process.execPath, XL, ...words];
  const child = spawn(command, rest, { stdio: ['ignore', 'pipe', 'pipe'], env });
  let out = '';
  let err = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    out += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    err += text;
  });
  const done = new Promise<GuestRun>((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code) => resolve({ code, console: out.replaceAll('\r', ''), log: err }));
  });
  return { child, done };
}
