/**
 * Linux guests and host commands meet in one xenstore: domids of their own, values both ways, a shutdown by
 * control/shutdown, and all of it with the daemon killed in between.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { stopDaemon } from '../../src/host/domusd.ts';
import { openXenstoreSession } from '../../src/host/xenstored.ts';
import { buildGuest } from '../../src/toolstack/guest-image/build.ts';
import { XenstoreClient } from '../../src/xenstore/client.ts';
import { endDomains, killDomain } from './domains.ts';

const XL = fileURLToPath(new URL('../../src/cli/xl/main.ts', import.meta.url));
const LIMIT_MS = 180_000;

/** Writes data/hello through /dev/xen/xenbus, shows the reply, and then every change of data/word. */
const SCRIPT = `
exec 3<>/dev/xen/xenbus
printf '\\013\\0\\0\\0\\001\\0\\0\\0\\0\\0\\0\\0\\025\\0\\0\\0data/hello\\0from guest' >&3
dd bs=19 count=1 <&3 2>/dev/null | od -An -tx1
while :; do
  printf '\\002\\0\\0\\0\\002\\0\\0\\0\\0\\0\\0\\0\\012\\0\\0\\0data/word\\0' >&3
  echo "reply: $(dd bs=64 count=1 <&3 2>/dev/null | tr -c 'a-zA-Z' .)"
  sleep 1
done`;

let root = '';
let config = '';
const domains: Domain[] = [];
/** Domain 0's. As long as it is open, it starts the daemon again. */
let client: XenstoreClient;
beforeAll(async () => {
  root = mkdtempSync(join(tmpdir(), 'domus-xenstore-'));
  ({ config } = await buildGuest({}));
  client = new XenstoreClient(await openXenstoreSession(0, () => {}, root));
});
afterAll(async () => {
  client.close();
  await endDomains(root);
  await stopDaemon(root);
  rmSync(root, { recursive: true });
});

interface Domain {
  readonly process: ChildProcess;
  shown: string;
  readonly ended: Promise<number | null>;
}

function create(name: string): Domain {
  const run = Buffer.from(SCRIPT).toString('base64');
  const words = ['create', '-c', config, `name="${name}"`, `cmdline="console=hvc0 quiet domus.run=${run}"`];
  const child = spawn(process.execPath, [XL, ...words], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, DOMUS_STATE_DIR: root },
  });
  const domain: Domain = { process: child, shown: '', ended: new Promise((resolve) => child.on('close', resolve)) };
  const show = (bytes: Buffer): void => void (domain.shown += bytes.toString('latin1').replaceAll('\r', ''));
  child.stdout.on('data', show);
  child.stderr.on('data', show);
  domains.push(domain);
  return domain;
}

async function until(what: string, isSo: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = Date.now() + LIMIT_MS;
  while (!(await isSo())) {
    if (Date.now() > deadline)
      throw new Error(`not in ${LIMIT_MS / 1000} s: ${what}\n${domains.map(({ shown }) => shown).join('\n---\n')}`);
    await sleep(50);
  }
}

function killDaemon(): void {
  const pid = Number(readFileSync(join(root, 'domusd.pid'), 'utf8'));
  expect(pid).toBeGreaterThan(1);
  process.kill(pid, 'SIGKILL');
}

test('two guests and the host share a store that is killed and comes back', async () => {
  const one = create('one');
  const two = create('two');
  const nameOf = (domid: string): Promise<string | null> => client.read(`/local/domain/${domid}/name`);
  const domids = async (): Promise<string[]> => (await client.directory('/local/domain')) ?? [];
  const hello = async (domid: string): Promise<boolean> =>
    (await client.read(`/local/domain/${domid}/data/hello`)) === 'from guest';

  await until('both guests have written', async () => {
    const present = (await domids()).filter((domid) => domid !== '0');
    return present.length === 2 && (await Promise.all(present.map(hello))).every(Boolean);
  });
  expect(await domids()).toEqual(['0', '1', '2']);
  const names = [await nameOf('1'), await nameOf('2')];
  expect([...names].sort()).toEqual(['one', 'two']);
  const [first, second] = names[0] === 'one' ? [one, two] : [two, one];
  // The reply that the guest got: OK, for its request 1.
  const reply = '0b 00 00 00 01 00 00 00 00 00 00 00 03 00 00 00 4f 4b 00';
  await until('the guest shows its reply', () => first.shown.replace(/\s+/g, ' ').includes(reply));

  killDaemon();
  await client.write('/local/domain/1/data/word', 'afterwards');
  await client.setPermissions('/local/domain/1/data/word', ['n1']);
  await until('the guest reads what the next daemon was told', () => first.shown.includes('afterwards'));
  expect(second.shown).not.toContain('afterwards');

  // What `xl shutdown` does. The kernel's watch was set with the daemon that was killed.
  const released: string[] = [];
  await client.watch('@releaseDomain', 'token', (path) => void released.push(path));
  await until('the watch is set', () => released.length > 0);
  released.length = 0;
  killDaemon();
  await client.write('/local/domain/1/control/shutdown', 'poweroff');
  await until('the guest powers off', async () => !(await domids()).includes('1'));
  expect(await first.ended).toBe(0);
  expect(released).toContain('@releaseDomain');
  expect(await hello('2')).toBe(true);

  await killDomain('two' === names[1] ? 'two' : 'one', root);
  await until('what a killed domain leaves is removed', async () => (await domids()).length === 1);
  expect(await client.directory('/libxl')).toEqual([]);
  expect(await client.directory('/vm')).toEqual([]);
});
