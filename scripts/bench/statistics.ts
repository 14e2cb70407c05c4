/** What xl logs of each vCPU under DOMUS_STATS: exits (src/host/domain-life.ts) and the engine's own counts. */

export type Counts = Readonly<Record<string, number>>;

export interface ExitCounts {
  /** Returns from the guest to Domus. */
  readonly total: number;
  readonly kinds: Counts;
  /** Calls by hypercall number. */
  readonly hypercalls: Counts;
}

/** Adds up the vCPUs; null if the log has no such lines. */
export function parseExitCounts(log: string): ExitCounts | null {
  const exits = [...log.matchAll(/^d\d+v\d+: exits (\d+): (.*)$/gm)];
  if (exits.length === 0) return null;
  const hypercalls = [...log.matchAll(/^d\d+v\d+: hypercalls (.*)$/gm)];
  return {
    total: exits.reduce((sum, match) => sum + Number(match[1]), 0),
    kinds: addCounts(exits.map((match) => match[2])),
    hypercalls: addCounts(hypercalls.map((match) => match[1].replaceAll(':', ''))),
  };
}

export interface EngineCounts {
  readonly counts: Counts;
  /** Instructions that TypeScript executes: all, and the most frequent by form. */
  readonly rareTotal: number;
  readonly rare: Counts;
}

/** What the wasm engine counted (WasmVcpu.statistics), vCPUs added up; null if the log has no such lines. */
export function parseEngineCounts(log: string): EngineCounts | null {
  const lines = [...log.matchAll(/^(?:\(XEN\) )?d\d+v\d+: engine: (.*)$/gm)];
  if (lines.length === 0) return null;
  const rare = [...log.matchAll(/^(?:\(XEN\) )?d\d+v\d+: instructions by TypeScript (\d+): (.*)$/gm)];
  return {
    counts: addCounts(lines.map((match) => match[1])),
    rareTotal: rare.reduce((sum, match) => sum + Number(match[1]), 0),
    rare: addCounts(rare.map((match) => match[2])),
  };
}

/** `NAME COUNT, NAME COUNT`; a name may hold spaces and commas, but not a comma and a space. */
function addCounts(texts: readonly string[]): Counts {
  const counts: Record<string, number> = {};
  for (const text of texts)
    for (const item of text.split(', ')) {
      const [, name, count] = /^(.*) (\d+)$/.exec(item.trim()) ?? [];
      if (name !== undefined) counts[name] = (counts[name] ?? 0) + Number(count);
    }
  return counts;
}
