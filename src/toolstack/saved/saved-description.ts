/** The first part of a saved domain (save-file.ts): what it is, in JSON, so that one who has only begun to read knows it. */

import { type CpuFeatures, FEATURE_WORDS, FEATURE_WORDS_MIN } from '../../hypervisor/cpu-features.ts';
import type { Watch } from '../../xenstore/link-connection.ts';
import { SaveFileError } from './save-file.ts';
import { checkNodes, type SavedNode } from './saved-store.ts';

export interface Description {
  readonly domid: number;
  /** By which the guest knows itself: another one if it was restored where its own was taken. */
  readonly knownDomid: number;
  readonly name: string;
  /** The text of an xl.cfg file that describes it, complete: name and uuid are there, file names are absolute. */
  readonly config: string;
  /** The engine that ran it, and what its guest was shown of a CPU. */
  readonly engine: 'kvm' | 'wasm';
  readonly cpu: CpuFeatures;
  /** Rate of the TSC that the guest has measured or was told, in kHz, and what it read last. */
  readonly tsc: { readonly khz: number; readonly ticks: number };
  /** For how long the domain had stood still when this was written, if its time is to go on nevertheless: ms. */
  readonly stillMs?: number;
  /** Frames of the rings that a domain has from the start, and the guest's ports for them. */
  readonly store: { readonly pfn: number; readonly port: number };
  readonly console: { readonly pfn: number; readonly port: number };
  /** The kernel's command line. */
  readonly cmdline: string;
  readonly nodes: readonly SavedNode[];
  /** The guest's watches: path, token and perhaps a depth, each a character a byte. */
  readonly watches: readonly Watch[];
}

const DOMID_MAX = 0x7fef;
const WATCHES_MAX = 4096;
const FRAME_MAX = 0x100000;
const PORT_MAX = 4095;
const STILL_MS_MAX = 3_600_000;

export function encodeDescription(description: Description): Uint8Array {
  return new TextEncoder().encode(JSON.stringify(description));
}

/** @throws SaveFileError */
export function decodeDescription(bytes: Uint8Array): Description {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch {
    throw new SaveFileError('damaged: its description is no JSON');
  }
  const root = recordOf(value, 'its description');
  const domid = numberIn(root, 'domid', 1, DOMID_MAX);
  const cpu = recordOf(root['cpu'], 'cpu');
  const words = cpu['words'];
  if (!Array.isArray(words) || words.length < FEATURE_WORDS_MIN || !words.every((word) => Number.isInteger(word)))
    throw new SaveFileError('damaged: cpu.words');
  if (words.length > FEATURE_WORDS)
    throw new SaveFileError(
      `it has ${words.length} words of CPU features, and this Domus knows ${FEATURE_WORDS}: it was saved by a newer one`,
    );
  const tsc = recordOf(root['tsc'], 'tsc');
  const { engine } = root;
  if (engine !== 'kvm' && engine !== 'wasm') throw new SaveFileError(`its engine is ${JSON.stringify(engine)}`);
  const watches = root['watches'];
  if (!Array.isArray(watches) || watches.length > WATCHES_MAX || !watches.every(isWatch))
    throw new SaveFileError('damaged: watches');
  const ring = (name: string): { pfn: number; port: number } => {
    const record = recordOf(root[name], name);
    return { pfn: numberIn(record, 'pfn', 0, FRAME_MAX), port: numberIn(record, 'port', 1, PORT_MAX) };
  };
  return {
    domid,
    knownDomid: numberIn(root, 'knownDomid', 1, DOMID_MAX),
    name: textIn(root, 'name'),
    config: textIn(root, 'config'),
    engine,
    cpu: {
      xcr0: numberIn(cpu, 'xcr0', 0, 0xffff),
      words: [...words, ...new Array<number>(FEATURE_WORDS - words.length).fill(0)] as number[],
    },
    tsc: { khz: numberIn(tsc, 'khz', 1000, 100_000_000), ticks: numberIn(tsc, 'ticks', 0, 2 ** 63) },
    ...('stillMs' in root ? { stillMs: numberIn(root, 'stillMs', 0, STILL_MS_MAX) } : {}),
    store: ring('store'),
    console: ring('console'),
    cmdline: textIn(root, 'cmdline'),
    nodes: checkNodes(root['nodes'], domid),
    watches: watches as Watch[],
  };
}

function isWatch(value: unknown): boolean {
  return (
    Array.isArray(value) &&
    (value.length === 2 || value.length === 3) &&
    value.every((text) => typeof text === 'string' && text.length <= 4096 && !/[^\x01-\xff]/.test(text))
  );
}

function recordOf(value: unknown, what: string): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw new SaveFileError(`damaged: ${what}`);
  return { ...value };
}

function numberIn(record: Record<string, unknown>, name: string, min: number, max: number): number {
  const value = record[name];
  if (typeof value !== 'number' || !Number.isInteger(value) || value < min || value > max)
    throw new SaveFileError(`damaged: ${name} is ${JSON.stringify(value)}`);
  return value;
}

function textIn(record: Record<string, unknown>, name: string): string {
  const value = record[name];
  if (typeof value !== 'string') throw new SaveFileError(`damaged: ${name} is ${JSON.stringify(value)}`);
  return value;
}
