import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { connectLocally, UnseenSockets } from './local-socket.ts';

const folder = mkdtempSync(join(tmpdir(), 'domus-socket-'));
afterEach(() => rmSync(folder, { recursive: true, force: true }));

test('a socket is found from when it appears until it is closed', async (context) => {
  if (process.platform === 'win32') return context.skip('pipes have no folder');
  const path = join(folder, 'control');
  const sockets = new UnseenSockets();
  let served = 0;
  const listener = await sockets.listen(path, (socket) => {
    served++;
    socket.destroy();
  });
  expect(await connectLocally(path)).toBe(null);
  sockets.appear();
  const socket = await connectLocally(path);
  await new Promise((resolve) => socket?.once('close', resolve).resume());
  expect(served).toBe(1);
  listener.close();
  expect(await connectLocally(path)).toBe(null);
  expect(readdirSync(folder)).toEqual([]);

  // One that never appears.
  const never = await new UnseenSockets().listen(path, () => {});
  expect(readdirSync(folder)).toEqual(['~ontrol']);
  never.close();
  expect(readdirSync(folder)).toEqual([]);
});
