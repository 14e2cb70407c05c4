/**
 * Where Domus keeps what it cannot make again, and where its daemon is found.
 *
 *   xenstored/socket    clients of xenstore connect here (on Windows a pipe, see `xenstoredPath`)
 *   xenstored/journal   the store
 *   network/socket      Ethernet switches (on Windows a pipe)
 *   domusd.pid          process id of the daemon that runs
 *   domusd.log          what it has to say, if a command has started it; domusd.log.old, what it said before
 */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';

/** $DOMUS_STATE_DIR, else $XDG_STATE_HOME/domus, else ~/.local/state/domus. The folder may not exist yet. */
export function stateRoot(env: NodeJS.ProcessEnv = process.env): string {
  if (env['DOMUS_STATE_DIR']) return resolve(env['DOMUS_STATE_DIR']);
  // The XDG specification tells programs to ignore a relative path here.
  if (env['XDG_STATE_HOME']?.startsWith('/')) return join(env['XDG_STATE_HOME'], 'domus');
  return join(homedir(), '.local', 'state', 'domus');
}

/** Where the daemon of this state folder listens for clients of xenstore. */
export function xenstoredPath(root: string): string {
  if (process.platform !== 'win32') return join(root, 'xenstored', 'socket');
  // Windows has pipes instead, which are in no folder.
  return `\\\\.\\pipe\\domus-xenstored-${createHash('sha256').update(root).digest('hex').slice(0, 16)}`;
}

/** Where the daemon of this state folder listens for ports of its Ethernet switches. */
export function switchPath(root: string): string {
  if (process.platform !== 'win32') return join(root, 'network', 'socket');
  return `\\\\.\\pipe\\domus-network-${createHash('sha256').update(root).digest('hex').slice(0, 16)}`;
}

export function journalPath(root: string): string {
  return join(root, 'xenstored', 'journal');
}

export function pidPath(root: string): string {
  return join(root, 'domusd.pid');
}

export function logPath(root: string): string {
  return join(root, 'domusd.log');
}

/** The process that serves, or has last served, the folder; null if that cannot be told. */
export function pidIn(root: string): number | null {
  try {
    const pid = Number(readFileSync(pidPath(root), 'utf8'));
    // 0 and less would be process groups.
    return Number.isSafeInteger(pid) && pid > 1 ? pid : null;
  } catch {
    return null;
  }
}
