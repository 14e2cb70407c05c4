/**
 * Debian's own xl 4.17 as a client: what it prints of our domains is what ours prints. It talks to our xenstored, and its hypercalls are answered
 * from the state that ours shows (test-privcmd.ts), so this is about the programs: what they ask, compute and print.
 */

import { execFile, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  appendFileSync,
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import type { Server } from 'node:net';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { testState } from '../../../test/xl-host.ts';
import type { ControlState } from '../../host/control-protocol.ts';
import { type ControlServer, openControlServer } from '../../host/control-server.ts';
import { type Daemon, startDaemon } from '../../host/domusd.ts';
import { controlPath, hypervisorLogPath, xenstoredPath } from '../../host/state-dir.ts';
import { openXenstored } from '../../host/xenstored.ts';
import { cacheRoot, temporaryBeside } from '../../toolstack/cache.ts';
import { parseDisk } from '../../toolstack/config/disk.ts';
import { parseVif } from '../../toolstack/config/network-interface.ts';
import {
  addDeviceNodes,
  backendPath,
  type DeviceNodes,
  diskNodes,
  frontendPath,
  vifNodes,
} from '../../toolstack/device-nodes.ts';
import { AptError, openApt } from '../../toolstack/guest-image/apt.ts';
import { readDeb } from '../../toolstack/guest-image/deb.ts';
import { introduceControlDomain, introduceDomain } from '../../toolstack/xenstore-nodes.ts';
import { XenstoreClient } from '../../xenstore/client.ts';
import { main } from './main.ts';
import { servePrivcmd } from './test-privcmd.ts';

const PACKAGES = [
  ...['xen-utils-4.17', 'libxenmisc4.17', 'libxencall1', 'libxendevicemodel1', 'libxenevtchn1', 'libxenforeignmemory1'],
  ...['libxengnttab1', 'libxenhypfs1', 'libxenstore4', 'libxentoolcore1', 'libxentoollog1', 'libyajl2', 'libext2fs2'],
];
const SHIM = fileURLToPath(new URL('./test-privcmd.c', import.meta.url));
const SHIM_HASH = createHash('sha256').update(readFileSync(SHIM)).digest('hex').slice(0, 12);

interface Ran {
  readonly out: string;
  readonly err: string;
  readonly code: number | null;
}

let root = '';
let bin = '';
let missing = '';
let before: string | undefined;
let daemon: Daemon;
let store: XenstoreClient;
let privcmd: Server;
const controls: ControlServer[] = [];
const states = new Map<number, ControlState>();

beforeAll(async () => {
  root = mkdtempSync(join(tmpdir(), 'domus-xl-'));
  before = process.env['DOMUS_STATE_DIR'];
  process.env['DOMUS_STATE_DIR'] = root;
  daemon = await startDaemon(root, () => {});
  store = new XenstoreClient(await openXenstored(root));
  await introduceControlDomain(store);
  privcmd = await servePrivcmd(join(root, 'privcmd'), store);
  try {
    if (process.platform !== 'linux' || process.arch !== 'x64')
      throw new AptError('the program is for Linux on x86-64');
    await unpackDebian();
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    missing = error.message;
    return;
  }
  await addDomain(1, 'u1', 256, 1);
  await addDomain(2, 'a guest of two vCPUs', 300, 2);
  await addDevice(diskNodes(parseDisk('', 'phy:/dev/loop0,xvda,w'), 51712, '/dev/loop0'), {
    'event-channel': '8',
    'ring-ref': '8',
  });
  const vif = parseVif('', 'mac=00:16:3e:11:22:33,bridge=xenbr0', 0, () => {});
  if (vif.mac === null) throw new Error('no mac');
  await addDevice(vifNodes(vif, vif.mac), { 'tx-ring-ref': '522', 'rx-ring-ref': '523' });
  mkdirSync(dirname(hypervisorLogPath(root)), { recursive: true });
  appendFileSync(hypervisorLogPath(root), '(XEN) d1v0: a line\n(XEN) and another one\n'.repeat(1000));
}, 180_000);
afterAll(async () => {
  for (const control of controls) control.close();
  privcmd.close();
  store.close();
  await daemon.stop();
  if (before === undefined) delete process.env['DOMUS_STATE_DIR'];
  else process.env['DOMUS_STATE_DIR'] = before;
  rmSync(root, { recursive: true });
});

/** Throws an Error that says what is not to be had. It takes half a minute on a busy machine, so it is kept. */
async function unpackDebian(): Promise<void> {
  const kept = join(cacheRoot(), `debian-xl-${SHIM_HASH}`);
  if (!existsSync(kept)) {
    bin = temporaryBeside(kept);
    await unpackInto(bin);
    renameSync(bin, kept);
  }
  bin = kept;
}

async function unpackInto(folder: string): Promise<void> {
  mkdirSync(folder, { recursive: true });
  await promisify(execFile)('gcc', ['-Wall', '-shared', '-fPIC', '-o', join(folder, 'privcmd.so'), SHIM, '-ldl']);
  const apt = await openApt({ cacheDir: cacheRoot() });
  for (const name of PACKAGES) {
    const files = await readDeb(
      await apt.download(name),
      (path) => /\/bin\/xl$/.test(path) || /^(?:usr\/)?lib\/x86_64-linux-gnu\/lib[^/]+$/.test(path),
    );
    for (const [path, bytes] of files) {
      const file = basename(path);
      // Programs ask for libNAME.so.4, or .so.4.17, which are links in the package.
      const [stem, version] = file.split('.so.');
      const numbers = version === undefined ? [] : version.split('.');
      const names =
        version === undefined ? [file] : numbers.map((_, i) => `${stem}.so.${numbers.slice(0, i + 1).join('.')}`);
      for (const target of names) {
        writeFileSync(join(folder, target), bytes);
        chmodSync(join(folder, target), 0o755);
      }
    }
  }
}

async function addDomain(domid: number, name: string, memoryMiB: number, vcpus: number): Promise<void> {
  const ring = { storePort: 1, storeMfn: 0x100 + domid, consolePort: 2, consoleMfn: 0x200 + domid };
  const memory = { memoryKiB: memoryMiB * 1024, maxMemKiB: memoryMiB * 1024, vcpus };
  const uuid = `e29e0040-db4b-4e86-9413-00000000000${domid}`;
  await introduceDomain(store, { domid, name, uuid, ...memory, ...ring, startTimeSeconds: Date.now() / 1000 - 100 });
  const state = testState(memoryMiB);
  // Which CPU it is on is not known.
  const vcpu = { ...state.vcpus[0], cpu: -1 };
  states.set(domid, { ...state, vcpus: Array.from({ length: vcpus }, () => vcpu) });
  const paused = (value: boolean) => () => {
    states.set(domid, { ...(states.get(domid) as ControlState), paused: value });
    return null;
  };
  controls.push(
    await openControlServer(controlPath(root, domid), {
      state: () => states.get(domid) as ControlState,
      pause: paused(true),
      unpause: paused(false),
      nmi: () => null,
      wait: async () => 0,
      destroy: () => null,
      resume: () => null,
      save: () => null,
      'dump-core': () => null,
      outline: () => null,
      fork: () => null,
      'fork-early': () => null,
      'fork-start': () => null,
      'fork-memory': () => null,
      'fork-end': () => null,
      snapshot: () => null,
      schedule: () => null,
      pin: () => null,
      memory: () => null,
      devices: () => null,
    }),
  );
}

async function addDevice(nodes: DeviceNodes, frontend: Readonly<Record<string, string>>): Promise<void> {
  await addDeviceNodes(store, 2, nodes);
  await store.write(`${backendPath(2, nodes)}/state`, '4');
  await store.write(`${frontendPath(2, nodes)}/state`, '4');
  for (const [name, value] of Object.entries(frontend)) await store.write(`${frontendPath(2, nodes)}/${name}`, value);
}

function debian(words: readonly string[]): Promise<Ran> {
  const child = spawn(join(bin, 'xl'), words, {
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: 30_000,
    env: {
      LC_ALL: 'C',
      LD_LIBRARY_PATH: bin,
      LD_PRELOAD: join(bin, 'privcmd.so'),
      DOMUS_PRIVCMD: join(root, 'privcmd'),
      XENSTORED_PATH: xenstoredPath(root),
    },
  });
  let out = '';
  let err = '';
  child.stdout.setEncoding('latin1').on('data', (text: string) => {
    out += text;
  });
  child.stderr.setEncoding('latin1').on('data', (text: string) => {
    err += text;
  });
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code) => resolve({ out, err, code }));
  });
}

