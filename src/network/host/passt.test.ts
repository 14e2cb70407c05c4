/** With passt(1) itself, where it is installed, and with programs of that name that do not do what they should. */

import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import type { AddressInfo } from 'node:net';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, expect, onTestFinished, test } from 'vitest';
import { Frame, type FramePort } from '../frame.ts';
import { GUEST_MAC } from '../testing.ts';
import { openPasst } from './passt.ts';
import type { SocketPort } from './socket-port.ts';

const PATH = process.env['PATH'] ?? '';
/** A host without a network of its own has none that passt could show to guests. */
const whyNot = await openPasst([]).then(
  (port) => {
    port.close();
    return null;
  },
  (error: Error) => error.message,
);
afterEach(() => {
  process.env['PATH'] = PATH;
});

/** Linux's ids of the passt processes that this one has started. */
const children = (): number[] =>
  readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => {
      try {
        const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
        return stat.includes('(passt') && stat.slice(stat.lastIndexOf(')')).split(' ')[2] === String(process.pid);
      } catch {
        // It has just ended.
        return false;
      }
    });

async function until(isSo: () => boolean): Promise<void> {
  for (let i = 0; i < 500 && !isSo(); i++) await sleep(10);
  expect(isSo()).toBe(true);
}

/** Who has 192.0.2.77? passt answers for every address but the guest's. Source: RFC 826. */
const QUESTION = Uint8Array.from([
  ...[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, ...GUEST_MAC, 8, 6],
  ...[0, 1, 8, 0, 6, 4, 0, 1, ...GUEST_MAC, 192, 0, 2, 78, 0, 0, 0, 0, 0, 0, 192, 0, 2, 77],
]);

/** Asks until there is an answer. */
async function asksForAddress(port: SocketPort, answers: Uint8Array[]): Promise<void> {
  const before = answers.length;
  await until(() => {
    port.send(new Frame().set(QUESTION, QUESTION.length));
    port.flush();
    return answers.length > before;
  });
  const answer = answers.at(-1);
  expect(answer?.subarray(0, 6)).toEqual(GUEST_MAC);
  expect([...(answer?.subarray(12, 14) ?? [])]).toEqual([8, 6]);
  expect([...(answer?.subarray(28, 32) ?? [])]).toEqual([192, 0, 2, 77]);
}

function plug(port: SocketPort): Uint8Array[] {
  const answers: Uint8Array[] = [];
  const device: FramePort = {
    send: (frame) => {
      const bytes = new Uint8Array(frame.length);
      frame.copyTo(bytes, 0);
      // It announces routers, too.
      if (bytes[12] === 8 && bytes[13] === 6) answers.push(bytes);
      return true;
    },
    flush: () => {},
    room: () => {},
  };
  port.connect(device);
  return answers;
}

test('passt answers, is started again when it has ended, and ends with the port', async (context) => {
  if (whyNot !== null) return context.skip(whyNot);
  const port = await openPasst([]);
  onTestFinished(() => port.close());
  const answers = plug(port);
  await asksForAddress(port, answers);
  const [pid] = children();
  if (pid === undefined) throw new Error('no process of passt');
  process.kill(pid, 'SIGKILL');
  await until(() => !children().includes(pid));
  await asksForAddress(port, answers);
  port.close();
  await until(() => children().length === 0);
});

test('a port that nobody has plugged into anything ends passt when it is closed', async (context) => {
  if (whyNot !== null) return context.skip(whyNot);
  const port = await openPasst([]);
  expect(children()).toHaveLength(1);
  port.close();
  await until(() => children().length === 0);
});

test('a port of the host that is taken is refused, with what passt says', async (context) => {
  if (whyNot !== null) return context.skip(whyNot);
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  onTestFinished(() => void server.close());
  const { port } = server.address() as AddressInfo;
  const opened = openPasst([{ protocol: 'tcp', address: '127.0.0.1', port, guestPort: 22 }]);
  await expect(opened).rejects.toThrow(new RegExp(`bind.*${port}`));
});

test('without passt, or with one that ends, the reason is told', async (context) => {
  if (process.platform === 'win32') return context.skip('passt is a program of Linux');
  const folder = await mkdtemp(join(tmpdir(), 'domus-passt-test-'));
  onTestFinished(() => rm(folder, { recursive: true }));
  process.env['PATH'] = folder;
  await expect(openPasst([])).rejects.toThrow('passt is not installed');
  const program = `#!/bin/sh
echo "Couldn't get any nameserver address" >&2
echo "Failed to send 35 bytes to syslog" >&2
exit 1
`;
  writeFileSync(join(folder, 'passt'), program, { mode: 0o755 });
  await expect(openPasst([])).rejects.toThrow(/^Couldn't get any nameserver address$/);
});
