/** The command line of `npm run bench`. */

import { parseArgs } from 'node:util';
import { DOMUS_ENGINES, type DomusEngine } from './machines.ts';
import { LOADS, PLAIN_LOADS } from './workload.ts';

export const HELP = `usage: npm run bench -- [OPTIONS]

Boots a Debian guest on each engine of Domus and on QEMU (tcg) in turn; compares boot time and loads, and says where the
time of the wasm engine goes.

Options:
  --runs N          runs of each machine (default 5)
  --engines LIST    engines of Domus, of ${DOMUS_ENGINES.join(', ')} (default: all that are usable here)
  --no-qemu         Domus only
  --loads LIST      of ${PLAIN_LOADS.map((load) => load.name).join(', ')} (default: these),
                    ${LOADS.filter((load) => load.needs !== undefined)
                      .map((load) => load.name)
                      .join(', ')},
                    or none
  --moves           instead of all that: how long a guest stands still that is saved, migrated or copied, on each engine of Domus
  --again N         each load N times more in the same boot, with rows of their own: what code and caches that are warm change
  --cold            the wasm engine begins each boot with nothing translated, as on the first day; else boots before the runs
                    leave it what they have translated
  --no-profile      without the boots under V8's profiler and with counted instructions
  --json FILE       also write every single figure to FILE
  -h, --help        print this text
`;

const RUNS_MAX = 1000;
const RUNS_DEFAULT = '5';
const AGAIN_MAX = 8;

export interface Options {
  readonly runs: number;
  /** Null: all that are usable. */
  readonly engines: readonly DomusEngine[] | null;
  readonly qemu: boolean;
  /** Null: all that need nothing of the host. */
  readonly loads: readonly string[] | null;
  /** Times more that each load runs. */
  readonly again: number;
  readonly profile: boolean;
  readonly cold: boolean;
  readonly moves: boolean;
  readonly json: string | null;
}

/** The command line is wrong. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
}

/** Null stands for --help. Throws UsageError. */
export function readOptions(args: readonly string[]): Options | null {
  const values = parse(args);
  if (values.help) return null;
  const runs = values.runs ?? RUNS_DEFAULT;
  if (!/^\d+$/.test(runs) || Number(runs) < 1 || Number(runs) > RUNS_MAX)
    throw new UsageError(`--runs: expected a number from 1 to ${RUNS_MAX}, found \`${runs}'`);
  const again = values.again ?? '0';
  if (!/^\d$/.test(again) || Number(again) > AGAIN_MAX)
    throw new UsageError(`--again: expected a number from 0 to ${AGAIN_MAX}, found \`${again}'`);
  const names = LOADS.map((load) => load.name);
  return {
    runs: Number(runs),
    engines: values.engines === undefined ? null : readList('--engines', values.engines, DOMUS_ENGINES),
    qemu: !values['no-qemu'],
    loads: values.loads === undefined ? null : values.loads === 'none' ? [] : readList('--loads', values.loads, names),
    again: Number(again),
    profile: !values['no-profile'],
    cold: values.cold === true,
    moves: values.moves === true,
    json: values.json ?? null,
  };
}

/** Words between commas, in the order in which they are known, each once. */
function readList<Name extends string>(option: string, text: string, known: readonly Name[]): Name[] {
  const words = text.split(',');
  const strange = words.find((word) => !known.some((name) => name === word));
  if (strange !== undefined)
    throw new UsageError(`${option}: expected names of ${known.join(', ')}, found \`${strange}'`);
  return known.filter((name) => words.includes(name));
}

function parse(args: readonly string[]) {
  try {
    return parseArgs({
      args: [...args],
      options: {
        runs: { type: 'string' },
        engines: { type: 'string' },
        'no-qemu': { type: 'boolean' },
        loads: { type: 'string' },
        again: { type: 'string' },
        cold: { type: 'boolean' },
        'no-profile': { type: 'boolean' },
        moves: { type: 'boolean' },
        json: { type: 'string' },
        help: { type: 'boolean', short: 'h' },
      },
    }).values;
  } catch (error) {
    // What parseArgs throws is about the command line only.
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
}
