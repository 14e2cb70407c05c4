import { mkdtempSync, openSync, readSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, expect, test } from 'vitest';
import { openChannelEnd } from './channel-end.ts';
import { hostCalls } from './libc.ts';

const folder = mkdtempSync(join(tmpdir(), 'domus-channel-'));
afterAll(() => rmSync(folder, { recursive: true }));

const channel = (path: string) =>
  ({ devid: 1, name: 'agent', backendDomain: null, connection: { kind: 'socket', path } }) as const;

async function until(isSo: () => boolean): Promise<void> {
  for (let turn = 0; turn < 500 && !isSo(); turn++) await sleep(4);
  expect(isSo()).toBe(true);
}

test('a socket serves one program after the other', async () => {
  const path = join(folder, 'one');
  const { end, tty } = await openChannelEnd(channel(path));
  expect(tty).toBe('');
  let got = '';
  end.attach({ input: (bytes) => (got += new TextDecoder().decode(bytes)), onRoom: () => {} });
  end.write(Buffer.from('nobody hears this'));

  const [first, second] = [connect(path), connect(path)];
  let heard = '';
  first.on('data', (bytes) => (heard += bytes));
  first.write('one ');
  await until(() => got === 'one ');
  second.write('two');
  end.write(Buffer.from('hello'));
  await until(() => heard === 'hello');
  await sleep(20);
  expect(got).toBe('one ');
  first.destroy();
  await until(() => got === 'one two');

  second.resume();
  const closed = new Promise((resolve) => second.once('close', resolve));
  end.close();
  await closed;
  expect(() => openSync(path, 'r')).toThrow('ENOENT');
});

test('what somebody does not read waits', async () => {
  const path = join(folder, 'slow');
  const { end } = await openChannelEnd(channel(path));
  let rooms = 0;
  end.attach({ input: () => {}, onRoom: () => rooms++ });
  const slow = connect(path).pause();
  await new Promise((resolve) => slow.once('connect', resolve));
  await sleep(20);
  const chunk = Buffer.alloc(32 << 10);
  let written = 0;
  while (end.hasRoom() && written < 1 << 28) {
    end.write(chunk);
    written += chunk.length;
    await sleep(0);
  }
  expect(written).toBeLessThan(1 << 28);
  slow.resume();
  await until(() => rooms > 0 && end.hasRoom());
  slow.destroy();
  end.close();
});

test('a file that is no socket is left alone', async () => {
  const path = join(folder, 'file');
  writeFileSync(path, 'precious');
  await expect(openChannelEnd(channel(path))).rejects.toThrow('there is something else');
});

test('a pseudo-terminal passes bytes as they are', async (context) => {
  if (hostCalls() === null) context.skip('no koffi, or not Linux');
  const { end, tty } = await openChannelEnd({ ...channel(''), connection: { kind: 'pty' } });
  let got = '';
  end.attach({ input: (bytes) => (got += new TextDecoder('latin1').decode(bytes)), onRoom: () => {} });
  const program = openSync(tty, 'r+');
  writeSync(program, 'a\r\n\x03\x04b');
  await until(() => got === 'a\r\n\x03\x04b');
  end.write(Buffer.from('c\n\x1ad'));
  const bytes = Buffer.alloc(16);
  expect(bytes.toString('latin1', 0, readSync(program, bytes))).toBe('c\n\x1ad');
  end.close();
});
