/**
 * Where Domus keeps what it cannot make again, and where its daemon is found.
 *
 *   xenstored/socket    clients of xenstore connect here (on Windows a pipe, see `xenstoredPath`)
 *   xenstored/journal   the store
 *   network/socket      Ethernet switches (on Windows a pipe)
 *   domains/DOMID/      of each domain that runs: pid, the process, and when it was started; control, console, migration and peer, its
 *                       sockets (on Windows pipes); state, how it is (seen-state.ts); config.json, what it was made from; record.json, what
 *                       it is started again from
 *   disks/NAME/         disks of the domain of that name which have layers: VDEV.qcow2 of a copy, with its config domain.cfg; VDEV.TIME.qcow2 of one
 *                       that was copied, or has a snapshot
 *   snapshots/UUID/     a folder for each snapshot of the domain: memory, as xl save writes it; snapshot.json, its disks
 *   log/xl-NAME.log     what became of the domain of that name; .1, .2, ... are those before
 *   log/console-NAME.log  what it wrote to its console; .1 is what was there before
 *   log/hypervisor.log  what `xl dmesg` shows
 *   cpu-shares          what vCPUs say to each other of their CPU time
 *   keys/               this host's key and whom it trusts, for migrations (host/keys/host-keys.ts)
 *   xl.conf             what xl.conf(5) says, for domains of this folder; made by who wants it
 *   domusd.pid          process id of the daemon that runs
 *   domusd.log          what it has to say, if a command has started it; domusd.log.old, what it said before
 */
import { createHash } from 'node:crypto';
import { readFileSync, realpathSync } from 'node:fs';
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
  return process.platform === 'win32' ? pipe(root, 'xenstored') : join(root, 'xenstored', 'socket');
}

/** Linux: the abstract socket that the daemon of this state folder holds from its start to its end. The folder must be there. */
export function daemonLockName(root: string): string {
  return `\0domusd-${createHash('sha256').update(realpathSync(root)).digest('hex').slice(0, 32)}`;
}

/** Where the daemon of this state folder listens for ports of its Ethernet switches. */
export function switchPath(root: string): string {
  return process.platform === 'win32' ? pipe(root, 'network') : join(root, 'network', 'socket');
}

/** What there is of a running domain. */
export function domainFolder(root: string, domid: number): string {
  return join(root, 'domains', String(domid));
}

/** SHUTDOWN_* of a domain that is kept though its process is gone. */
export function endedPath(root: string, domid: number): string {
  return join(domainFolder(root, domid), 'ended');
}

/** Where a domain's process answers questions (src/host/control-server.ts). */
export function controlPath(root: string, domid: number): string {
  return process.platform === 'win32' ? pipe(root, `control-${domid}`) : join(domainFolder(root, domid), 'control');
}

/** Where a domain's process serves its console: raw bytes both ways. */
export function consolePath(root: string, domid: number): string {
  return process.platform === 'win32' ? pipe(root, `console-${domid}`) : join(domainFolder(root, domid), 'console');
}

/** Leads to what other processes see of a domain (seen-state.ts). */
export function seenStatePath(root: string, domid: number): string {
  return join(domainFolder(root, domid), 'state');
}

/** Where `xl migrate` connects. */
export function migrationPath(root: string, domid: number): string {
  return process.platform === 'win32' ? pipe(root, `migration-${domid}`) : join(domainFolder(root, domid), 'migration');
}

/** Where a domain's process serves those of other domains, for grants and event channels between them. */
export function peerPath(root: string, domid: number): string {
  return process.platform === 'win32' ? pipe(root, `peer-${domid}`) : join(domainFolder(root, domid), 'peer');
}

/** A log of the domain of that name; `kind` is `xl` or `console`. */
export function domainLogPath(root: string, kind: 'xl' | 'console', name: string): string {
  return join(root, 'log', `${kind}-${safeName(name)}.log`);
}

/** A name may be anything, a file's name may not. */
function safeName(name: string): string {
  return name.replace(/[^\w.+@ -]/g, '_').slice(0, 100);
}

/** Disk images of a domain that Domus has made. */
export function disksFolder(root: string, name: string): string {
  return join(root, 'disks', safeName(name).replace(/^\.+/, '_'));
}

/** The image by which a disk of a copy goes on, in the folder of the copy's disks. */
export function overlayPath(folder: string, vdev: string): string {
  return join(folder, `${vdev}.qcow2`);
}

/** The folders of all snapshots of a domain are in here. */
export function snapshotsFolder(root: string): string {
  return join(root, 'snapshots');
}

export function keysFolder(root: string): string {
  return join(root, 'keys');
}

export function hypervisorLogPath(root: string): string {
  return join(root, 'log', 'hypervisor.log');
}

/** Windows has pipes instead of sockets, which are in no folder. */
function pipe(root: string, name: string): string {
  return `\\\\.\\pipe\\domus-${name}-${createHash('sha256').update(root).digest('hex').slice(0, 16)}`;
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

/** What a file of a saved domain is called that the process writes, until it is whole. */
export function partialPath(path: string, pid: number): string {
  return `${path}.${pid}.part`;
}
