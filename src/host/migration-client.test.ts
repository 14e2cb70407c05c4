/** `xl migrate` between a domain's process and a way that takes nothing. */

import { mkdtempSync, rmSync } from 'node:fs';
import type { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { listenLocally } from './local-socket.ts';
import { migrateDomain } from './migration-client.ts';
import {
  FRAME_BYTES,
  FRAME_GO,
  FRAME_HANG_UP,
  FRAME_LINE,
  FRAME_RESULT,
  frame,
  textFrame,
} from './migration-frames.ts';
import { GO, REPORT } from './migration-protocol.ts';
import { migrationPath } from './state-dir.ts';

const DOMID = 7;
let root = '';
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'domus-client-'));
});
afterEach(() => rmSync(root, { recursive: true }));

test('a way that takes nothing is given up, and what the domain says behind all that it was sent is heard', async () => {
  let domain: Socket | null = null;
  const server = await listenLocally(migrationPath(root, DOMID), (socket) => {
    domain = socket;
    socket.on('error', () => {});
    socket.resume();
    socket.write(frame(FRAME_BYTES, new Uint8Array(8 << 20)));
    socket.write(textFrame(FRAME_LINE, 'Migration failed, resuming at sender.'));
    socket.write(frame(FRAME_HANG_UP, new Uint8Array(0)));
    socket.write(frame(FRAME_RESULT, Uint8Array.of(1)));
  });
  const lines: string[] = [];
  const request = {
    domid: DOMID,
    config: null,
    debug: false,
    tell: (line: string) => lines.push(line),
    detail: () => {},
  };
  // It reads nothing, and ends when nobody listens to it any more.
  expect(await migrateDomain({ ...request, way: 'exec sleep 4' }, root, 200)).toBe(1);
  expect(lines).toEqual([
    'Migration failed, resuming at sender.',
    expect.stringMatching(
      /^migration child \[\d+\] not exiting, no longer waiting \(exit status will be unreported\)$/,
    ),
  ]);
  (domain as Socket | null)?.destroy();
  server.close();
});

const REPORTS = `IFS= read -r go; [ "$go" = '${GO}' ] || exit 1; echo '${REPORT}'; echo`;

test.each([
  [
    'had no permission',
    false,
    'cat',
    1,
    'error: Domain 7: it has ended here meanwhile; the target had no permission to start, and throws its copy away',
  ],
  [
    'runs the domain',
    true,
    `${REPORTS} 0`,
    0,
    'info: Domain 7: it has ended here meanwhile; the target reports successful startup',
  ],
  [
    'cannot run it',
    true,
    `${REPORTS} 3`,
    1,
    'error: Domain 7: it has ended here meanwhile, and the target could not start it (status code 3)',
  ],
  [
    'says nothing of it',
    true,
    'read go',
    1,
    'error: Domain 7: it has ended here meanwhile; the target had permission to start: look there',
  ],
])(
  'of a domain whose process dies, xl tells what is known of its target, which %s',
  async (_, saysGo, way, code, line) => {
    const server = await listenLocally(migrationPath(root, DOMID), (socket) => {
      socket.on('error', () => {});
      if (saysGo) socket.write(frame(FRAME_GO, new TextEncoder().encode(`${GO}\n`)));
      socket.end();
    });
    const lines: string[] = [];
    const tell = (said: string): void => void lines.push(said);
    const request = { domid: DOMID, config: null, debug: false, way, tell, detail: () => {} };
    expect(await migrateDomain(request, root)).toBe(code);
    expect(lines).toEqual([`libxl: ${line}`]);
    server.close();
  },
);
