/**
 * What real xl 4.17 printed (oracle-recorded.json: words, output, error output and exit code), and what ours prints on a host
 * that is as the recorded one was: u1 alone (`xl-*`), or u1 paused beside u2 with a disk and an interface (`dev-*`). The domains
 * are nodes in a daemon's store and control sockets that answer what was so there; guests that run are in test/boot/xl.test.ts.
 *
 * Masked: the place in Xen's sources, the program's path, times, and domain 0's memory, vCPUs and their CPUs.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { ControlState } from '../../host/control-protocol.ts';
import { type ControlServer, openControlServer } from '../../host/control-server.ts';
import { type Daemon, startDaemon } from '../../host/domusd.ts';
import { controlPath, domainFolder } from '../../host/state-dir.ts';
import { openXenstored } from '../../host/xenstored.ts';
import { parseDisk } from '../../toolstack/config/disk.ts';
import { configJson, readStated } from '../../toolstack/config/domain-config.ts';
import { parseVif } from '../../toolstack/config/network-interface.ts';
import {
  addDeviceNodes,
  backendPath,
  type DeviceNodes,
  diskNodes,
  frontendPath,
  vifNodes,
} from '../../toolstack/device-nodes.ts';
import { introduceControlDomain, introduceDomain } from '../../toolstack/xenstore-nodes.ts';
import { XenstoreClient } from '../../xenstore/client.ts';
import { main } from './main.ts';

interface Recorded {
  readonly words: readonly string[];
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

const RECORDED = JSON.parse(readFileSync(new URL('./oracle-recorded.json', import.meta.url), 'utf8')) as Readonly<
  Record<string, Recorded>
>;

/** Where ours differs, and why. It has to differ: what agrees again is taken off this list. */
const NOT_BUILT = 'not built yet';
const DIFFERENT: Readonly<Record<string, string>> = {
  'dev-dump-core': NOT_BUILT,
  'life-save-0': "libxc's words about the host's memory",
  'dev-memmax': 'the memory of a domain cannot be more than it was made for',
  'dev-memset-ok2': 'it follows dev-memmax',
  'dev-vcpu-list2': 'a vCPU was pinned, and there is no vcpu-pin',
  'dev-vcpupin-list': 'a vCPU was pinned, and there is no vcpu-pin',
  'xl-help': 'suspend and resume are of a newer Xen; what is not there is not listed',
  'xl-noargs': 'suspend and resume are of a newer Xen; what is not there is not listed',
  'xl-info': 'another host, another hypervisor',
  'xl-info-n': 'another host, another hypervisor',
  'xl-info-numa': 'another host, another hypervisor',
  'xl-list-l': 'sched_params: the host schedules vCPUs',
  'xl-list-l-u1': 'sched_params: the host schedules vCPUs',
  'xl-list-long': 'sched_params: the host schedules vCPUs',
  'dev-xl-list-l-u2': 'sched_params: the host schedules vCPUs',
  'xl-vvv-list': 'libxencall counts its buffers; there are none here',
};

/** What would need a guest, a backend or a state of the host that is not made here, and where it is tested. */
const ELSEWHERE: Readonly<Record<string, string>> = {
  'dev-block-attach-qdisk': 'a backend is needed: plugging is in test/boot/control.test.ts',
  'dev-block-detach': 'a backend is needed: plugging is in test/boot/control.test.ts',
  'dev-network-attach': 'a backend is needed: plugging is in test/boot/control.test.ts',
  'dev-network-detach': 'a backend is needed: plugging is in test/boot/control.test.ts',
  'dev-network-list2': 'a backend is needed: plugging is in test/boot/control.test.ts',
  'sd-create-F': 'a guest that powers off: the same lines are in test/boot/xl.test.ts',
  'sd-reboot': 'a guest that reboots: test/boot/interactive.test.ts',
  'sd-shutdown-w': 'a guest that powers off: test/boot/xl.test.ts',
};

const ME = 'e29e0040-db4b-4e86-9413-deddcaa5c837';
const SECOND = '00000000-0000-4000-8000-000000000002';

let root = '';
let before: string | undefined;
let daemon: Daemon;
let store: XenstoreClient;
const controls: ControlServer[] = [];
/** What the domains' processes answer. */
const states = new Map<number, ControlState>();

beforeAll(async () => {
  root = mkdtempSync(join(tmpdir(), 'domus-oracle-'));
  before = process.env['DOMUS_STATE_DIR'];
  process.env['DOMUS_STATE_DIR'] = root;
  daemon = await startDaemon(root, () => {});
  store = new XenstoreClient(await openXenstored(root));
  await introduceControlDomain(store);
  await addDomain(1, 'u1', ME);
});
afterAll(async () => {
  for (const control of controls) control.close();
  store.close();
  await daemon.stop();
  if (before === undefined) delete process.env['DOMUS_STATE_DIR'];
  else process.env['DOMUS_STATE_DIR'] = before;
  rmSync(root, { recursive: true });
});

function state(memoryMiB: number, paused: boolean): ControlState {
  const vcpu = { online: true, running: false, blocked: !paused, timeNs: paused ? 0 : 9.7e9 };
  return { paused, shutdownReason: -1, pages: memoryMiB * 256, vcpus: [vcpu], pid: process.pid };
}