async function ours(words: readonly string[]): Promise<Ran> {
  let out = '';
  let err = '';
  const code = await main([...words], {
    out: (text) => {
      out += text;
    },
    err: (line) => {
      err += `${line}\n`;
    },
  });
  return { out, err, code };
}

/** Places in Xen's sources, the program's path; what the host did between the two; that there is no xl.conf. */
function masked({ out, err, code }: Ran): Ran {
  return {
    code,
    out: out
      // What the host has besides its domains changes from moment to moment.
      .replace(/^(Domain-0 +0) +\d+( +\d+ {5}\S{6} ) +[\d.]+/gm, '$1 MEM$2TIME')
      .replace(/^(Domain-0 +0) +\d+( +0)$/gm, '$1 MEM$2')
      .replace(/^(Domain-0 +0 +\d+ +\d+ +)\S+ +[\d.]+ /gm, '$1STATE TIME ')
      .replace(/^(\S+ +\d+ ).*\d+:\d\d$/gm, '$1UPTIME')
      // Ours says that the host schedules vCPUs.
      .replace(/^((?!Domain-0).* +\d+ +\d+ +)(?:0|-) +(-b- |-?--? |\S{3} )/gm, '$1CPU $2')
      .replace(/^(free_memory +: ).*/m, '$1FREE'),
    err: err
      .replace(/^libxl: error: \S+\.c:\d+:\w+: /gm, 'libxl: error: ')
      .replace(/^\S*\/xl: /gm, 'xl: ')
      .replace(/^.*xl\.conf.*\n/gm, ''),
  };
}

