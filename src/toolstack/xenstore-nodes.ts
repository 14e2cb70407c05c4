/**
 * The xenstore nodes of a PV guest without devices, as libxl makes them when it builds the domain.
 *
 * Paths, values and permissions are those recorded from Xen 4.17 (xenstore-ls-fp.out). Left out, because someone else
 * writes them: console/tty (the console), control/feature-* values (the guest), device/* (each device's own code).
 *
 * Source: tools/libs/light/libxl_create.c, libxl_dom.c, libxl_console.c (behaviour); docs/misc/xenstore-paths.pandoc.
 */
import type { XenstoreClient } from '../xenstore/client.ts';

export interface DomainNodes {
  readonly domid: number;
  /** Lower-case, with hyphens. */
  readonly uuid: string;
  readonly name: string;
  /** What the guest shall use now; its balloon follows it. */
  readonly memoryKiB: number;
  readonly maxMemKiB: number;
  /** vCPUs that are online at boot. */
  readonly vcpus: number;
  /** vCPUs that may be brought online later, the first `vcpus` included; `vcpus` if left out. */
  readonly vcpusMax?: number;
  /** Guest's event channel port and MFN of the xenstore ring page. */
  readonly storePort: number;
  readonly storeMfn: number;
  /** Guest's event channel port and MFN of the console ring page. */
  readonly consolePort: number;
  readonly consoleMfn: number;
  /** What was booted, as the user named it. */
  readonly image?: { readonly kernel: string; readonly ramdisk?: string; readonly cmdline?: string };
  /** Seconds since 1970. */
  readonly startTimeSeconds?: number;
  /** It is to serve devices of others. */
  readonly driverDomain?: boolean;
}

const DOM0_PATH = '/local/domain/0';

/** Makes one node with its value and permissions. */
type MakeNode = (path: string, permissions: readonly string[], value?: string) => void;

/** Name of the one CPU pool, which libxl looks for. */
const POOL_NAME = '/local/pool/0/name';

/** Domain 0's own nodes, and those of the host. Before the first guest. `memoryKiB`: of the host, for who keeps the store. */
export async function introduceControlDomain(client: XenstoreClient, memoryKiB?: number): Promise<void> {
  if (memoryKiB !== undefined)
    for (const node of ['static-max', 'target']) await client.write(`${DOM0_PATH}/memory/${node}`, String(memoryKiB));
  // The last one that is written tells that all are there.
  if ((await client.read(POOL_NAME)) !== null) return;
  await client.write(`${DOM0_PATH}/name`, 'Domain-0');
  await client.write(`${DOM0_PATH}/domid`, '0');
  await client.write(POOL_NAME, 'Pool-0');
}

/** Another domain has the name. One line, as libxl says it. */
export class DomainNameTaken extends Error {
  override readonly name = 'DomainNameTaken';
}

/** Any number of domains may have none. Throws DomainNameTaken. */
export async function nameMustBeFree(nodes: Pick<XenstoreClient, 'directory' | 'read'>, name: string): Promise<void> {
  if (name === '') return;
  for (const domid of (await nodes.directory('/local/domain')) ?? []) {
    if ((await nodes.read(`/local/domain/${domid}/name`)) === name)
      throw new DomainNameTaken(`Domain with name "${name}" already exists.`);
  }
}

/**
 * Makes the nodes, all of them or none, and introduces the domain, which fires @introduceDomain. Throws DomainNameTaken, and XenstoreError, for
 * example if a value does not fit a node (2048 bytes), or the domain is introduced with other rings already.
 */
export async function introduceDomain(client: XenstoreClient, domain: DomainNodes): Promise<void> {
  await client.transaction(async (nodes) => {
    await nameMustBeFree(nodes, domain.name);
    const made: Promise<void>[] = [];
    addDomain(domain, (path, permissions, value = '') => {
      made.push(nodes.write(path, value), nodes.setPermissions(path, permissions));
    });
    await Promise.all(made);
  });
  await client.introduce(domain.domid, domain.storeMfn, domain.storePort);
}

/**
 * A domain has ended: takes away all that was made for it, its backends included, and releases it, which fires @releaseDomain.
 * Nothing happens to what is gone already.
 */
export async function removeDomain(client: XenstoreClient, domid: number): Promise<void> {
  const domainPath = `/local/domain/${domid}`;
  const backends = `${DOM0_PATH}/backend`;
  await client.transaction(async (nodes) => {
    const vmPath = await nodes.read(`${domainPath}/vm`);
    // One that moves within this host has it twice for a while.
    const isShared = vmPath !== null && (await hasOtherUser(nodes, vmPath, domid));
    if (vmPath !== null && !isShared && /^\/vm\/[0-9a-f-]+$/.test(vmPath)) await nodes.remove(vmPath);
    for (const kind of (await nodes.directory(backends)) ?? []) await nodes.remove(`${backends}/${kind}/${domid}`);
    for (const path of await backendsElsewhere(nodes, domid)) {
      await nodes.remove(path);
      const parent = path.slice(0, path.lastIndexOf('/'));
      if ((await nodes.directory(parent))?.length === 0) await nodes.remove(parent);
    }
    await nodes.remove(`/libxl/${domid}`);
    await nodes.remove(domainPath);
  });
  if (await client.isDomainIntroduced(domid)) await client.release(domid);
}

async function hasOtherUser(
  nodes: Pick<XenstoreClient, 'directory' | 'read'>,
  vmPath: string,
  domid: number,
): Promise<boolean> {
  for (const other of (await nodes.directory('/local/domain')) ?? [])
    if (other !== String(domid) && (await nodes.read(`/local/domain/${other}/vm`)) === vmPath) return true;
  return false;
}

