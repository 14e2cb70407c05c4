/**
 * Sets of the host's CPUs as `cpus=`, `cpus_soft=` and `xl vcpu-pin` name them, and as xl prints them: parts between commas, taken
 * from left to right. `all`; `3`; `0-3`; `nodes:0-1` or `node:0`, all CPUs of NUMA nodes; `^` before a part takes it out. CPUs that the
 * host does not have are passed over.
 *
 * Source: xl.cfg(5) cpus; tools/xl/check-xl-vcpupin-parse (cases).
 */

/** CPU numbers, ascending, without doubles. */
export type CpuSet = readonly number[];

/** The host's CPUs are 0 to `cpus` - 1, all of one node. Null: the text is no such set. */
export function parseCpuSet(text: string, cpus: number): CpuSet | null {
  const chosen = new Set<number>();
  for (const part of text.split(',').map((word) => word.trim())) {
    if (part === '') continue;
    const match = /^(\^?)(nodes?:)?(?:(all)|(\d{1,9})(?:-(\d{1,9}))?)$/.exec(part);
    if (match === null) return null;
    const [, not, nodes, all, firstText, lastText] = match;
    if (not !== '' && all !== undefined) return null;
    const ofNodes = nodes !== undefined;
    const first = Number(firstText ?? 0);
    const last = all === undefined ? Number(lastText ?? firstText) : cpus;
    if (last < first) return null;
    const from = !ofNodes ? first : first === 0 ? 0 : cpus;
    const to = ofNodes ? cpus - 1 : Math.min(last, cpus - 1);
    for (let cpu = from; cpu <= to; cpu++) {
      if (not === '') chosen.add(cpu);
      else chosen.delete(cpu);
    }
  }
  return [...chosen].sort((a, b) => a - b);
}

/** `all`, `none`, or ranges: `0-3,5`. */
export function formatCpuSet(set: CpuSet, cpus: number): string {
  if (set.length === 0) return 'none';
  if (set.length === cpus) return 'all';
  const ranges: [number, number][] = [];
  for (const cpu of set) {
    const range = ranges.at(-1);
    if (range !== undefined && range[1] === cpu - 1) range[1] = cpu;
    else ranges.push([cpu, cpu]);
  }
  return ranges.map(([first, last]) => (first === last ? String(first) : `${first}-${last}`)).join(',');
}
