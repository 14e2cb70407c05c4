/** `xl mem-set` and `xl mem-max`. Source: xl(1); tools/xl/xl_mem.c (read for behaviour); recorded output of xl 4.17. */

import { allowMemory, readDomainConfigJson } from '../../host/domain-client.ts';
import { domainMemories, hostMemory } from '../../host/host-memory.ts';
import { setMemoryMaximum, setMemoryTarget } from '../../toolstack/domain-control.ts';
import type { XenstoreClient } from '../../xenstore/client.ts';
import { type Command, readWords } from './command.ts';
import { CommandError, findDomain, tryState, withStore } from './domains.ts';

const USAGE = "<Domain> <MemMB['b'[bytes]|'k'[KB]|'m'[MB]|'g'[GB]|'t'[TB]]>";
/** Bytes as powers of two. */
const UNITS: Readonly<Record<string, number>> = { b: 0, k: 10, m: 20, '': 20, g: 30, t: 40 };

export const memSet = memoryCommand('mem-set', 'Set the current memory usage for a domain', setTarget);
export const memMax = memoryCommand(
  'mem-max',
  'Set the maximum amount reservation for a domain',
  (store, domid, kib) => {
    const { b_info } = readDomainConfigJson(domid) as { b_info?: { max_memkb?: number } };
    return setMemoryMaximum(store, domid, kib, b_info?.max_memkb ?? 0);
  },
);

/** What a domain gets more must be free, and is allowed before the guest is told; what it loses is taken when it has been told. */
async function setTarget(store: XenstoreClient, domid: number, kib: number): Promise<void> {
  const state = await tryState(domid);
  const beforeKiB = (state?.promisedPages ?? 0) * 4;
  const { freeKiB } = hostMemory(await domainMemories());
  if (kib - beforeKiB > freeKiB)
    throw new CommandError(
      `libxl: error: Domain ${domid}:not enough memory: ${mib(kib - beforeKiB)} MiB more are needed, ${mib(freeKiB)} MiB are free`,
    );
  if (kib > beforeKiB) await allowMemory(domid, kib);
  try {
    await setMemoryTarget(store, domid, kib);
  } catch (error) {
    if (kib > beforeKiB) await allowMemory(domid, beforeKiB);
    throw error;
  }
  if (kib < beforeKiB) await allowMemory(domid, kib);
}

function mib(kib: number): number {
  return Math.floor(kib / 1024);
}

/** KiB of a size such as 300, 256m or 1g; MiB without a unit. Null: it is none. */
export function sizeKiB(text: string): number | null {
  const match = /^(\d{1,15})([bkmgt]?)$/i.exec(text);
  if (match === null) return null;
  const bytes = Number(match[1]) * 2 ** UNITS[match[2].toLowerCase()];
  return Number.isSafeInteger(Math.floor(bytes / 1024)) ? Math.floor(bytes / 1024) : null;
}

function memoryCommand(name: string, summary: string, set: typeof setMemoryTarget): Command {
  const command: Command = {
    name,
    modifies: true,
    canDryRun: false,
    summary,
    usage: USAGE,
    options: '',
    async run(words, context) {
      const parsed = readWords(command, words, { letters: '' }, 2, context);
      if (typeof parsed === 'number') return parsed;
      const [word, size] = parsed.operands;
      return await withStore(context, async (store) => {
        const { domid } = await findDomain(store, word);
        const kib = sizeKiB(size);
        if (kib === null) throw new CommandError(`invalid memory size: ${size}`);
        if (domid === 0) throw new CommandError('libxl: error: Domain 0:its memory is that of the host');
        await set(store, domid, kib);
        return 0;
      });
    },
  };
  return command;
}
