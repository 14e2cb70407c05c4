/**
 * A process of its own, at low priority: makes machine code of what domains have translated, for those that come later (translated-code.ts).
 *
 *     node translate-ahead.ts FOLDER
 */

import { basename } from 'node:path';
import { buildInterpreter } from '../engine/wasm/interpreter.ts';
import { decodeKept, type KeptRegion, type KeptRegions } from '../engine/wasm/kept-regions.ts';
import { writeLibrary } from '../engine/wasm/region-library.ts';
import { useCompileCache } from '../toolstack/compile-cache.ts';
import { lowerPriority } from './low-priority.ts';
import { fromMachineCode, toMachineCode } from './machine-code.ts';
import {
  forgetStale,
  hasKept,
  lock,
  readCode,
  takeKept,
  translatedVersion,
  unlock,
  wordsOf,
  writeCode,
} from './translated-code.ts';
import { heedWasmHints } from './wasm-hints.ts';

/** Bytes of code in all regions, above which those go that have not been used for longest: an instruction takes 4, and becomes 150 to 200. */
const CODE_MAX = 800_000;
const REGIONS_MAX = 8192;

const identityOf = ({ entry, user, pieces, code }: KeptRegion): string =>
  `${entry} ${user} ${pieces.join()} ${Buffer.from(code).toString('base64')}`;

/** What was there, and what is new, each once; those that were used last come first, and before others those that were worth translating. */
function merge(before: readonly KeptRegion[], kept: readonly KeptRegions[]): KeptRegion[] {
  const all = new Map<string, KeptRegion>();
  for (const { made } of kept) for (const region of decodeKept(made)) all.set(identityOf(region), region);
  before.forEach((region, number) => {
    const isUsed = kept.some(({ used }) => used.length === before.length && used[number] === 1);
    const id = identityOf(region);
    const again = all.get(id);
    const unused = again !== undefined || isUsed ? 0 : region.unused + 1;
    all.set(id, { ...region, unused, isHot: region.isHot || again?.isHot === true });
  });
  const rank = ({ unused, isHot }: KeptRegion): number => 2 * unused + (isHot ? 0 : 3);
  const sorted = [...all.values()].sort((a, b) => rank(a) - rank(b));
  let bytes = 0;
  return sorted.slice(0, REGIONS_MAX).filter(({ code }) => (bytes += code.length) <= CODE_MAX);
}

function make(folder: string): void {
  const kept = takeKept(folder);
  const before = decodeKept(wordsOf(readCode(folder)?.records ?? new Uint8Array(0)));
  const { records, kernel, user } = writeLibrary(merge(before, kept));
  const modules = [buildInterpreter(false, 'optimized'), kernel, user];
  const codes = toMachineCode(modules);
  // As domains do: where that fails, or ends this process, there is no code that would do the same to them.
  if (codes?.every((code, i) => fromMachineCode(code, modules[i]) !== null)) {
    writeCode(folder, {
      records: new Uint8Array(records.buffer),
      modules: modules.map((bytes, i) => ({ bytes, code: codes[i] })),
    });
  }
}

const [folder] = process.argv.slice(2);
useCompileCache();
heedWasmHints();
lowerPriority(true);
// Sources that have changed meanwhile make other code.
while (hasKept(folder) && translatedVersion() === basename(folder) && lock(folder)) {
  try {
    make(folder);
    forgetStale(folder);
  } finally {
    unlock(folder);
  }
}
