/**
 * For linux.test.ts: the NAT with Linux's own TCP as the guest. Run by `unshare -Urn`: this network namespace is the host, with
 * the NAT behind one end of a TAP; the other end goes to a namespace of its own, which is the guest. Prints one JSON object.
 */

import { execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { createSocket } from 'node:dgram';
import { connect, createServer } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { Frame, FramePort } from '../frame.ts';
import { Nat, natAddresses } from '../nat/nat.ts';
import { createNodeNetwork } from './node-network.ts';
import { TapPort } from './tap-port.ts';

/** By IPv6, Linux makes itself an address of what the NAT tells it. */
const isIpv6 = process.argv.at(-1) === 'ipv6';
const GATEWAY = isIpv6 ? 'fd00:a:0:2::2' : '10.0.2.2';
const LOOPBACK = isIpv6 ? '::1' : '127.0.0.1';
/** Of what is sent each way. */
const SIZE = Number(process.argv.at(-2));
const pattern = Buffer.alloc(SIZE);
for (let i = 0; i < SIZE; i++) pattern[i] = i * 7 + (i >> 8) * 13;
const digest = (bytes: Uint8Array): string => createHash('sha1').update(bytes).digest('hex');

/** Reads a connection to its end. */
function drain(socket: import('node:net').Socket): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const parts: Buffer[] = [];
    socket.on('data', (bytes) => parts.push(bytes));
    socket.on('end', () => resolve(Buffer.concat(parts)));
    socket.on('error', reject);
  });
}

async function guest(): Promise<void> {
  const out: Record<string, unknown> = {};
  const down = connect({ port: 9000, host: GATEWAY });
  out['down'] = digest(await drain(down));
  const up = connect({ port: 9001, host: GATEWAY, allowHalfOpen: true });
  up.end(pattern);
  out['up'] = (await drain(up)).toString();
  out['refused'] = await new Promise((resolve) =>
    connect({ port: 9002, host: GATEWAY }).on('error', (error: NodeJS.ErrnoException) => resolve(error.code)),
  );
  const udp = createSocket(isIpv6 ? 'udp6' : 'udp4');
  const echoed: number[] = [];
  for (const length of [1, 1472, 1473, 30_000]) {
    const bytes = pattern.subarray(0, length);
    for (let attempt = 0; attempt < 10; attempt++) {
      const answer = new Promise<Buffer | null>((resolve) => {
        udp.once('message', resolve);
        setTimeout(() => resolve(null), 300);
      });
      udp.send(bytes, 9003, GATEWAY);
      const got = await answer;
      udp.removeAllListeners('message');
      if (got?.equals(bytes)) {
        echoed.push(length);
        break;
      }
    }
  }
  udp.close();
  out['udp'] = echoed;
  // Somebody outside comes in through a forward.
  const server = createServer({ allowHalfOpen: true }, async (socket) => {
    const bytes = await drain(socket);
    socket.end(digest(bytes));
    server.close();
  });
  server.listen(2222, () => process.stdout.write(`${JSON.stringify(out)}\n`));
}

/** Resolves when the guest has an address of the NAT's network and has made sure that it is nobody else's. */
async function untilAddress(pid: string): Promise<void> {
  const words = ['-t', pid, '-n', 'ip', '-6', '-o', 'address', 'show', 'dev', 'tap0', '-tentative'];
  for (let turn = 0; turn < 100; turn++) {
    if (execFileSync('nsenter', words, { encoding: 'utf8' }).includes('fd00:a:0:2:')) return;
    await sleep(100);
  }
  throw new Error('no address of IPv6');
}

async function host(lossPercent: number, gso: boolean): Promise<void> {
  const ip = (...words: string[]): void => void execFileSync('ip', words);
  ip('link', 'set', 'lo', 'up');
  const holder = spawn('unshare', ['-n', 'sleep', '300'], { stdio: 'ignore' });
  await sleep(200);
  const pid = String(holder.pid);
  const tap = new TapPort('tap0');
  const nat = new Nat({
    host: createNodeNetwork(),
    addresses: natAddresses(0x0a00020f),
    guestMac: Uint8Array.of(0, 0x16, 0x3e, 1, 2, 3),
    loopback: true,
    gso: () => gso,
    forwards: [{ protocol: 'tcp', address: '127.0.0.1', port: 8022, guestPort: 2222 }],
    log: (line) => process.stderr.write(`${line}\n`),
  });
  let count = 0;
  let dropped = 0;
  const lossy = (port: FramePort): FramePort => ({
    send(frame: Frame) {
      // Evenly, and so that the first frames get through.
      if (lossPercent > 0 && ++count % Math.round(100 / lossPercent) === 0) {
        dropped++;
        return true;
      }
      return port.send(frame);
    },
    flush: () => port.flush(),
    room: () => port.room(),
  });
  nat.connect(lossy(tap));
  if ((await nat.openForwards()).length > 0) throw new Error('no forward');
  tap.connect(lossy(nat));
  ip('link', 'set', 'tap0', 'netns', pid);
  const inside = ['-t', pid, '-n', 'ip'];
  for (const words of [
    ['link', 'set', 'lo', 'up'],
    ['link', 'set', 'tap0', 'up'],
    ['address', 'add', '10.0.2.15/24', 'dev', 'tap0'],
    ['route', 'add', 'default', 'via', '10.0.2.2'],
  ])
    execFileSync('nsenter', [...inside, ...words]);

  if (isIpv6) await untilAddress(pid);
  const bytes = pattern;
  createServer((socket) => void socket.on('error', () => {}).end(bytes)).listen(9000, LOOPBACK);
  createServer({ allowHalfOpen: true }, async (socket) => void socket.end(digest(await drain(socket)))).listen(
    9001,
    LOOPBACK,
  );
  const echo = createSocket(isIpv6 ? 'udp6' : 'udp4');
  echo.on('message', (message, from) => echo.send(message, from.port, from.address));
  echo.bind(9003, LOOPBACK);

  const child = spawn(
    'nsenter',
    [
      '-t',
      pid,
      '-n',
      process.execPath,
      fileURLToPath(import.meta.url),
      'guest',
      String(SIZE),
      isIpv6 ? 'ipv6' : 'ipv4',
    ],
    {
      stdio: ['ignore', 'pipe', 'inherit'],
    },
  );
  let told = '';
  for await (const text of child.stdout.setEncoding('utf8')) {
    told += text;
    if (told.includes('\n')) break;
  }
  const into = connect({ port: 8022, host: '127.0.0.1', allowHalfOpen: true });
  into.end(bytes);
  const forwarded = (await drain(into)).toString();
  process.stdout.write(JSON.stringify({ ...JSON.parse(told), forwarded, expected: digest(bytes), dropped }));
  holder.kill('SIGKILL');
  child.kill();
  process.exit(0);
}

if (process.argv[2] === 'guest') await guest();
else await host(Number(process.argv[2]), process.argv[3] === 'gso');
