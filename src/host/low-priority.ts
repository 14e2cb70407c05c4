/** For a process that is done: what it still has to take down must not keep others from the CPU. */

import { readdirSync, writeFileSync } from 'node:fs';
import { constants, setPriority } from 'node:os';

/**
 * All threads of this process wait for all others of the host from now on; `hasSession`: it is alone in its session, by which Linux groups
 * processes before it looks at their priority. There is no way back for one without privileges. Source: sched(7), "The autogroup feature".
 */
export function lowerPriority(hasSession: boolean): void {
  try {
    for (const thread of readdirSync('/proc/self/task')) setPriority(Number(thread), constants.priority.PRIORITY_LOW);
    if (hasSession) writeFileSync('/proc/self/autogroup', String(constants.priority.PRIORITY_LOW));
  } catch (error) {
    // Another system than Linux, one without groups, or a thread that has ended.
    if (!(error instanceof Error && 'code' in error)) throw error;
  }
}
