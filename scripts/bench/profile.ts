/**
 * Where the time of a vCPU's thread goes, by V8's sampling profiler: a boot of its own, with `--cpu-prof`, whose times count for nothing
 * else. This is what tells interpreted from translated code: counting instructions would slow the code that is counted.
 *
 * A sample belongs to the first rule that holds for its frame or for the nearest of its callers. A wasm frame is the interpreter's
 * if its module is one that TypeScript calls into; regions are only ever called from the interpreter's module or from other regions.
 */

import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

/** What is read of a .cpuprofile. Source: Chrome DevTools Protocol, Profiler.Profile. */
export interface CpuProfile {
  readonly nodes: readonly {
    readonly id: number;
    readonly callFrame: { readonly functionName: string; readonly url: string };
    readonly children?: readonly number[];
  }[];
  readonly samples: readonly number[];
  /** Microseconds before each sample. */
  readonly timeDeltas: readonly number[];
}

const INTERPRETER = 'interpreter';
const TRANSLATED = 'translated code';
const OTHER = 'other';

/** File (the end of the URL) and function. What moves in src/ and is not found here any more shows as `other`. */
const RULES: readonly (readonly [bucket: string, file: RegExp, name: RegExp])[] = [
  ['garbage collection', /^$/, /^\(garbage collector\)$/],
  ['waiting', /^$/, /^(\(idle\)|wait)$/],
  ['compilation of modules', /^$/, /^(Module|Instance)$/],
  ['TLB misses and page walks', /guest-memory\.[tj]s$/, /^(miss|fill|walk|#fill|#crossing|commit|store)$/],
  ['TLB flushes', /guest-memory\.[tj]s$/, /^(flush\w*|#forget|#drop|dropWrites|sharesKernelHalf)$/],
  ['TLB flushes', /wasm-vcpu\.[tj]s$/, /^(flushTlb|invalidatePage|#flush\w*|#dropJump)$/],
  ['rare instructions', /wasm\/rare\.[tj]s$/, /./],
  ['translation', /region-cache\.[tj]s$/, /^(request|translate|#translate|#watch)$/],
  ['decoding and lookup of code', /(code-cache|region-cache)\.[tj]s$/, /./],
  [
    'decoding and lookup of code',
    /wasm-vcpu\.[tj]s$/,
    /^(#resolve|#microOpAt|#frame|#remember|#hot|resolve|resume|hot)$/,
  ],
  ['decoding and lookup of code', /wasm-vcpu\.[tj]s$/, /^(#codeChanged|#dropCode|#hearNews|#watch)$/],
  ['hypervisor: exits and hypercalls', /src\/hypervisor\//, /./],
  ['start of the thread', /^node:|wasm\/interpreter\.[tj]s$/, /./],
  [
    'entering and leaving the engine',
    /wasm-vcpu\.[tj]s$/,
    /^(run|#enter|#interpret|#step|setRunDeadline|#tsc|readTsc)$/,
  ],
];

/** Microseconds by what was done, the largest first. */
export function sortProfile(profile: CpuProfile): Record<string, number> {
  const byId = new Map(profile.nodes.map((node) => [node.id, node]));
  const parents = new Map<number, number>();
  for (const node of profile.nodes) for (const child of node.children ?? []) parents.set(child, node.id);

  const interpreters = new Set<string>();
  for (const { id, callFrame } of profile.nodes) {
    if (!isWasm(callFrame.url)) continue;
    // V8 puts frames of its own between the two, which have no URL.
    let caller = parents.get(id);
    while (caller !== undefined && byId.get(caller)?.callFrame.url === '') caller = parents.get(caller);
    if (caller !== undefined && isScript(byId.get(caller)?.callFrame.url ?? '')) interpreters.add(callFrame.url);
  }

  const buckets = new Map<number, string>();
  const bucketOf = (id: number): string => {
    const known = buckets.get(id);
    if (known !== undefined) return known;
    const frame = byId.get(id)?.callFrame;
    const parent = parents.get(id);
    let bucket = OTHER;
    if (frame !== undefined) {
      const { url, functionName } = frame;
      if (isWasm(url)) bucket = interpreters.has(url) ? INTERPRETER : TRANSLATED;
      else {
        const rule = RULES.find(([, file, name]) => file.test(url) && name.test(functionName));
        bucket = rule !== undefined ? rule[0] : parent === undefined ? OTHER : bucketOf(parent);
      }
    }
    buckets.set(id, bucket);
    return bucket;
  };

  const sums: Record<string, number> = {};
  profile.samples.forEach((id, i) => {
    const bucket = bucketOf(id);
    sums[bucket] = (sums[bucket] ?? 0) + (profile.timeDeltas[i] ?? 0);
  });
  return Object.fromEntries(Object.entries(sums).sort((a, b) => b[1] - a[1]));
}

const isWasm = (url: string): boolean => url.startsWith('wasm://');
const isScript = (url: string): boolean => url.startsWith('file:');

/** Options of Node that leave profiles of its threads in a folder. */
export function profilerOptions(folder: string): string[] {
  return ['--cpu-prof', `--cpu-prof-dir=${folder}`, '--cpu-prof-interval=1000'];
}

/** The profile of the first vCPU in such a folder, or null: that of the thread which spent most time in WebAssembly. */
export function readVcpuProfile(folder: string): Record<string, number> | null {
  let best: Record<string, number> | null = null;
  let bestWasm = 0;
  for (const name of readdirSync(folder)) {
    if (!name.endsWith('.cpuprofile')) continue;
    const sums = sortProfile(JSON.parse(readFileSync(join(folder, name), 'utf8')) as CpuProfile);
    const wasm = (sums[INTERPRETER] ?? 0) + (sums[TRANSLATED] ?? 0);
    if (wasm <= bestWasm) continue;
    best = sums;
    bestWasm = wasm;
  }
  return best;
}
