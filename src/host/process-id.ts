/** A process that can be told from a later one of the same number: by the time at which it was started, where the system says that. */
import { readFileSync } from 'node:fs';

export interface ProcessId {
  readonly pid: number;
  /** The system's own clock ticks, or empty. */
  readonly startTime: string;
}

export function thisProcess(): ProcessId {
  return { pid: process.pid, startTime: startTimeOf(process.pid) ?? '' };
}

export function formatProcessId({ pid, startTime }: ProcessId): string {
  return `${pid} ${startTime}\n`;
}

/** Null if it is not what `formatProcessId` writes. */
export function parseProcessId(text: string): ProcessId | null {
  const match = /^(\d{1,15}) (\d*)\n?$/.exec(text);
  // 0 and 1 would be a process group and init.
  return match === null || Number(match[1]) <= 1 ? null : { pid: Number(match[1]), startTime: match[2] };
}

export function processLives({ pid, startTime }: ProcessId): boolean {
  try {
    process.kill(pid, 0);
  } catch (error) {
    // EPERM: somebody else's, so not the one that was meant.
    if (!(error instanceof Error && 'code' in error)) throw error;
    return false;
  }
  const now = startTimeOf(pid);
  return now === null || startTime === '' || now === startTime;
}

/** Null where there is no /proc; empty for a process that is gone, or dead and not yet waited for. */
function startTimeOf(pid: number): string | null {
  if (process.platform !== 'linux') return null;
  try {
    // Its name may contain anything, parentheses too. Source: proc_pid_stat(5): state is field 3, starttime field 22.
    const fields = readFileSync(`/proc/${pid}/stat`, 'utf8')
      .replace(/^.*\) /s, '')
      .split(' ');
    return fields[0] === 'Z' || fields[0] === 'X' ? 'dead' : fields[19];
  } catch {
    return 'dead';
  }
}
