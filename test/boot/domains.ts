/** The processes of domains that a test has started with xl: they outlive xl. */

import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { destroyDomain, domidsIn, pidOf, readDomainConfigJson } from '../../src/host/domain-client.ts';
import { domainLogPath, stateRoot } from '../../src/host/state-dir.ts';

let names = 0;

/** A setting for `xl create`: tests of several files may run at a time, and share a state folder. */
export function uniqueName(): { readonly name: string; readonly setting: string } {
  const name = `test-${process.pid}-${names++}`;
  return { name, setting: `name="${name}"` };
}

/** Domids of those that were created with that name. */
function domidsOf(name: string, root: string): number[] {
  return domidsIn(root).filter((domid) => {
    const { c_info } = readDomainConfigJson(domid, root) as { c_info?: { name?: string } };
    return c_info?.name === name;
  });
}

/** Kills the domain's process as hard as it goes; resolves when it is gone. */
export async function killDomain(name: string, root = stateRoot()): Promise<void> {
  for (const domid of domidsOf(name, root)) {
    const pid = pidOf(root, domid);
    if (pid === null) continue;
    try {
      process.kill(pid, 'SIGKILL');
      // It is nobody's child here; a zombie is gone as well.
      while (process.kill(pid, 0)) await sleep(10);
    } catch {
      // It is gone.
    }
  }
}

/** Ends a domain, if it is there still. */
export async function endDomain(name: string, root = stateRoot()): Promise<void> {
  for (const domid of domidsOf(name, root)) await destroyDomain(domid, root);
}

/** Ends all domains of a state folder. */
export async function endDomains(root: string): Promise<void> {
  for (const domid of domidsIn(root)) await destroyDomain(domid, root);
}

/** What a domain has written to its console so far, as its log has it. */
export function consoleLog(root: string, name: string): string {
  try {
    return readFileSync(domainLogPath(root, 'console', name), 'utf8').replaceAll('\r', '');
  } catch {
    return '';
  }
}

/** Waits for a line of a domain's console; what matched. */
export async function consoleSays(root: string, name: string, pattern: RegExp, limitMs: number): Promise<string> {
  const endMs = performance.now() + limitMs;
  for (;;) {
    const log = consoleLog(root, name);
    const found = pattern.exec(log);
    if (found !== null) return found[1] ?? found[0];
    if (performance.now() > endMs) throw new Error(`${name} does not say ${pattern}:\n${log.slice(-3000)}`);
    await sleep(100);
  }
}
