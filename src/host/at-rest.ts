/** When this process has nothing to do any more. */

import { setTimeout as sleep } from 'node:timers/promises';

const LOOK_MS = 10;
/** Of one CPU. */
const REST_PART = 0.2;

/** Resolves when all threads of this process together take little CPU time, such as V8's that compile what has been run; or after `limitMs`. */
export async function untilAtRest(limitMs: number): Promise<void> {
  const endMs = performance.now() + limitMs;
  let [beforeMs, before] = [performance.now(), cpuMs()];
  while (beforeMs < endMs) {
    await sleep(LOOK_MS);
    const [nowMs, now] = [performance.now(), cpuMs()];
    if (now - before < (nowMs - beforeMs) * REST_PART) return;
    [beforeMs, before] = [nowMs, now];
  }
}

function cpuMs(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}