/** Folders of the domain's devices that driver domains serve. */
async function backendsElsewhere(nodes: Pick<XenstoreClient, 'directory' | 'read'>, domid: number): Promise<string[]> {
  const found: string[] = [];
  const devices = `/libxl/${domid}/device`;
  for (const kind of (await nodes.directory(devices)) ?? [])
    for (const id of (await nodes.directory(`${devices}/${kind}`)) ?? []) {
      const path = await nodes.read(`${devices}/${kind}/${id}/backend`);
      const match = path === null ? null : /^\/local\/domain\/(\d+)\/backend\/\w+\/(\d+)\/\d+$/.exec(path);
      if (path !== null && match !== null && match[1] !== '0' && match[2] === String(domid)) found.push(path);
    }
  return found;
}

function addDomain(domain: DomainNodes, node: MakeNode): void {
  const { domid, uuid, name } = domain;
  const domainPath = `/local/domain/${domid}`;
  const vmPath = `/vm/${uuid}`;
  const guestReads = ['n0', `r${domid}`];
  const guestOwns = [`n${domid}`];

  node(domainPath, guestReads);
  node(vmPath, guestReads);
  node(`${vmPath}/uuid`, guestReads, uuid);
  node(`${vmPath}/name`, guestReads, name);
  if (domain.startTimeSeconds !== undefined) {
    node(`${vmPath}/start_time`, guestReads, domain.startTimeSeconds.toFixed(2));
  }
  if (domain.image !== undefined) {
    const { kernel, ramdisk, cmdline } = domain.image;
    node(`${vmPath}/image`, guestReads);
    node(`${vmPath}/image/ostype`, guestReads, 'linux');
    node(`${vmPath}/image/kernel`, guestReads, kernel);
    if (ramdisk !== undefined) node(`${vmPath}/image/ramdisk`, guestReads, ramdisk);
    if (cmdline !== undefined) node(`${vmPath}/image/cmdline`, guestReads, cmdline);
  }

  node(`${domainPath}/vm`, guestReads, vmPath);
  node(`${domainPath}/name`, guestReads, name);
  node(`${domainPath}/domid`, guestReads, String(domid));

  for (const directory of ['cpu', 'memory', 'device', 'control', 'store', 'console']) {
    node(`${domainPath}/${directory}`, guestReads);
  }
  for (const path of ['data', 'drivers', 'feature', 'attr', 'error']) node(`${domainPath}/${path}`, guestOwns);

  // For its own toolstack; and `backend` is where it finds the devices, and takes away those that are gone.
  if (domain.driverDomain)
    for (const path of ['libxl', 'device-model', 'backend']) node(`${domainPath}/${path}`, guestOwns);

  const vcpusMax = domain.vcpusMax ?? domain.vcpus;
  for (let vcpu = 0; vcpu < vcpusMax; vcpu++) {
    node(`${domainPath}/cpu/${vcpu}`, guestReads);
    node(`${domainPath}/cpu/${vcpu}/availability`, guestReads, vcpu < domain.vcpus ? 'online' : 'offline');
  }

  node(`${domainPath}/memory/static-max`, guestReads, String(domain.maxMemKiB));
  node(`${domainPath}/memory/target`, guestReads, String(domain.memoryKiB));
  node(`${domainPath}/memory/videoram`, guestReads, '0');

  node(`${domainPath}/device/suspend`, guestReads);
  node(`${domainPath}/device/suspend/event-channel`, guestOwns);

  for (const key of ['shutdown', 'sysrq', 'feature-poweroff', 'feature-reboot', 'feature-suspend']) {
    node(`${domainPath}/control/${key}`, guestOwns);
  }
  node(`${domainPath}/control/platform-feature-multiprocessor-suspend`, guestReads, '1');
  node(`${domainPath}/control/platform-feature-xs_reset_watches`, guestReads, '1');

  node(`${domainPath}/store/port`, guestReads, String(domain.storePort));
  node(`${domainPath}/store/ring-ref`, guestReads, String(domain.storeMfn));

  addConsole(domain, node);
}

/** The first console: it is described below the domain itself, and served by xenconsoled's part of domain 0. */
function addConsole(domain: DomainNodes, node: MakeNode): void {
  const { domid } = domain;
  const frontend = `/local/domain/${domid}/console`;
  const backend = `${DOM0_PATH}/backend/console/${domid}/0`;
  const libxl = `/libxl/${domid}`;
  const guestReads = ['n0', `r${domid}`];
  const dom0Only = ['n0'];

  node(`${frontend}/backend`, guestReads, backend);
  node(`${frontend}/backend-id`, [`n${domid}`, 'r0'], '0');
  node(`${frontend}/limit`, guestReads, '1048576');
  node(`${frontend}/type`, guestReads, 'xenconsoled');
  node(`${frontend}/output`, guestReads, 'pty');
  node(`${frontend}/port`, guestReads, String(domain.consolePort));
  node(`${frontend}/ring-ref`, guestReads, String(domain.consoleMfn));

  const backendValues = [
    ['frontend', frontend],
    ['frontend-id', String(domid)],
    ['online', '1'],
    ['state', '1'],
    ['protocol', 'vt100'],
  ];
  node(backend, guestReads);
  for (const [key, value] of backendValues) node(`${backend}/${key}`, guestReads, value);

  for (const path of [libxl, `${libxl}/device`, `${libxl}/device/console`]) node(path, dom0Only);
  node(`${libxl}/type`, dom0Only, 'pv');
  node(`${libxl}/dm-version`, dom0Only, 'qemu_xen');
  const libxlConsole = `${libxl}/device/console/0`;
  node(libxlConsole, dom0Only);
  node(`${libxlConsole}/backend`, dom0Only, backend);
  for (const [key, value] of backendValues) node(`${libxlConsole}/${key}`, dom0Only, value);
}
