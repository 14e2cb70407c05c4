/**
 * Log files that cannot fill the disk: one that has grown is renamed to `.1`, and so on up to a number of old ones. A log that
 * cannot be written holds nothing up.
 */
import { appendFileSync, mkdirSync, renameSync, statSync } from 'node:fs';
import { dirname } from 'node:path';

/** Kept of the logs of domains of one name. */
export const OLD_LOGS = 10;

/** Makes room for a new file: `path` becomes `path.1`, that `path.2`, ...; the last one goes. */
export function rotateLog(path: string, keep: number): void {
  for (let i = keep - 1; i >= 0; i--) {
    try {
      renameSync(i === 0 ? path : `${path}.${i}`, `${path}.${i + 1}`);
    } catch {
      // There is none of that number.
    }
  }
}

export interface LogFile {
  add(bytes: Uint8Array | string): void;
}

/** Opens a log for adding to. Each addition is one write, so several processes may have it open. */
export function openLogFile(path: string, bytesMax: number, keep: number): LogFile {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  let size = sizeOf(path);
  return {
    add: (bytes) => {
      try {
        if (size > bytesMax) {
          // Another process may have done it.
          if (sizeOf(path) > bytesMax) rotateLog(path, keep);
          size = sizeOf(path);
        }
        appendFileSync(path, bytes, { mode: 0o600 });
        size += bytes.length;
      } catch {
        // Such as a full disk: the domain is worth more than its log.
      }
    },
  };
}

function sizeOf(path: string): number {
  return statSync(path, { throwIfNoEntry: false })?.size ?? 0;
}
