/** A VNC server for one domain's screen, keyboard and pointer: listens on a TCP port, and has a session for each viewer. */

import { createServer, type Server, type Socket } from 'node:net';
import type { FramebufferDevice } from '../../backends/framebuffer.ts';
import type { KeyboardDevice } from '../../backends/keyboard.ts';
import { HostError } from '../host-error.ts';
import { keycodeOf } from './keysyms.ts';
import { RfbSession } from './session.ts';

/** Source: RFC 6143: display N is port 5900 + N. */
const FIRST_PORT = 5900;
const DISPLAYS = 100;
const VIEWERS_MAX = 8;
const BTN_LEFT = 0x110;
const BTN_RIGHT = 0x111;
const BTN_MIDDLE = 0x112;
/** In the order of VNC's bits. */
const BUTTONS = [BTN_LEFT, BTN_MIDDLE, BTN_RIGHT];

export interface RfbServerOptions {
  readonly framebuffer: FramebufferDevice;
  readonly keyboard: KeyboardDevice;
  readonly name: string;
  readonly listen: string;
  readonly display: number;
  /** Take the next display that is free. */
  readonly findUnused: boolean;
  readonly password: string | null;
}

export class RfbServer {
  readonly #options: RfbServerOptions;
  readonly #server: Server;
  readonly #sessions = new Map<Socket, RfbSession>();
  #buttons = 0;

  /** @throws HostError when no port can be had */
  static async open(options: RfbServerOptions): Promise<RfbServer> {
    const server = new RfbServer(options);
    const last = options.findUnused ? options.display + DISPLAYS : options.display;
    for (let display = options.display; ; display++) {
      const code = await server.#listen(FIRST_PORT + display);
      if (code === null) return server;
      if (code !== 'EADDRINUSE' || display >= last)
        throw new HostError(`VNC display ${options.listen}:${display}: ${code}`);
    }
  }

  private constructor(options: RfbServerOptions) {
    this.#options = options;
    this.#server = createServer((socket) => this.#accept(socket));
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
    const address = this.#server.address();
    return typeof address === 'object' && address !== null ? address.port : 0;
  }

  close(): void {
    this.#options.framebuffer.viewer = null;
    for (const socket of this.#sessions.keys()) socket.destroy();
    this.#server.close();
  }

  /** Null, or what the system says. */
  #listen(port: number): Promise<string | null> {
    return new Promise((resolve) => {
      const failed = (error: NodeJS.ErrnoException): void => resolve(error.code ?? error.message);
      this.#server.once('error', failed);
      this.#server.listen(port, this.#options.listen, () => {
        this.#server.removeListener('error', failed);
        resolve(null);
      });
    });
  }

  #accept(socket: Socket): void {
    socket.on('error', () => socket.destroy());
    if (this.#sessions.size >= VIEWERS_MAX) {
      socket.destroy();
      return;
    }
    socket.setNoDelay(true);
    const { framebuffer, keyboard, name, password } = this.#options;
    const session = new RfbSession({
      screen: framebuffer,
      name,
      password,
      send: (bytes) => socket.write(bytes),
      end: () => socket.end(),
      onKey: (keysym, pressed) => {
        const keycode = keycodeOf(keysym);
        if (keycode !== null) keyboard.key(keycode, pressed);
      },
      onPointer: (x, y, buttons) => this.#point(x, y, buttons),
      onExclusive: () => {
        for (const other of this.#sessions.keys()) if (other !== socket) other.destroy();
      },
    });
    this.#sessions.set(socket, session);
    socket.on('data', (bytes) => session.receive(bytes));
    socket.on('drain', () => session.drained());
    socket.on('close', () => this.#sessions.delete(socket));
  }

  #point(x: number, y: number, buttons: number): void {
    const { keyboard } = this.#options;
    const pressed = buttons & ~this.#buttons;
    keyboard.pointer(x, y, (pressed & 8 ? 1 : 0) - (pressed & 16 ? 1 : 0));
    for (const [bit, button] of BUTTONS.entries())
      if (((buttons ^ this.#buttons) & (1 << bit)) !== 0) keyboard.key(button, (buttons & (1 << bit)) !== 0);
    this.#buttons = buttons;
  }
}