const COMMANDS: readonly (readonly string[])[] = [
  ['list'],
  ['list', '-v'],
  ['list', '-c'],
  ['list', '2'],
  ['list', 'nosuch'],
  ['list', '77'],
  ['vm-list'],
  ['uptime', 'u1'],
  ['vcpu-list'],
  ['vcpu-list', 'u1'],
  ['domid', 'u1'],
  ['domid', 'nosuch'],
  ['domname', '2'],
  ['domname', 'x'],
  ['block-list', '2'],
  ['block-list', 'nosuch', '1', '2'],
  ['network-list', '2'],
  ['network-list', 'nosuch'],
  ['channel-list', '2'],
  ['vkb-list', '2'],
  ['pci-list', '2'],
  ['dmesg'],
  ['pause', 'u1'],
  ['list'],
  ['pause', 'u1'],
  ['vcpu-list'],
  ['unpause', 'u1'],
  ['list'],
  ['unpause', 'nosuch'],
  ['pause'],
  ['help', 'shutdown'],
  ['dmesg', '-c'],
  ['dmesg'],
];

for (const [i, words] of COMMANDS.entries())
  test(`${i}: xl ${words.join(' ')}`, async (context) => {
    if (missing !== '') return context.skip(`Debian's xl is not to be had: ${missing}`);
    const logged = '(XEN) d1v0: a line\n(XEN) and another one\n'.repeat(1000);
    if (words[0] === 'dmesg') writeFileSync(hypervisorLogPath(root), logged);
    const theirs = await debian(words);
    if (words[0] === 'dmesg') writeFileSync(hypervisorLogPath(root), logged);
    // Each of the two has done it.
    expect(masked(await ours(words))).toEqual(masked(theirs));
  });
