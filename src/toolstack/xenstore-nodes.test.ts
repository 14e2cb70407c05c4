import { expect, test } from 'vitest';
import { XS } from '../abi/io/xs-wire.ts';
import { XenstoreClient } from '../xenstore/client.ts';
import { linkToStore } from '../xenstore/link.ts';
import { createStore } from '../xenstore/store.ts';
import { bytesToText, textToBytes } from '../xenstore/wire.ts';
import { introduceControlDomain, introduceDomain, removeDomain } from './xenstore-nodes.ts';

const DOMAIN = {
  domid: 1,
  uuid: 'e29e0040-db4b-4e86-9413-deddcaa5c837',
  name: 'u1',
  memoryKiB: 262144,
  maxMemKiB: 262144,
  vcpus: 1,
  storePort: 1,
  storeMfn: 523265,
  consolePort: 2,
  consoleMfn: 523266,
  image: { kernel: '/root/vmlinuz', ramdisk: '/root/domu.initrd', cmdline: 'console=hvc0 oinfo' },
  startTimeSeconds: 1795229251.89,
};

/** `xenstore-ls -fp` of the guest's parts, recorded from Xen 4.17 (xenstore-ls-fp.out); see the exceptions in the test. */
const RECORDED = `
/libxl/1 = ""   (n0)
/libxl/1/device = ""   (n0)
/libxl/1/device/console = ""   (n0)
/libxl/1/device/console/0 = ""   (n0)
/libxl/1/device/console/0/backend = "/local/domain/0/backend/console/1/0"   (n0)
/libxl/1/device/console/0/frontend = "/local/domain/1/console"   (n0)
/libxl/1/device/console/0/frontend-id = "1"   (n0)
/libxl/1/device/console/0/online = "1"   (n0)
/libxl/1/device/console/0/protocol = "vt100"   (n0)
/libxl/1/device/console/0/state = "1"   (n0)
/libxl/1/dm-version = "qemu_xen"   (n0)
/libxl/1/type = "pv"   (n0)
/local/domain/0/backend/console/1/0 = ""   (n0,r1)
/local/domain/0/backend/console/1/0/frontend = "/local/domain/1/console"   (n0,r1)
/local/domain/0/backend/console/1/0/frontend-id = "1"   (n0,r1)
/local/domain/0/backend/console/1/0/online = "1"   (n0,r1)
/local/domain/0/backend/console/1/0/protocol = "vt100"   (n0,r1)
/local/domain/0/backend/console/1/0/state = "1"   (n0,r1)
/local/domain/1 = ""   (n0,r1)
/local/domain/1/attr = ""   (n1)
/local/domain/1/console = ""   (n0,r1)
/local/domain/1/console/backend = "/local/domain/0/backend/console/1/0"   (n0,r1)
/local/domain/1/console/backend-id = "0"   (n1,r0)
/local/domain/1/console/limit = "1048576"   (n0,r1)
/local/domain/1/console/output = "pty"   (n0,r1)
/local/domain/1/console/port = "2"   (n0,r1)
/local/domain/1/console/ring-ref = "523266"   (n0,r1)
/local/domain/1/console/tty = "/dev/pts/0"   (n0,r1)
/local/domain/1/console/type = "xenconsoled"   (n0,r1)
/local/domain/1/control = ""   (n0,r1)
/local/domain/1/control/feature-poweroff = "1"   (n1)
/local/domain/1/control/feature-reboot = "1"   (n1)
/local/domain/1/control/feature-suspend = "1"   (n1)
/local/domain/1/control/platform-feature-multiprocessor-suspend = "1"   (n0,r1)
/local/domain/1/control/platform-feature-xs_reset_watches = "1"   (n0,r1)
/local/domain/1/control/shutdown = ""   (n1)
/local/domain/1/control/sysrq = ""   (n1)
/local/domain/1/cpu = ""   (n0,r1)
/local/domain/1/cpu/0 = ""   (n0,r1)
/local/domain/1/cpu/0/availability = "online"   (n0,r1)
/local/domain/1/data = ""   (n1)
/local/domain/1/device = ""   (n0,r1)
/local/domain/1/device/suspend = ""   (n0,r1)
/local/domain/1/device/suspend/event-channel = ""   (n1)
/local/domain/1/domid = "1"   (n0,r1)
/local/domain/1/drivers = ""   (n1)
/local/domain/1/error = ""   (n1)
/local/domain/1/feature = ""   (n1)
/local/domain/1/memory = ""   (n0,r1)
/local/domain/1/memory/static-max = "262144"   (n0,r1)
/local/domain/1/memory/target = "262144"   (n0,r1)
/local/domain/1/memory/videoram = "0"   (n0,r1)
/local/domain/1/name = "u1"   (n0,r1)
/local/domain/1/store = ""   (n0,r1)
/local/domain/1/store/port = "1"   (n0,r1)
/local/domain/1/store/ring-ref = "523265"   (n0,r1)
/local/domain/1/vm = "/vm/e29e0040-db4b-4e86-9413-deddcaa5c837"   (n0,r1)
/vm/e29e0040-db4b-4e86-9413-deddcaa5c837 = ""   (n0,r1)
/vm/e29e0040-db4b-4e86-9413-deddcaa5c837/image = ""   (n0,r1)
/vm/e29e0040-db4b-4e86-9413-deddcaa5c837/image/cmdline = "console=hvc0 oinfo"   (n0,r1)
/vm/e29e0040-db4b-4e86-9413-deddcaa5c837/image/kernel = "/root/vmlinuz"   (n0,r1)
/vm/e29e0040-db4b-4e86-9413-deddcaa5c837/image/ostype = "linux"   (n0,r1)
/vm/e29e0040-db4b-4e86-9413-deddcaa5c837/image/ramdisk = "/root/domu.initrd"   (n0,r1)
/vm/e29e0040-db4b-4e86-9413-deddcaa5c837/name = "u1"   (n0,r1)
/vm/e29e0040-db4b-4e86-9413-deddcaa5c837/start_time = "1795229251.89"   (n0,r1)
/vm/e29e0040-db4b-4e86-9413-deddcaa5c837/uuid = "e29e0040-db4b-4e86-9413-deddcaa5c837"   (n0,r1)
`;

