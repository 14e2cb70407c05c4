/**
 * A VNC server for one domain's screen, keyboard and pointer: listens on a TCP port, and on another one for WebSockets where that is
 * wanted, and has a session for each viewer.
 */

import { once } from 'node:events';
import { createServer, type Server } from 'node:net';
import type { Duplex } from 'node:stream';
import type { FramebufferDevice } from '../../backends/framebuffer.ts';
import type { KeyboardDevice } from '../../backends/keyboard.ts';
import { FIRST_VNC_PORT, VNC_DISPLAY_MAX } from '../../toolstack/config/framebuffer.ts';
import { HostError } from '../host-error.ts';
import { HeldKeys } from './held-keys.ts';
import { keycodeOf } from './keysyms.ts';
import { RfbSession, type Screen } from './session.ts';
import { openWebDoor, type WebDoor } from './web-door.ts';

/** Source: QEMU's `-vnc :N,websocket=on`: port 5700 + N. */
const FIRST_WEB_PORT = 5700;
const DISPLAYS = 100;
const VIEWERS_MAX = 8;

export interface RfbServerOptions {
  readonly framebuffer: Screen & Pick<FramebufferDevice, 'viewer'>;
  readonly keyboard: Pick<KeyboardDevice, 'key' | 'pointer'>;
  readonly name: string;
  readonly listen: string;
  readonly display: number;
  /** Take the next display that is free. */
  readonly findUnused: boolean;
  readonly password: string | null;
  readonly websocket: boolean;
}

export class RfbServer {
  readonly #options: RfbServerOptions;
  readonly #server: Server;
  readonly #sessions = new Map<Duplex, RfbSession>();
  #door: WebDoor | null = null;
  #display = 0;

  /** @throws HostError when no port can be had */
  static async open(options: RfbServerOptions): Promise<RfbServer> {
    const server = new RfbServer(options);
    const last = Math.min(VNC_DISPLAY_MAX, options.findUnused ? options.display + DISPLAYS : options.display);
    for (let display = options.display; ; display++) {
      const code = await server.#listen(display);
      if (code === null) return server;
      if (code === 'EADDRINUSE' && display < last) continue;
      server.close();
      const tried = last > options.display && code === 'EADDRINUSE' ? `${options.display} to ${last}` : String(display);
      throw new HostError(`VNC display ${options.listen}:${tried}: ${code}`);
    }
  }

  private constructor(options: RfbServerOptions) {
    this.#options = options;
    this.#server = createServer((socket) => {
      socket.setNoDelay(true);
      this.#accept(socket);
    });
    // A connection that cannot be had is somebody else's trouble.
    this.#server.on('error', () => {});
    options.framebuffer.viewer = {
      onDamage: (x, y, width, height) => {
        for (const session of this.#sessions.values()) session.damage(x, y, width, height);
      },
      onResize: () => {
        for (const session of this.#sessions.values()) session.resize();
      },
    };
  }

  get port(): number {
    return FIRST_VNC_PORT + this.#display;
  }

  /** Null where there is none. */
  get webPort(): number | null {
    return this.#door === null ? null : FIRST_WEB_PORT + this.#display;
  }

  close(): void {
    this.#options.framebuffer.viewer = null;
    for (const stream of this.#sessions.keys()) stream.destroy();
    this.#server.close();
    this.#door?.close();
  }

  /** Takes the ports of a display. Null, or what the system says. */
  async #listen(display: number): Promise<string | null> {
    const { listen, password, websocket } = this.#options;
    this.#display = display;
    const code = await new Promise<string | null>((resolve) => {
      const failed = (error: NodeJS.ErrnoException): void => resolve(error.code ?? error.message);
      this.#server.once('error', failed);
      this.#server.listen(FIRST_VNC_PORT + display, listen, () => {
        this.#server.removeListener('error', failed);
        resolve(null);
      });
    });
    if (code !== null || !websocket) return code;
    const accept = (stream: Duplex): void => this.#accept(stream);
    const hasPassword = password !== null;
    const door = await openWebDoor({ listen, port: FIRST_WEB_PORT + display, hasPassword, accept });
    if (typeof door !== 'string') {
      this.#door = door;
      return null;
    }
    for (const stream of this.#sessions.keys()) stream.destroy();
    await once(this.#server.close(), 'close');
    return door;
  }

  #accept(stream: Duplex): void {
    stream.on('error', () => stream.destroy());
    if (this.#sessions.size >= VIEWERS_MAX) {
      stream.destroy();
      return;
    }
    const { framebuffer, keyboard, name, password } = this.#options;
    const held = new HeldKeys(keyboard);
    const session = new RfbSession({
      screen: framebuffer,
      name,
      password,
      send: (bytes) => stream.write(bytes),
      end: () => stream.end(),
      onKey: (keysym, pressed) => {
        const keycode = keycodeOf(keysym);
        if (keycode !== null) held.key(keycode, pressed);
      },
      onPointer: (x, y, buttons) => held.point(x, y, buttons),
      onExclusive: () => {
        for (const other of this.#sessions.keys()) if (other !== stream) other.destroy();
      },
    });
    this.#sessions.set(stream, session);
    stream.on('data', (bytes: Uint8Array) => session.receive(bytes));
    stream.on('drain', () => session.drained());
    stream.on('close', () => {
      this.#sessions.delete(stream);
      held.release();
    });
  }
}
