/** `xl top`: the host and its domains, again and again; with xentop's own options. Source: xl(1), xentop(1); recorded output of both. */

import { cpus } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { DomainClientError, domainDevices } from '../../host/domain-client.ts';
import { hostMemory } from '../../host/host-memory.ts';
import { hypervisorFacts } from '../../toolstack/hypervisor-facts.ts';
import type { XenstoreClient } from '../../xenstore/client.ts';
import { openTerminal } from '../terminal.ts';
import { type Command, type CommandWords, type Context, readWords } from './command.ts';
import { domainReports, maxMemoryKiBOf } from './domain-report.ts';
import { allDomains, withStore } from './domains.ts';
import { cpuMhz } from './info.ts';
import { keysIn, pressed, screen, type TopView } from './top-screen.ts';
import { type TopDomain, type TopSample, topSummary, topTable } from './top-table.ts';

const LONG = [
  { name: 'version', takesValue: false, key: 'V' },
  { name: 'delay', takesValue: true, key: 'd' },
  { name: 'networks', takesValue: false, key: 'n' },
  { name: 'vbds', takesValue: false, key: 'x' },
  { name: 'repeat-header', takesValue: false, key: 'r' },
  { name: 'vcpus', takesValue: false, key: 'v' },
  { name: 'batch', takesValue: false, key: 'b' },
  { name: 'iterations', takesValue: true, key: 'i' },
  { name: 'full-name', takesValue: false, key: 'f' },
];

/** Without a size, a screen is as large as the first ones were. */
const ROWS = 24;
const COLUMNS = 80;
const NO_DEVICES = { disks: [], vifs: [] };

export const top: Command = {
  name: 'top',
  modifies: false,
  canDryRun: false,
  summary: 'Monitor a host and the domains in real time',
  usage: '',
  options: '',
  async run(words, context) {
    const parsed = readWords(top, words, { letters: 'Vnxrvd:bi:f', long: LONG }, 0, context);
    if (typeof parsed === 'number') return parsed;
    const given = new Map(parsed.options.map(({ key, value }) => [key, value ?? '']));
    const { major, minor, extraversion } = hypervisorFacts();
    if (given.has('V')) {
      context.out(`xentop of Domus, Xen ${major}.${minor}${extraversion}\n`);
      return 0;
    }
    const view = viewOf(parsed);
    // 0, as in xentop: without end.
    const iterations = given.has('i') ? numberIn(given.get('i')) : 0;
    if (view === null || iterations === null) {
      context.err('seconds and iterations are numbers, from 0 on');
      return 2;
    }
    return await withStore(context, async (store) => {
      if (given.has('b')) await batch(store, view, iterations, context);
      else await fullScreen(store, view, iterations, context);
      return 0;
    });
  },
};

function viewOf({ options }: CommandWords): TopView | null {
  const given = new Map(options.map(({ key, value }) => [key, value ?? '']));
  const delaySeconds = given.has('d') ? numberIn(given.get('d')) : 3;
  if (delaySeconds === null) return null;
  return {
    networks: given.has('n'),
    vbds: given.has('x'),
    vcpus: given.has('v'),
    repeatHeader: given.has('r'),
    fullNames: given.has('f'),
    sort: 0,
    first: 0,
    delaySeconds,
    typed: null,
  };
}

function numberIn(text: string | undefined): number | null {
  return /^\d{1,6}$/.test(text ?? '') ? Number(text) : null;
}

async function takeSample(store: XenstoreClient): Promise<TopSample> {
  const all = await allDomains(store);
  const reports = await domainReports(store, all, all);
  const domains: TopDomain[] = await Promise.all(
    reports.map(async (report) => {
      const [maxMemoryKiB, devices] = await Promise.all([maxMemoryKiBOf(store, report), devicesOf(report.domid)]);
      return { ...report, maxMemoryKiB, devices };
    }),
  );
  return { atMs: Date.now(), domains, memory: hostMemory(reports.filter(({ domid }) => domid !== 0)) };
}

async function devicesOf(domid: number): Promise<TopDomain['devices']> {
  if (domid === 0) return NO_DEVICES;
  try {
    return (await domainDevices(domid)) ?? NO_DEVICES;
  } catch (error) {
    if (error instanceof DomainClientError) return NO_DEVICES;
    throw error;
  }
}

/** Until it is told to end, or has printed `iterations` times. */
async function batch(store: XenstoreClient, view: TopView, iterations: number, context: Context): Promise<void> {
  const ending = new AbortController();
  const end = (): void => ending.abort();
  process.once('SIGINT', end);
  process.once('SIGTERM', end);
  try {
    let before: TopSample | null = null;
    for (let left = iterations; !ending.signal.aborted; ) {
      const sample = await takeSample(store);
      context.out(`${topTable(sample, before, view).join('\n')}\n`);
      before = sample;
      if (iterations !== 0 && --left === 0) break;
      await sleep(view.delaySeconds * 1000, undefined, { signal: ending.signal }).catch(() => {});
    }
  } finally {
    process.off('SIGINT', end);
    process.off('SIGTERM', end);
  }
}

async function fullScreen(store: XenstoreClient, first: TopView, iterations: number, context: Context): Promise<void> {
  const { version, count, mhz } = hostFacts();
  let view: TopView | null = first;
  // What comes while a sample is taken is not waited for.
  let isDue = false;
  const note = (): void => {
    isDue = true;
  };
  let wake = note;
  const leave = (): void => {
    view = null;
    wake();
  };
  const terminal = openTerminal({ onEscape: leave, onHangup: leave });
  terminal.onInput((bytes) => {
    for (const key of keysIn(new TextDecoder().decode(bytes))) if (view !== null) view = pressed(view, key);
    wake();
  });
  // Another screen, without a cursor; and back.
  context.out('\x1b[?1049h\x1b[?25l');
  const onResize = (): void => wake();
  process.stdout.on('resize', onResize);
  try {
    let sample: TopSample | null = null;
    let before: TopSample | null = null;
    for (let left = iterations; view !== null; ) {
      const shown: TopView = view;
      const now = Date.now();
      // A key shows what there is in another way; only time makes a new sample.
      if (sample === null || now - sample.atMs >= shown.delaySeconds * 1000) {
        before = sample;
        sample = await takeSample(store);
        if (iterations !== 0 && --left < 0) break;
      }
      const table = topTable(sample, before, shown);
      const lines = [...topSummary(sample, { version, cpus: count, mhz }), ...table];
      const rows = process.stdout.rows ?? ROWS;
      context.out(screen(lines, new Set(table.slice(0, 1)), shown, rows, process.stdout.columns ?? COLUMNS));
      const waitMs = Math.max(50, sample.atMs + shown.delaySeconds * 1000 - Date.now());
      if (!isDue)
        await new Promise<void>((resolve) => {
          const timer = setTimeout(resolve, waitMs);
          wake = () => {
            clearTimeout(timer);
            resolve();
          };
        });
      wake = note;
      isDue = false;
    }
  } finally {
    process.stdout.off('resize', onResize);
    context.out('\x1b[?25h\x1b[?1049l');
    terminal.close();
  }
}

function hostFacts(): { readonly version: string; readonly count: number; readonly mhz: number } {
  const { major, minor, extraversion } = hypervisorFacts();
  const host = cpus();
  return {
    version: `${major}.${minor}${extraversion}`,
    count: host.length,
    mhz: Math.floor(Number(cpuMhz(host[0]?.speed ?? 0))),
  };
}
