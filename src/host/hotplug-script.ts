/**
 * Hot-plug scripts: what `script=` names, run with the arguments and the environment that libxl gives them.
 *
 *   disk   SCRIPT add|remove
 *   vif    SCRIPT online|offline type_if=vif      with vif=vifDOMID.DEVID, and netdev= for gatewaydev
 *
 * XENBUS_PATH is the backend's folder relative to /local/domain/0, XENBUS_BASE_PATH "backend", XENBUS_TYPE the kind. A script has
 * done its work when it ends with 0; what it says of a failure stands in `hotplug-error`. XENSTORED_PATH is this daemon's
 * socket, so that xenstore-read and the like, of Xen's own package too, reach it.
 *
 * Source: tools/libs/light/libxl_linux.c get_hotplug_env, libxl_hotplug_*; libxl_device.c device_hotplug (behaviour);
 * docs/misc/block-scripts.txt, xen-network-common.sh.
 */

import { spawn } from 'node:child_process';
import { HOTPLUG_LIMIT_MS } from '../toolstack/device-plug.ts';
import type { XenstoreClient } from '../xenstore/client.ts';
import { HostError } from './host-error.ts';

/** Of what a script writes to its standard error: the end is kept. */
const ERRORS_MAX = 4096;

export interface HotplugScript {
  /** Absolute. */
  readonly path: string;
  readonly words: readonly string[];
  /** The backend's folder in xenstore, absolute. */
  readonly backendPath: string;
  /** More than all scripts get. */
  readonly env?: Readonly<Record<string, string>>;
}

export interface HotplugHost {
  readonly store: XenstoreClient;
  /** Where xenstored listens; null when nobody but this process can reach it. */
  readonly xenstoredPath: string | null;
  readonly log: (line: string) => void;
  /** For tests. */
  readonly limitMs?: number;
}

/** Runs a script to its end. @throws HostError when it fails, or takes too long: then it and its children are killed */
export async function runHotplugScript(script: HotplugScript, host: HotplugHost): Promise<void> {
  const { path, words, backendPath } = script;
  const relative = backendPath.replace(/^\/local\/domain\/0\//, '');
  const env = {
    ...process.env,
    script: path,
    XENBUS_TYPE: relative.split('/')[1] ?? '',
    XENBUS_PATH: relative,
    XENBUS_BASE_PATH: 'backend',
    ...(host.xenstoredPath === null ? {} : { XENSTORED_PATH: host.xenstoredPath }),
    ...script.env,
  };
  const failure = await run(path, words, env, host.limitMs ?? HOTPLUG_LIMIT_MS, host.log);
  if (failure === null) return;
  const said = await host.store.read(`${backendPath}/hotplug-error`);
  throw new HostError(said === null || said === '' ? failure : `script: ${said}`);
}

/** Null, or why it failed. */
function run(
  path: string,
  words: readonly string[],
  env: NodeJS.ProcessEnv,
  limitMs: number,
  log: (line: string) => void,
): Promise<string | null> {
  const what = `${path} ${words[0] ?? ''}`.trimEnd();
  return new Promise((resolve) => {
    // A group of its own, so that its children end with it.
    const child = spawn(path, words, { env, detached: true, stdio: ['ignore', 'ignore', 'pipe'] });
    let errors = '';
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
    }, limitMs);
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      errors = (errors + text).slice(-ERRORS_MAX);
    });
    child.on('error', (error: NodeJS.ErrnoException) => {
      clearTimeout(timer);
      const why =
        error.code === 'ENOENT'
          ? 'No such file or directory'
          : error.code === 'EACCES'
            ? 'Permission denied'
            : error.message;
      resolve(`cannot execute ${path}: ${why}`);
    });
    child.on('exit', (code, signal) => {
      clearTimeout(timer);
      // What the script has left behind may hold the pipe.
      child.stderr.destroy();
      for (const line of errors.split('\n').filter((text) => text.trim() !== '')) log(`${what}: ${line}`);
      if (late) resolve(`killing execution of ${what} because of timeout`);
      else if (signal !== null) resolve(`${what} [${child.pid}] died due to fatal signal ${signal}`);
      else resolve(code === 0 ? null : `${what} [${child.pid}] exited with error status ${code}`);
    });
  });
}
