/**
 * What real xl 4.17 printed (oracle-recorded.json: words, output, error output and exit code), and what ours prints on a host
 * that is as the recorded one was: u1 alone (`xl-*`), or u1 paused beside u2 with a disk and an interface (`dev-*`). The domains
 * are nodes in a daemon's store and control sockets that answer what was so there; guests that run are in test/boot/xl.test.ts.
 *
 * Masked: the place in Xen's sources, the program's path, times, and domain 0's memory, vCPUs and their CPUs.
 */
import { readFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { HOST_CPUS, type Output, TestHost, testState } from '../../../test/xl-host.ts';
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

interface Recorded extends Output {
  readonly words: readonly string[];
}

const RECORDED = JSON.parse(readFileSync(new URL('./oracle-recorded.json', import.meta.url), 'utf8')) as Readonly<
  Record<string, Recorded>
>;

/** Where ours differs, and why. It has to differ: what agrees again is taken off this list. */
const DIFFERENT: Readonly<Record<string, string>> = {
  'dev-dump-core': 'the recorded one failed',
  'life-save-0': "libxc's words about the host's memory",
  'dev-memmax': 'the memory of a domain cannot be more than it was made for',
  'dev-memset-ok2': 'it follows dev-memmax',
  'xl-help-migrate': 'a host without ssh: tls:HOST',
  'xl-help': 'suspend and resume are of a newer Xen; what is not there is not listed',
  'xl-noargs': 'suspend and resume are of a newer Xen; what is not there is not listed',
  'xl-info': 'another host, another hypervisor',
  'xl-info-n': 'another host, another hypervisor',
  'xl-info-numa': 'another host, another hypervisor',
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

/** What commands that were not recorded had set before: the files are in no order. */
const BEFORE: Readonly<
  Record<
    string,
    { readonly weight?: number; readonly cap?: number; readonly hard?: number[]; readonly soft?: number[] }
  >
> = {
  'xl-sched-credit2-get2': { weight: 512 },
  'xl-sched-credit2-get3': { weight: 512, cap: 50 },
  'dev-vcpupin-list': { hard: [1] },
  'dev-vcpu-list2': { soft: [0] },
};

const ME = 'e29e0040-db4b-4e86-9413-deddcaa5c837';
const SECOND = 'b9ededa0-583e-4036-8b90-63beca359d90';

let host: TestHost;

beforeAll(async () => {
  host = await TestHost.open();
  await addDomain(1, 'u1', ME, 'kernel="/root/vmlinuz"\n');
});
afterAll(() => host.close());

async function addDomain(domid: number, name: string, uuid: string, more: string): Promise<void> {
  const rest = 'ramdisk="/root/domu.initrd"\nmemory=256\nvcpus=1\nextra="console=hvc0 oinfo"\n';
  await host.addDomain(domid, name, uuid, `${more}${rest}`);
}

/** As domains were when this was recorded. */
function setStates(name: string): void {
  const { hard = HOST_CPUS, soft = HOST_CPUS, ...parameters } = BEFORE[name] ?? {};
  const as = (memoryMiB: number) => {
    const state = testState(memoryMiB, parameters);
    return { ...state, vcpus: state.vcpus.map((vcpu) => ({ ...vcpu, hard, soft })) };
  };
  host.states.set(1, isSecond(name) ? testState(128, { paused: true }) : as(256));
  // mem-set was recorded with a guest that did it.
  host.states.set(2, as(name === 'dev-memset-list' ? 200 : 256));
}

/** A device that is connected, with the rings that were recorded. */
async function addDevice(nodes: DeviceNodes, frontend: Readonly<Record<string, string>>): Promise<void> {
  const { store } = host;
  await addDeviceNodes(store, 2, nodes);
  await store.write(`${backendPath(2, nodes)}/state`, '4');
  await store.write(`${frontendPath(2, nodes)}/state`, '4');
  for (const [name, value] of Object.entries(frontend)) await store.write(`${frontendPath(2, nodes)}/${name}`, value);
}

function masked({ code, out, err }: Output): Output {
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
      // xl list -l
      .replace(/("name": "Domain-0"\s*\},\s*"b_info": \{)\s*"max_memkb": \d+,\s*"target_memkb": \d+,/, '$1 MEM')
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
  const ours = await host.xl(...recorded.words);
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
      setStates(name);
      await compare(name);
    });
  }
});

describe('xl prints what was recorded with a second guest', () => {
  beforeAll(async () => {
    const devices = 'disk=["phy:/dev/loop0,xvda,w"]\nvif=["mac=00:16:3e:11:22:33,bridge=xenbr0"]\n';
    await addDomain(2, 'u2', SECOND, `kernel="/root/vmlinux"\n${devices}`);
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
      setStates(name);
      await host.store.write('/local/domain/2/name', /rename/.test(name) ? 'u2new' : 'u2');
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
