/**
 * One viewer of a screen: the RFB protocol from the first byte on, over any stream.
 *
 * Everything from the viewer is hostile: messages have a size limit, and what makes no sense ends the session. What has changed is
 * kept as tiles of 64x64 pixels until the viewer asks; nothing is sent while the stream is full.
 *
 * Source: RFC 6143.
 */

import { randomBytes } from 'node:crypto';
import { ENCODING_DESKTOP_SIZE, ENCODING_HEXTILE, ENCODING_RAW, encodeHextile, encodeRaw } from './encodings.ts';
import {
  decodePixelFormat,
  encodePixelFormat,
  OWN_FORMAT,
  PIXEL_FORMAT_SIZE,
  type PixelFormat,
} from './pixel-format.ts';
import { CHALLENGE_SIZE, isRightResponse } from './vnc-auth.ts';

export interface Screen {
  readonly width: number;
  readonly height: number;
  readLine(x: number, y: number, count: number, into: Uint32Array, at: number): void;
}

export interface SessionOptions {
  readonly screen: Screen;
  readonly name: string;
  /** Null when nobody is asked for one. */
  readonly password: string | null;
  /** False: the stream is full; `drained` follows. */
  readonly send: (bytes: Uint8Array) => boolean;
  readonly end: () => void;
  readonly onKey: (keysym: number, pressed: boolean) => void;
  /** `buttons`: a bit each, from the left one on; 3 and 4 are the wheel. */
  readonly onPointer: (x: number, y: number, buttons: number) => void;
  /** The viewer wants to be alone. */
  readonly onExclusive: () => void;
}

const TILE = 64;
const ENCODINGS_MAX = 1024;
const CUT_TEXT_MAX = 1 << 20;
const SECURITY_NONE = 1;
const SECURITY_VNC = 2;

/** A step of the protocol: how many bytes it needs, and what it does with them; the next step. */
type Step = { readonly bytes: number; readonly take: (bytes: Buffer) => Step | null };

export class RfbSession {
  readonly #options: SessionOptions;
  #received = Buffer.alloc(0);
  #step: Step | null;
  #minor = 8;
  #format: PixelFormat = OWN_FORMAT;
  #hextile = false;
  #knowsResize = false;
  /** Bytes of a cut text that are passed over. */
  #skip = 0;
  #width = 0;
  #height = 0;
  #resized = false;
  /** A byte for each tile that has changed. */
  #dirty = new Uint8Array(0);
  #asked = false;
  #full = false;
  #open = false;

  constructor(options: SessionOptions) {
    this.#options = options;
    this.#step = { bytes: 12, take: (bytes) => this.#version(bytes.toString('latin1')) };
    options.send(Buffer.from('RFB 003.008\n'));
  }