async function addDomain(domid: number, name: string, uuid: string): Promise<void> {
  const ring = { storePort: 1, storeMfn: 0x100 + domid, consolePort: 2, consoleMfn: 0x200 + domid };
  const memory = { memoryKiB: 262144, maxMemKiB: 262144, vcpus: 1 };
  await introduceDomain(store, { domid, name, uuid, ...memory, ...ring, startTimeSeconds: Date.now() / 1000 - 100 });
  states.set(domid, state(256, false));
  const now = (): ControlState => states.get(domid) ?? state(256, false);
  const control = await openControlServer(controlPath(root, domid), {
    state: now,
    pause: () => {
      states.set(domid, { ...now(), paused: true });
      return null;
    },
    unpause: () => {
      states.set(domid, { ...now(), paused: false });
      return null;
    },
    wait: async () => 0,
    nmi: () => null,
    destroy: () => null,
    save: async () => null,
  });
  controls.push(control);
  const cfg = `name="${name}"\nuuid="${uuid}"\nkernel="/root/vmlinuz"\nramdisk="/root/domu.initrd"\nmemory=256\nvcpus=1\nextra="console=hvc0 oinfo"\n`;
  writeFileSync(join(domainFolder(root, domid), 'config.json'), configJson(readStated('u', cfg, { warn: () => {} })));
}

/** A device that is connected, with the rings that were recorded. */
async function addDevice(nodes: DeviceNodes, frontend: Readonly<Record<string, string>>): Promise<void> {
  await addDeviceNodes(store, 2, nodes);
  await store.write(`${backendPath(2, nodes)}/state`, '4');
  for (const [name, value] of Object.entries(frontend)) await store.write(`${frontendPath(2, nodes)}/${name}`, value);
}

async function xl(words: readonly string[]): Promise<Omit<Recorded, 'words'>> {
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
  return { code, out, err };
}

function masked({ code, out, err }: Omit<Recorded, 'words'>): Omit<Recorded, 'words'> {
  return {
    code,
    out: out
      // xl list
      .replace(/^(Domain-0 +0) +\d+ +\d+( {5}\S{6} ) +[\d.]+/gm, '$1 MEM VCPUS$2TIME')
      .replace(/^(\S+ +\d+ +\d+ +\d+ {5}\S{6} ) +[\d.]+/gm, '$1TIME')
      // xl sharing
      .replace(/^(Domain-0 +0) +\d+( +0)$/gm, '$1 MEM$2')
      // xl vcpu-list
      .replace(/^(Domain-0 +0 +\d+) +\d+ +(r--|-b-) +[\d.]+ /gm, '$1 CPU STATE TIME ')
      .replace(/^(\S+ +\d+ +\d+) +(?:\d+|-) +(\S{3}) +[\d.]+ /gm, '$1 CPU $2 TIME ')
      // xl uptime
      .replace(/ +(?:\d+ days?, +)?\d+:\d\d:\d\d$/gm, ' UPTIME'),
    err: err.replace(/^libxl: error: \S+\.c:\d+:\w+: /gm, 'libxl: error: ').replace(/^\/usr\/lib\/\S+\/xl: /gm, 'xl: '),
  };
}

const names = Object.keys(RECORDED);
const isSecond = (name: string): boolean => /^dev-/.test(name);
const counts = { agreed: 0, different: 0, elsewhere: 0, noSubject: 0 };

async function compare(name: string): Promise<void> {
  const recorded = RECORDED[name];
  const ours = await xl(recorded.words);
  // A command, or the help of one, that is not there.
  const noSubject =
    (ours.err === 'command not implemented\n' && recorded.err !== ours.err) ||
    (/^command "\S+" not implemented\n$/.test(ours.out) && recorded.out !== ours.out);
  if (noSubject) counts.noSubject++;
  else if (DIFFERENT[name] !== undefined) {
    counts.different++;
    expect(masked(ours), `${name}: it agrees`).not.toEqual(masked(recorded));
  } else {
    expect(masked(ours), name).toEqual(masked(recorded));
    counts.agreed++;
  }
}

describe('xl prints what was recorded', () => {
  for (const name of names.filter((one) => !isSecond(one))) {
    it(`${name}: xl ${RECORDED[name].words.join(' ')}`, async (context) => {
      if (ELSEWHERE[name] !== undefined) {
        counts.elsewhere++;
        return context.skip(ELSEWHERE[name]);
      }
      await compare(name);
    });
  }
});

describe('xl prints what was recorded with a second guest', () => {
  beforeAll(async () => {
    await addDomain(2, 'u2', SECOND);
    const disk = diskNodes(parseDisk('', 'phy:/dev/loop0,xvda,w'), 51712, '/dev/loop0');
    await addDevice(disk, { 'event-channel': '8', 'ring-ref': '8' });
    const vif = parseVif('', 'mac=00:16:3e:11:22:33,bridge=xenbr0', 0, () => {});
    if (vif.mac === null) throw new Error('no mac');
    await addDevice(vifNodes(vif, vif.mac), { 'tx-ring-ref': '522', 'rx-ring-ref': '523' });
  });
  for (const name of names.filter(isSecond)) {
    it(`${name}: xl ${RECORDED[name].words.join(' ')}`, async (context) => {
      if (ELSEWHERE[name] !== undefined) {
        counts.elsewhere++;
        return context.skip(ELSEWHERE[name]);
      }
      states.set(1, state(128, true));
      // mem-set was recorded with a guest that did it.
      states.set(2, state(name === 'dev-memset-list' ? 200 : 256, false));
      await store.write('/local/domain/2/name', /rename/.test(name) ? 'u2new' : 'u2');
      await compare(name);
    });
  }
});

afterAll(() => {
  const { agreed, different, elsewhere, noSubject } = counts;
  console.log(
    `of ${names.length} recorded commands ${agreed} agree, ${different} differ as documented, ${elsewhere} are tested elsewhere, ${noSubject} are of commands that are not there`,
  );
});
