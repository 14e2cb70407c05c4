/** Debian's kernel on the network, on every engine that this machine has: NAT, a switch between guests. */

import { createHash, randomBytes } from 'node:crypto';
import { resolve4 } from 'node:dns/promises';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { createServer, type RequestListener, type Server } from 'node:http';
import { type AddressInfo, connect } from 'node:net';
import { networkInterfaces } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { probeKvm } from '../../src/engine/kvm/self-test.ts';
import { openPasst } from '../../src/network/host/passt.ts';
import { runGuest } from './guest.ts';

const kvm = probeKvm();
const ENGINES = [
  { engine: 'kvm', unusable: kvm.usable ? null : kvm.reason, megabytes: 32 },
  { engine: 'wasm', unusable: null, megabytes: 8 },
] as const;

/** A name that this host is likely to know: that of its package mirror. Source: sources.list(5). */
function mirrorName(): string {
  const folder = '/etc/apt/sources.list.d';
  const files = existsSync(folder) ? readdirSync(folder).map((name) => join(folder, name)) : [];
  for (const file of ['/etc/apt/sources.list', ...files.filter((name) => /\.(list|sources)$/.test(name))]) {
    const [, host] = (existsSync(file) && /https?:\/\/([\w.-]+)/.exec(uncommented(file))) || [];
    if (host !== undefined) return host;
  }
  return 'www.debian.org';
}
const uncommented = (file: string): string => readFileSync(file, 'utf8').replaceAll(/^#.*$/gm, '');

const NAME = mirrorName();
const sha1 = (bytes: Uint8Array): string => createHash('sha1').update(bytes).digest('hex');
const data = randomBytes(32 << 20);
/** What guests have sent to the host. */
const uploads: string[] = [];
let server: Server;
let port = 0;
/** On ::1, if this host has that. */
let server6: Server | null = null;
let port6 = 0;

/** What a guest does by IPv6. It fetches this, since a command line is short. */
const ipv6Script = (): string => `
i=0; until ip -6 address show eth0 | grep fd00 | grep -qv tentative || [ $i = 100 ]; do usleep 100000; i=$((i+1)); done
ip -6 address show eth0; ip -6 route
ping -6 -c 3 fd00:a:0:2::2 | grep received
wget -q -O - http://[fd00:a:0:2::2]:${port6}/1 | sha1sum
wget -O - http://[fd00:a:0:2::2]:1/ 2>&1 | grep -i refused
`;

beforeAll(async () => {
  const listener: RequestListener = (request, response) => {
    const hash = createHash('sha1');
    request.on('data', (bytes) => hash.update(bytes));
    request.on('end', () => {
      if (request.method === 'POST') {
        uploads.push(hash.digest('hex'));
        response.end('thanks\n');
      } else if (request.url === '/ipv6') response.end(ipv6Script());
      else response.end(data.subarray(0, Number(request.url?.slice(1)) << 20));
    });
  };
  server = createServer(listener);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  port = (server.address() as AddressInfo).port;
  const other = createServer(listener);
  server6 = await new Promise<Server | null>((resolve) => {
    other.once('error', () => resolve(null));
    other.listen(0, '::1', () => resolve(other));
  });
  if (server6 !== null) port6 = (server6.address() as AddressInfo).port;
});
afterAll(() => {
  server.close();
  server6?.close();
});

/** Waits for the interface, which is there once both ends are connected. */
const LINK = 'until [ -e /sys/class/net/eth0 ]; do usleep 100000; done';
/** Waits for an address by DHCP, which /init asks for in the background. */
const LEASE = 'i=0; until ip -4 address show eth0 | grep -q inet || [ $i = 200 ]; do usleep 100000; i=$((i+1)); done';

for (const { engine, unusable, megabytes } of ENGINES) {
  test(`NAT: a lease, the gateway, names, megabytes down and up, on ${engine}`, async (context) => {
    if (unusable !== null) return context.skip(unusable);
    const url = `http://10.0.2.2:${port}`;
    // A host without name servers has none for its guests.
    const [address] = await resolve4(NAME).catch(() => [null]);
    const run = await runGuest({
      script: `${LEASE}
echo BEGIN; ip -4 address show eth0 | grep inet; ip route; cat /etc/resolv.conf
ping -c 2 10.0.2.2 | grep received
wget -q -O - ${url}/ipv6 | sh
wget -q -O /tmp/f ${url}/${megabytes} && sha1sum </tmp/f
head -c 1500000 /tmp/f | base64 -w 0 >/tmp/g; wget -q -O - --post-file /tmp/g ${url}/up
nslookup ${NAME} 2>&1
wget -O - http://10.0.2.2:1/ 2>&1 | grep -i refused
dmesg | grep -iE 'oops|BUG:|Call Trace|xen_netfront.*(error|invalid)' && echo TROUBLE
echo END`,
      overrides: [`engine="${engine}"`, 'vif=["mac=00:16:3e:00:00:01"]'],
    });
    const told = run.console.slice(run.console.indexOf('BEGIN'), run.console.indexOf('END'));
    const all = `${run.console}\n${run.log}`;
    expect(told, all).toContain('inet 10.0.2.15/24');
    expect(told, all).toContain('default via 10.0.2.2');
    expect(told, all).toContain('nameserver 10.0.2.3');
    expect(told, all).toContain('2 packets received');
    // By EUI-64 of its MAC address, as the kernel does when nobody says otherwise. Source: RFC 4291, appendix A.
    expect(told, all).toContain('inet6 fd00:a:0:2:216:3eff:fe00:1/64');
    expect(told, all).toMatch(/^default via fe80::2 dev eth0/m);
    expect(told, all).toContain('3 packets received');
    if (server6 !== null) expect(told, all).toContain(sha1(data.subarray(0, 1 << 20)));
    expect(told, all).toContain(sha1(data.subarray(0, megabytes << 20)));
    expect(told, all).toContain('thanks');
    expect(uploads).toContain(sha1(Buffer.from(data.subarray(0, 1_500_000).toString('base64'))));
    if (address !== null) expect(told, all).toContain(`Address: ${address}`);
    expect(told.match(/refused/gi), all).toHaveLength(2);
    expect(told, all).not.toContain('TROUBLE');
    expect(run.code).toBe(0);
  });

  test(`two guests on a bridge reach each other and nothing else, on ${engine}`, async (context) => {
    if (unusable !== null) return context.skip(unusable);
    const overrides = [`engine="${engine}"`, `vif=["bridge=test-${engine}"]`];
    const one = runGuest({
      script: `${LINK}; ip address add 192.168.77.1/24 dev eth0; ip link set eth0 up
ip route add default via 192.168.77.254
echo BEGIN; head -c 4000000 /dev/zero >/tmp/z; httpd -p 80 -h /tmp; mkfifo /tmp/p; sleep 1000 >/tmp/p & nc -l -p 5000 </tmp/p >/tmp/g; cat /tmp/g
ping -c 1 -W 1 10.0.2.2 | grep received; echo END`,
      overrides,
    });
    const two = runGuest({
      script: `${LINK}; ip address add 192.168.77.2/24 dev eth0; ip link set eth0 up
i=0; until ping -c 1 -W 1 192.168.77.1 >/dev/null || [ $i = 60 ]; do i=$((i+1)); done
echo BEGIN; ping -c 2 192.168.77.1 | grep received
i=0; until wget -q -O /tmp/z http://192.168.77.1/z || [ $i = 60 ]; do usleep 500000; i=$((i+1)); done; sha1sum </tmp/z
i=0; until echo hello from two | nc 192.168.77.1 5000 || [ $i = 60 ]; do usleep 500000; i=$((i+1)); done; echo END`,
      overrides,
    });
    const [a, b] = await Promise.all([one, two]);
    const all = [a, b].map((run) => `${run.console}\n${run.log}`).join('\n');
    expect(b.console, all).toContain('2 packets received');
    expect(b.console, all).toContain(sha1(new Uint8Array(4_000_000)));
    expect(a.console, all).toContain('hello from two');
    expect(a.console, all).toContain('0 packets received');
    expect([a.code, b.code]).toEqual([0, 0]);
  });

  test(`macfilter=1: a guest that takes another address is not heard, on ${engine}`, async (context) => {
    if (unusable !== null) return context.skip(unusable);
    const bridge = `bridge=filter-${engine}`;
    const up = (host: number): string => `${LINK}; ip address add 192.168.78.${host}/24 dev eth0; ip link set eth0 up`;
    const forge = (mac: string): string =>
      `ip link set eth0 down; ip link set eth0 address ${mac}; ip link set eth0 up; ip address show eth0 | grep -c ${mac}
ping -c 3 -W 1 192.168.78.1 | grep received`;
    const one = runGuest({
      script: `${up(1)}; mkfifo /tmp/p; sleep 1000 >/tmp/p & nc -l -p 5000 </tmp/p >/dev/null; echo BEGIN; cat /proc/net/arp; echo END`,
      overrides: [`engine="${engine}"`, `vif=["${bridge}"]`],
    });
    const two = runGuest({
      script: `${up(2)}; i=0; until ping -c 1 -W 1 192.168.78.1 >/dev/null || [ $i = 60 ]; do i=$((i+1)); done
echo BEGIN; ${forge('00:16:3e:de:ad:01')}; echo BACK; ${forge('00:16:3e:00:01:02')}
echo bye | nc 192.168.78.1 5000; echo END`,
      overrides: [`engine="${engine}"`, `vif=["${bridge},mac=00:16:3e:00:01:02,macfilter=1"]`],
    });
    const [a, b] = await Promise.all([one, two]);
    const all = [a, b].map((run) => `${run.console}\n${run.log}`).join('\n');
    expect(/BEGIN\n([\s\S]*?)END/.exec(b.console)?.[1], all).toMatch(
      /^1\n3 packets transmitted, 0 packets received.*\nBACK\n1\n3 packets transmitted, [123] packets received/,
    );
    const table = /BEGIN\n([\s\S]*?)END/.exec(a.console)?.[1];
    expect(table, all).toContain('00:16:3e:00:01:02');
    expect(table, all).not.toContain('de:ad');
    expect([a.code, b.code]).toEqual([0, 0]);
  });
}

test('passt: the address of the host, IPv6 from a router, megabytes down and up, a port that leads into the guest', async (context) => {
  const whyNot = await openPasst([]).then(
    (opened) => opened.close(),
    (error: Error) => error.message,
  );
  if (whyNot !== undefined) return context.skip(whyNot);
  const { engine } = ENGINES.find(({ unusable }) => unusable === null) ?? ENGINES[1];
  const free = createServer();
  await new Promise<void>((resolve) => free.listen(0, '127.0.0.1', resolve));
  const forwarded = (free.address() as AddressInfo).port;
  await new Promise((resolve) => free.close(resolve));
  let heard = '';
  // passt takes a call before the guest has, and hangs up when nobody listens there.
  const call = (): void => {
    const socket = connect(forwarded, '127.0.0.1', () => void socket.write('hello\n'));
    socket.on('error', () => {});
    socket.on('data', (text) => {
      heard += text;
    });
    socket.on('close', () => {
      if (!hasEnded && heard === '') setTimeout(call, 300);
    });
  };
  let hasEnded = false;
  call();
  const run = await runGuest({
    // The router's address is the host's loopback.
    script: `${LEASE}
echo BEGIN; router=$(ip route | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p')
url=http://$router:${port}; wget -q -O /tmp/f $url/4 && sha1sum </tmp/f
base64 -w 0 </tmp/f >/tmp/g; wget -q -O - --post-file /tmp/g $url/up
echo hello from the guest | nc -l -p 22
ip address show eth0 | grep inet
dmesg | grep -iE 'oops|BUG:|Call Trace|xen_netfront.*(error|invalid)' && echo TROUBLE
echo END`,
    overrides: [`engine="${engine}"`, `vif=["bridge=passt,forward=tcp:127.0.0.1:${forwarded}-:22"]`],
  });
  hasEnded = true;
  const told = run.console.slice(run.console.indexOf('BEGIN'), run.console.indexOf('END'));
  const all = `${run.console}\n${run.log}`;
  const mine = Object.values(networkInterfaces()).flatMap((addresses) => addresses ?? []);
  const [, address] = /inet ([\d.]+)/.exec(told) ?? [];
  expect(
    mine.map((one) => one.address),
    all,
  ).toContain(address);
  expect(told, all).toContain(sha1(data.subarray(0, 4 << 20)));
  expect(told, all).toContain('thanks');
  expect(uploads).toContain(sha1(Buffer.from(data.subarray(0, 4 << 20).toString('base64'))));
  expect(heard, all).toBe('hello from the guest\n');
  // Where the host has a router for it. Source: Linux's net/ipv6/route.c, rt6_info_route.
  if (/^0{32} 00 .*(?<! lo)$/m.test(readFileSync('/proc/net/ipv6_route', 'latin1')))
    expect(told, all).toMatch(/inet6 .*scope global/);
  expect(told, all).not.toContain('TROUBLE');
  expect(run.code).toBe(0);
});
