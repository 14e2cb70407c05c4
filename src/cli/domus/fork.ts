/** `domus fork`: copies of a running domain. */

import { existsSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { copyFolder, type ForkedCopy, forkCopies } from '../../host/fork-domain.ts';
import { stateRoot } from '../../host/state-dir.ts';
import type { XenstoreClient } from '../../xenstore/client.ts';
import { findDomain, namesIn, withStore } from './running.ts';

const COPIES_MAX = 1000;

export interface ForkWords {
  readonly domain: string;
  readonly count: number;
  /** With %d for the number of the copy. */
  readonly pattern: string | null;
  readonly paused: boolean;
}

/** Null for words that are none; `fail` has said why. */
export function parseFork(argv: readonly string[], fail: (message: string) => never): ForkWords {
  const { values, positionals } = parseArgs({
    args: [...argv],
    allowPositionals: true,
    options: {
      count: { type: 'string', short: 'n', default: '1' },
      name: { type: 'string' },
      paused: { type: 'boolean', short: 'p', default: false },
    },
  });
  const [domain, tooMany] = positionals;
  if (domain === undefined || tooMany !== undefined)
    return fail('fork: expected "fork DOMAIN [-n COUNT] [--name PATTERN] [-p]"');
  const count = /^\d{1,4}$/.test(values.count) ? Number(values.count) : 0;
  if (count < 1 || count > COPIES_MAX)
    return fail(`fork: -n: expected a number from 1 to ${COPIES_MAX}, found "${values.count}"`);
  const pattern = values.name ?? null;
  if (pattern === '') return fail('fork: --name: expected a name for the copy');
  if (pattern !== null && count > 1 && !pattern.includes('%d'))
    return fail(
      `fork: --name: expected "%d" in the name, for the number of each of ${count} copies, found "${pattern}"`,
    );
  return { domain, count, pattern, paused: values.paused };
}

/** The exit code; what went wrong has been printed. */
export async function fork({ domain, count, pattern, paused }: ForkWords): Promise<number> {
  const say = (line: string): void => void process.stderr.write(`domus: ${line}\n`);
  return await withStore(async (store) => {
    const { domid, name } = await findDomain(store, domain);
    const root = stateRoot();
    const names = await namesOfCopies(store, root, pattern ?? `${name}-fork-%d`, count);
    const { copies, disks, trouble } = await forkCopies({ root, store, domid, names, paused, log: say });
    for (const copy of copies) tell(copy, say);
    for (const { vdev, base, top } of disks)
      if (base.format !== 'qcow2')
        say(`${vdev} of ${name} goes on in ${top}; ${base.path} is what it is based on, and must not change`);
    if (trouble !== null) say(trouble);
    return trouble === null && copies.every(({ kind }) => kind === 'runs') ? 0 : 1;
  });
}

function tell(copy: ForkedCopy, say: (line: string) => void): void {
  if (copy.kind === 'failed') say(`${copy.name}: ${copy.message}`);
  else process.stdout.write(`${copy.name} is domain ${copy.domid}; its disks and its config are in ${copy.folder}\n`);
}

/** Names that nobody has, with the first numbers that are free. */
async function namesOfCopies(store: XenstoreClient, root: string, pattern: string, count: number): Promise<string[]> {
  if (!pattern.includes('%d')) return [pattern];
  const taken = await namesIn(store);
  const names: string[] = [];
  for (let n = 1; names.length < count; n++) {
    const name = pattern.replaceAll('%d', String(n));
    if (!taken.has(name) && !existsSync(copyFolder(root, name))) names.push(name);
  }
  return names;
}
