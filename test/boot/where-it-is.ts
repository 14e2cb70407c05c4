/** Where a guest is after a migration between two state folders of this machine in which something died. */

import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { pidIn } from '../../src/host/state-dir.ts';

export interface Sides {
  readonly roots: readonly string[];
  /** Of the guest. */
  readonly name: string;
  /** What xl of a state folder has written to its standard output. */
  readonly xl: (root: string, ...words: string[]) => Promise<string>;
  /** How long all may take until it is in one place. */
  readonly limitMs: number;
}

export interface Place {
  /** Index of its state folder. */
  readonly at: number;
  /** What had to be said of the one that stood still at the source, as nobody could know where it is. */
  readonly how: 'resume' | 'destroy' | null;
}

/** Names and states, as `xl list` shows them. */
async function domains({ xl, name }: Sides, root: string): Promise<string[]> {
  const lines = (await xl(root, 'list')).split('\n').slice(2, -1);
  return lines.map((line) => line.replace(/^(\S+) .* (\S{6}) +\S+$/, '$1 $2')).filter((line) => line.startsWith(name));
}

/** Resolves when it runs in one place, by its name; what was left of it elsewhere is taken away. Throws when that does not come to be. */
export async function whereItIs(sides: Sides, from: number): Promise<Place> {
  const { roots, name, xl, limitMs } = sides;
  const endMs = performance.now() + limitMs;
  let how: Place['how'] = null;
  for (;;) {
    const [source, target] = [await domains(sides, roots[from]), await domains(sides, roots[1 - from])];
    const all = [...source, ...target];
    const standsStill = source.some((line) => /--migratedaway .{3}s/.test(line));
    const comes = target.some((line) => line.startsWith(`${name}--incoming`));
    if (standsStill && !comes && target.every((line) => runs(line, name))) {
      how = target.length === 0 ? 'resume' : 'destroy';
      await xl(roots[from], how, `${name}--migratedaway`);
    } else if (all.length === 1 && runs(all[0], name)) return { at: source.length === 1 ? from : 1 - from, how };
    if (performance.now() > endMs)
      throw new Error(`the guest is not in one place: ${JSON.stringify({ source, target })}`);
    await sleep(200);
  }
}

function runs(line: string, name: string): boolean {
  return line.startsWith(`${name} `) && /^\S+ [r-][b-]----$/.test(line);
}

/** Processes that a process has started. Source: proc(5), /proc/pid/task/tid/children. */
export function childrenOf(pid: number): number[] {
  const text = readFileSync(`/proc/${pid}/task/${pid}/children`, 'latin1').trim();
  return text === '' ? [] : text.split(' ').map(Number);
}

/** The process that takes migrations for the daemon of a state folder. */
export function doorOf(root: string): number {
  const isDoor = (pid: number): boolean => readFileSync(`/proc/${pid}/cmdline`, 'latin1').includes('migration-door');
  const door = childrenOf(pidIn(root) ?? NaN).find(isDoor);
  if (door === undefined) throw new Error(`the daemon of ${root} has no door`);
  return door;
}