test('introduceDomain() makes the nodes that libxl made', async () => {
  const store = createStore();
  const toolstack = new XenstoreClient(linkToStore(store));
  await introduceControlDomain(toolstack);
  await introduceDomain(toolstack, DOMAIN);
  const client = store.connect(0);
  const lines: string[] = [];
  const walk = (path: string): void => {
    const perms = client.handle({ type: XS.GET_PERMS, reqId: 0, txId: 0, payload: textToBytes(`${path}\0`) });
    const value = bytesToText(store.read(path)!);
    lines.push(`${path} = "${value}"   (${bytesToText(perms.payload).slice(0, -1).replaceAll('\0', ',')})`);
    for (const name of [...store.list(path)!].sort()) walk(`${path}/${name}`);
  };
  for (const path of ['/libxl/1', '/local/domain/0/backend/console/1/0', '/local/domain/1', `/vm/${DOMAIN.uuid}`]) {
    walk(path);
  }
  const recorded = RECORDED.trim()
    .split('\n')
    // The guest had booted and had written its features; xenconsoled its tty.
    .map((line) => line.replace(/(\/control\/feature-\w+ = )"1"/, '$1""'))
    .filter((line) => !line.includes('/console/tty'));
  expect(lines).toEqual(recorded);
});

test('the guest can use its nodes, and knows which vCPUs are offline', async () => {
  const store = createStore();
  await introduceDomain(new XenstoreClient(linkToStore(store)), { ...DOMAIN, domid: 5, vcpus: 1, vcpusMax: 2 });
  const guest = store.connect(5);
  const ask = (type: number, text: string) =>
    bytesToText(guest.handle({ type, reqId: 0, txId: 0, payload: textToBytes(text) }).payload);
  expect(ask(XS.WRITE, 'control/feature-poweroff\x001')).toBe('OK\0');
  expect(ask(XS.WRITE, 'memory/target\x001')).toBe('EACCES\0');
  expect(ask(XS.READ, 'cpu/1/availability\0')).toBe('offline');
  expect(ask(XS.DIRECTORY, 'device\0')).toBe('suspend\0');
  expect(ask(XS.READ, 'domid\0')).toBe('5');
});

test('removeDomain() leaves nothing of one domain, and all of the others', async () => {
  const store = createStore();
  const toolstack = new XenstoreClient(linkToStore(store));
  await introduceControlDomain(toolstack);
  const paths = (): string[] => [...store.tree.nodes()].map(({ path }) => `/${path.join('/')}`);
  await introduceDomain(toolstack, DOMAIN);
  const before = paths();
  const guest = store.connect(2);
  await introduceDomain(toolstack, {
    ...DOMAIN,
    domid: 2,
    name: 'second',
    uuid: '00000000-0000-4000-8000-000000000002',
  });
  guest.handle({ type: XS.WRITE, reqId: 0, txId: 0, payload: textToBytes('data/agent\x001') });
  await removeDomain(toolstack, 2);
  expect(paths().filter((path) => !before.includes(path))).toEqual([]);
  expect(paths()).toEqual(before);
  expect(store.isIntroduced(2)).toBe(false);
  expect(guest.isClosed).toBe(true);
  await removeDomain(toolstack, 2);
  expect(paths()).toEqual(before);
});