  receive(bytes: Uint8Array): void {
    if (this.#step === null) return;
    this.#received = Buffer.concat([this.#received, bytes]);
    for (;;) {
      if (this.#skip > 0) {
        const passed = Math.min(this.#skip, this.#received.length);
        this.#skip -= passed;
        this.#received = this.#received.subarray(passed);
        if (this.#skip > 0) return;
      }
      const step: Step | null = this.#step;
      if (step === null || this.#received.length < step.bytes) return;
      const taken = this.#received.subarray(0, step.bytes);
      this.#received = this.#received.subarray(step.bytes);
      this.#step = step.take(taken);
      if (this.#step === null) {
        this.#options.end();
        return;
      }
    }
  }

  drained(): void {
    this.#full = false;
    this.#update();
  }

  damage(x: number, y: number, width: number, height: number): void {
    this.#mark(x, y, width, height);
    this.#update();
  }

  resize(): void {
    this.#resized = true;
    this.#update();
  }

  #version(text: string): Step | null {
    const match = /^RFB 003\.(\d{3})\n$/.exec(text);
    if (match === null) return null;
    // Versions that were never published are 3.3.
    const minor = Number(match[1]);
    this.#minor = minor >= 8 ? 8 : minor === 7 ? 7 : 3;
    const type = this.#options.password === null ? SECURITY_NONE : SECURITY_VNC;
    if (this.#minor === 3) {
      this.#options.send(Buffer.from([0, 0, 0, type]));
      return this.#authenticate(type);
    }
    this.#options.send(Buffer.from([1, type]));
    return { bytes: 1, take: ([chosen]) => (chosen === type ? this.#authenticate(type) : null) };
  }

  #authenticate(type: number): Step {
    const init: Step = { bytes: 1, take: ([shared]) => this.#init(shared !== 0) };
    if (type === SECURITY_NONE) {
      if (this.#minor === 8) this.#options.send(Buffer.alloc(4));
      return init;
    }
    const challenge = randomBytes(CHALLENGE_SIZE);
    this.#options.send(challenge);
    return {
      bytes: CHALLENGE_SIZE,
      take: (response) => {
        const right = isRightResponse(this.#options.password ?? '', challenge, response);
        this.#options.send(Buffer.from([0, 0, 0, right ? 0 : 1]));
        if (right) return init;
        const reason = Buffer.from('Authentication failed');
        if (this.#minor === 8) this.#options.send(Buffer.concat([Buffer.from([0, 0, 0, reason.length]), reason]));
        return null;
      },
    };
  }

  #init(shared: boolean): Step {
    if (!shared) this.#options.onExclusive();
    const { screen, name } = this.#options;
    this.#width = screen.width;
    this.#height = screen.height;
    const title = Buffer.from(name);
    const head = Buffer.alloc(8 + PIXEL_FORMAT_SIZE);
    head.writeUInt16BE(this.#width, 0);
    head.writeUInt16BE(this.#height, 2);
    head.set(encodePixelFormat(OWN_FORMAT), 4);
    head.writeUInt32BE(title.length, 4 + PIXEL_FORMAT_SIZE);
    this.#options.send(Buffer.concat([head, title]));
    this.#open = true;
    this.#forget();
    return this.#message();
  }

  #message(): Step {
    return { bytes: 1, take: ([type]) => this.#body(type) };
  }

  #body(type: number): Step | null {
    const next = this.#message();
    switch (type) {
      case 0:
        return {
          bytes: 3 + PIXEL_FORMAT_SIZE,
          take: (bytes) => {
            const format = decodePixelFormat(bytes.subarray(3));
            if (format === null) return null;
            this.#format = format;
            return next;
          },
        };
      case 2:
        return {
          bytes: 3,
          take: (head) => {
            const count = head.readUInt16BE(1);
            if (count > ENCODINGS_MAX) return null;
            return { bytes: count * 4, take: (bytes) => this.#setEncodings(bytes, count, next) };
          },
        };
      case 3:
        return { bytes: 9, take: (bytes) => this.#request(bytes, next) };
      case 4:
        return {
          bytes: 7,
          take: (bytes) => {
            this.#options.onKey(bytes.readUInt32BE(3), bytes[0] !== 0);
            return next;
          },
        };
      case 5:
        return {
          bytes: 5,
          take: (bytes) => {
            const x = Math.min(bytes.readUInt16BE(1), this.#width - 1);
            const y = Math.min(bytes.readUInt16BE(3), this.#height - 1);
            this.#options.onPointer(x, y, bytes[0]);
            return next;
          },
        };
      case 6:
        return {
          bytes: 7,
          take: (head) => {
            const length = head.readUInt32BE(3);
            if (length > CUT_TEXT_MAX) return null;
            // A guest without a clipboard has no use for it.
            this.#skip = length;
            return next;
          },
        };
      default:
        return null;
    }
  }

  #setEncodings(bytes: Buffer, count: number, next: Step): Step {
    const known = Array.from({ length: count }, (_, i) => bytes.readInt32BE(i * 4));
    this.#hextile = known.includes(ENCODING_HEXTILE);
    this.#knowsResize = known.includes(ENCODING_DESKTOP_SIZE);
    return next;
  }

  #request(bytes: Buffer, next: Step): Step {
    const incremental = bytes[0] !== 0;
    if (!incremental)
      this.#mark(bytes.readUInt16BE(1), bytes.readUInt16BE(3), bytes.readUInt16BE(5), bytes.readUInt16BE(7));
    this.#asked = true;
    this.#update();
    return next;
  }

  get #columns(): number {
    return Math.ceil(this.#width / TILE);
  }

  /** All of the screen is new. */
  #forget(): void {
    this.#dirty = new Uint8Array(this.#columns * Math.ceil(this.#height / TILE)).fill(1);
  }

  #mark(x: number, y: number, width: number, height: number): void {
    const columns = this.#columns;
    const right = Math.min(x + width, this.#width);
    const bottom = Math.min(y + height, this.#height);
    for (let row = Math.floor(y / TILE); row * TILE < bottom; row++)
      for (let column = Math.floor(x / TILE); column * TILE < right; column++) this.#dirty[row * columns + column] = 1;
  }

  #update(): void {
    if (!this.#open || !this.#asked || this.#full) return;
    if (this.#resized) {
      this.#changeSize();
      return;
    }
    const rectangles: Buffer[] = [];
    const columns = this.#columns;
    for (let row = 0; row * TILE < this.#height; row++)
      for (let column = 0; column < columns; column++) {
        if (this.#dirty[row * columns + column] === 0) continue;
        let end = column;
        while (end < columns && this.#dirty[row * columns + end] !== 0) this.#dirty[row * columns + end++] = 0;
        const right = Math.min(end * TILE, this.#width);
        const bottom = Math.min((row + 1) * TILE, this.#height);
        rectangles.push(this.#rectangle(column * TILE, row * TILE, right - column * TILE, bottom - row * TILE));
        column = end;
      }
    if (rectangles.length === 0) return;
    this.#asked = false;
    this.#send(rectangles);
  }

  #send(rectangles: readonly Buffer[]): void {
    const head = Buffer.alloc(4);
    head.writeUInt16BE(rectangles.length, 2);
    this.#full = !this.#options.send(Buffer.concat([head, ...rectangles]));
  }

  /** A viewer that knows nothing of other sizes keeps the old one, and sees what fits. */
  #changeSize(): void {
    const { width, height } = this.#options.screen;
    this.#resized = false;
    if (this.#knowsResize && (width !== this.#width || height !== this.#height)) {
      this.#width = width;
      this.#height = height;
      this.#asked = false;
      this.#send([rectangleHead(0, 0, width, height, ENCODING_DESKTOP_SIZE)]);
    }
    this.#forget();
    this.#update();
  }

  #rectangle(x: number, y: number, width: number, height: number): Buffer {
    const { screen } = this.#options;
    const pixels = new Uint32Array(width * height);
    const visible = Math.max(0, Math.min(width, screen.width - x));
    for (let line = 0; line < height && y + line < screen.height; line++)
      screen.readLine(x, y + line, visible, pixels, line * width);
    const encoding = this.#hextile ? ENCODING_HEXTILE : ENCODING_RAW;
    const body = this.#hextile
      ? encodeHextile(pixels, width, height, this.#format)
      : encodeRaw(pixels, pixels.length, this.#format);
    return Buffer.concat([rectangleHead(x, y, width, height, encoding), body]);
  }
}

function rectangleHead(x: number, y: number, width: number, height: number, encoding: number): Buffer {
  const head = Buffer.alloc(12);
  head.writeUInt16BE(x, 0);
  head.writeUInt16BE(y, 2);
  head.writeUInt16BE(width, 4);
  head.writeUInt16BE(height, 6);
  head.writeInt32BE(encoding, 8);
  return head;
}
