/** Debian's kernel with a virtual framebuffer: what it draws is seen by a VNC viewer, and what the viewer types gets to it. */

import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, expect, test } from 'vitest';
import { stopDaemon } from '../../src/host/domusd.ts';
import { vncResponse } from '../../src/host/rfb/vnc-auth.ts';
import { openXenstored } from '../../src/host/xenstored.ts';
import { buildGuest } from '../../src/toolstack/guest-image/build.ts';
import { XenstoreClient } from '../../src/xenstore/client.ts';
import { ENGINES, whyUnusable } from '../guests/engines.ts';
import { endDomains } from './domains.ts';

const XL = fileURLToPath(new URL('../../src/cli/xl/main.ts', import.meta.url));
const LIMIT_MS = 120_000;
const folder = mkdtempSync(join(tmpdir(), 'domus-screen-'));
afterAll(async () => {
  await stopDaemon(folder);
  rmSync(folder, { recursive: true });
});

/** A stripe of red in the framebuffer itself, then the keys that were typed on the screen's console. */
const SCRIPT = `
cat /sys/class/graphics/fb0/name
cat /sys/class/graphics/fb0/virtual_size
echo 0 > /sys/class/vtconsole/vtcon1/bind
i=0; while [ $i -lt 800 ]; do printf '\\000\\000\\377\\000'; i=$((i+1)); done > /tmp/line
for y in 100 101 102 103; do dd if=/tmp/line of=/dev/fb0 bs=3200 seek=$y conv=notrunc 2>/dev/null; done
echo DRAWN
read -r typed < /dev/tty1
echo "typed: $typed"
`;

/** Reads a socket by counts. */
class Reader {
  #received = Buffer.alloc(0);
  #wake: () => void = () => {};

  constructor(socket: Socket) {
    socket.on('data', (bytes) => {
      this.#received = Buffer.concat([this.#received, bytes]);
      this.#wake();
    });
  }

  async take(count: number): Promise<Buffer> {
    const endMs = performance.now() + LIMIT_MS;
    while (this.#received.length < count) {
      if (performance.now() > endMs) throw new Error(`${count} bytes did not come, but ${this.#received.length}`);
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
        setTimeout(resolve, 200);
      });
    }
    const taken = this.#received.subarray(0, count);
    this.#received = this.#received.subarray(count);
    return taken;
  }
}

/** A viewer of version 3.8 with a password, that asks for raw pixels. */
class Viewer {
  readonly socket: Socket;
  readonly #reader: Reader;
  width = 0;
  height = 0;
  screen = new Uint32Array(0);

  constructor(port: number) {
    this.socket = connect(port, '127.0.0.1');
    this.#reader = new Reader(this.socket);
  }

  async open(password: string): Promise<boolean> {
    expect((await this.#reader.take(12)).toString()).toBe('RFB 003.008\n');
    this.socket.write('RFB 003.008\n');
    expect([...(await this.#reader.take(2))]).toEqual([1, 2]);
    this.socket.write(Uint8Array.of(2));
    this.socket.write(vncResponse(password, await this.#reader.take(16)));
    if ((await this.#reader.take(4)).readUInt32BE(0) !== 0) return false;
    this.socket.write(Uint8Array.of(1));
    const init = await this.#reader.take(24);
    [this.width, this.height] = [init.readUInt16BE(0), init.readUInt16BE(2)];
    this.screen = new Uint32Array(this.width * this.height);
    expect((await this.#reader.take(init.readUInt32BE(20))).toString()).toBe('Xen-domus');
    return true;
  }

  /** Asks for what has changed, and draws it. */
  async update(incremental: boolean): Promise<void> {
    const ask = Buffer.from([3, incremental ? 1 : 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    ask.writeUInt16BE(this.width, 6);
    ask.writeUInt16BE(this.height, 8);
    this.socket.write(ask);
    const count = (await this.#reader.take(4)).readUInt16BE(2);
    for (let i = 0; i < count; i++) {
      const head = await this.#reader.take(12);
      const [x, y, w, h] = [0, 2, 4, 6].map((at) => head.readUInt16BE(at));
      expect(head.readInt32BE(8)).toBe(0);
      const pixels = await this.#reader.take(w * h * 4);
      for (let line = 0; line < h; line++)
        for (let column = 0; column < w; column++)
          this.screen[(y + line) * this.width + x + column] = pixels.readUInt32LE((line * w + column) * 4);
    }
  }

  #key(keysym: number, pressed: boolean): void {
    const message = Buffer.from([4, pressed ? 1 : 0, 0, 0, 0, 0, 0, 0]);
    message.writeUInt32BE(keysym, 4);
    this.socket.write(message);
  }

  /** As viewers do: a capital is its letter while Shift is held. */
  type(text: string): void {
    for (const char of text) {
      const keysym = char === '\n' ? 0xff0d : char.charCodeAt(0);
      const shifted = /[A-Z!]/.test(char);
      if (shifted) this.#key(0xffe1, true);
      this.#key(keysym, true);
      this.#key(keysym, false);
      if (shifted) this.#key(0xffe1, false);
    }
  }
}

async function until(child: ChildProcess, shown: () => string, text: string): Promise<void> {
  const endMs = performance.now() + LIMIT_MS;
  while (!shown().includes(text)) {
    if (performance.now() > endMs || child.exitCode !== null)
      throw new Error(`${text} did not show:\n${shown().slice(-3000)}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

for (const engine of ENGINES)
  test(`the screen of a guest on ${engine} is seen by VNC, and typed at`, async (context) => {
    const unusable = whyUnusable(engine);
    if (unusable !== null) return context.skip(unusable);
    // The cloud kernel has no frontend for keyboards.
    const { config } = await buildGuest({ kernelPackage: 'linux-image-amd64' });
    const run = Buffer.from(SCRIPT).toString('base64');
    const words = [
      'create',
      '-c',
      config,
      `cmdline="console=tty0 console=hvc0 domus.run=${run}"`,
      `engine="${engine}"`,
      'vfb=["vnc=1,vncunused=1,vncdisplay=40,vncpasswd=secret"]',
    ];
    const child = spawn(process.execPath, [XL, ...words], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, DOMUS_STATE_DIR: folder },
    });
    const ended = new Promise((resolve) => child.on('close', resolve));
    let shown = '';
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding('utf8').on('data', (text: string) => {
        shown += text.replaceAll('\r', '');
      });
    try {
      await until(child, () => shown, 'DRAWN\n');
      expect(shown).toContain('xen\n800,600\n');
      const store = new XenstoreClient(await openXenstored(folder));
      const domid = Math.max(...(await store.directory('/local/domain'))!.map(Number));
      const port = Number(await store.read(`/local/domain/${domid}/console/vnc-port`));
      store.close();

      const stranger = new Viewer(port);
      expect(await stranger.open('guess')).toBe(false);
      stranger.socket.destroy();

      const viewer = new Viewer(port);
      expect(await viewer.open('secret')).toBe(true);
      expect([viewer.width, viewer.height]).toEqual([800, 600]);
      await viewer.update(false);
      const row = (y: number): Set<number> => new Set(viewer.screen.subarray(y * 800, (y + 1) * 800));
      for (const y of [100, 101, 102, 103]) expect(row(y)).toEqual(new Set([0xff0000]));
      expect(row(104).has(0xff0000)).toBe(false);

      viewer.type('Hello, World-42!\n');
      await until(child, () => shown, 'typed: Hello, World-42!\n');
      viewer.socket.destroy();
      expect(await ended).toBe(0);
    } finally {
      await endDomains(folder);
      await ended;
    }
  });
