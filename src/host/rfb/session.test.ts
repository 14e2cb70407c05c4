import { expect, test } from 'vitest';
import { encodeHextile, encodeRaw } from './encodings.ts';
import { keycodeOf } from './keysyms.ts';
import { decodePixelFormat, encodePixelFormat, OWN_FORMAT, type PixelFormat } from './pixel-format.ts';
import { RfbSession } from './session.ts';
import { vncResponse } from './vnc-auth.ts';

/** Numbers that look random and are the same each time. */
function* noise(seed: number): Generator<number> {
  for (let state = seed; ; ) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    yield state >>> 8;
  }
}

/** Source: RFC 6143, 7.7.4, written from its text. */
function decodeHextile(bytes: Buffer, width: number, height: number): Uint32Array {
  const pixels = new Uint32Array(width * height);
  let at = 0;
  const pixel = (): number => {
    at += 4;
    return bytes.readUInt32LE(at - 4);
  };
  let background = 0;
  let foreground = 0;
  for (let top = 0; top < height; top += 16)
    for (let left = 0; left < width; left += 16) {
      const w = Math.min(16, width - left);
      const h = Math.min(16, height - top);
      const put = (x: number, y: number, value: number): void => {
        pixels[(top + y) * width + left + x] = value;
      };
      const mask = bytes[at++];
      if (mask & 1) {
        for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) put(x, y, pixel());
        continue;
      }
      if (mask & 2) background = pixel();
      if (mask & 4) foreground = pixel();
      for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) put(x, y, background);
      const count = mask & 8 ? bytes[at++] : 0;
      for (let i = 0; i < count; i++) {
        const value = mask & 16 ? pixel() : foreground;
        const [place, size] = [bytes[at++], bytes[at++]];
        for (let y = 0; y <= (size & 15); y++)
          for (let x = 0; x <= size >> 4; x++) put((place >> 4) + x, (place & 15) + y, value);
      }
    }
  expect(at).toBe(bytes.length);
  return pixels;
}

test('hextile is what it was made of, and shorter than raw for text', () => {
  const random = noise(1);
  for (const [width, height, colours] of [
    [64, 64, 1],
    [64, 64, 2],
    [61, 35, 2],
    [64, 64, 3],
    [16, 16, 1000],
    [1, 1, 1],
  ]) {
    const pixels = Uint32Array.from({ length: width * height }, () => (random.next().value as number) % colours);
    const bytes = encodeHextile(pixels, width, height, OWN_FORMAT);
    expect(decodeHextile(bytes, width, height)).toEqual(pixels);
    expect(bytes.length).toBeLessThanOrEqual(width * height * 4 + Math.ceil(width / 16) * Math.ceil(height / 16));
  }
  const text = Uint32Array.from({ length: 64 * 64 }, (_, i) => (i % 13 < 3 ? 0xffffff : 0));
  expect(encodeHextile(text, 64, 64, OWN_FORMAT).length).toBeLessThan(64 * 64);
});

test('pixels are what the viewer asked for', () => {
  const format = (bitsPerPixel: 8 | 16 | 32, bigEndian: boolean, maxima: number[], shifts: number[]): PixelFormat => {
    const [redMax, greenMax, blueMax] = maxima;
    const [redShift, greenShift, blueShift] = shifts;
    return { bitsPerPixel, bigEndian, redMax, greenMax, blueMax, redShift, greenShift, blueShift };
  };
  const pixel = Uint32Array.of(0xff8040);
  const bytes = (wanted: PixelFormat): number[] => [...encodeRaw(pixel, 1, wanted)];
  expect(bytes(OWN_FORMAT)).toEqual([0x40, 0x80, 0xff, 0]);
  expect(bytes(format(32, true, [255, 255, 255], [0, 8, 16]))).toEqual([0, 0x40, 0x80, 0xff]);
  expect(bytes(format(16, false, [31, 63, 31], [11, 5, 0]))).toEqual(
    [((31 << 3) & 0xe0) | 7, 0xf8 | 3].map((b) => b & 255),
  );
  expect(bytes(format(8, false, [7, 7, 3], [0, 3, 6]))).toEqual([7 | (3 << 3)]);
  expect(decodePixelFormat(encodePixelFormat(OWN_FORMAT))).toEqual(OWN_FORMAT);
  for (const [at, value] of [
    [0, 24],
    [3, 0],
    [10, 32],
  ]) {
    const spoilt = encodePixelFormat(OWN_FORMAT);
    spoilt[at] = value;
    expect(decodePixelFormat(spoilt)).toBeNull();
  }
});

test('the password is a DES key with its bits in reverse', () => {
  // Source: the key 133457799BBCDFF1 and its block, known from many descriptions of FIPS 46; parity bits do not matter.
  const challenge = Buffer.from('0123456789abcdef0123456789abcdef', 'hex');
  expect(vncResponse('H,j\x1eY={\x0f', challenge).toString('hex')).toBe('85e813540f0ab40585e813540f0ab405');
  expect(vncResponse('longer than eight', challenge)).toEqual(vncResponse('longer t', challenge));
});

test('keysyms are keys of a US keyboard', () => {
  // Source: Linux input-event-codes.h: KEY_A 30, KEY_Z 44, KEY_0 11, KEY_MINUS 12, KEY_F1 59, KEY_F10 68, KEY_F11 87.
  const expected: [number, number | null][] = [
    [0x61, 30],
    [0x41, 30],
    [0x7a, 44],
    [0x30, 11],
    [0x5f, 12],
    [0x2f, 53],
    [0x60, 41],
    [0x5c, 43],
    [0xffbe, 59],
    [0xffc7, 68],
    [0xffc8, 87],
    [0xff0d, 28],
    [0x20ac, null],
  ];
  for (const [keysym, code] of expected) expect(keycodeOf(keysym), keysym.toString(16)).toBe(code);
});

class Viewer {
  sent = Buffer.alloc(0);
  ended = false;
  full = false;
  readonly keys: [number, boolean][] = [];
  readonly places: number[][] = [];
  readonly screen = {
    width: 100,
    height: 70,
    readLine: (x: number, y: number, count: number, into: Uint32Array, at: number): void => {
      for (let i = 0; i < count; i++) into[at + i] = (y << 8) | (x + i);
    },
  };
  readonly session: RfbSession;

  constructor(password: string | null = null) {
    this.session = new RfbSession({
      screen: this.screen,
      name: 'x',
      password,
      send: (bytes) => {
        this.sent = Buffer.concat([this.sent, bytes]);
        return !this.full;
      },
      end: () => {
        this.ended = true;
      },
      onKey: (keysym, pressed) => this.keys.push([keysym, pressed]),
      onPointer: (...place) => this.places.push(place),
      onExclusive: () => {},
    });
  }

  /** What was sent since the last call. */
  take(): Buffer {
    const { sent } = this;
    this.sent = Buffer.alloc(0);
    return sent;
  }

  /** Byte by byte, as a network may bring it. */
  say(...bytes: number[]): Buffer {
    for (const byte of bytes) this.session.receive(Uint8Array.of(byte));
    return this.take();
  }

  open(): void {
    this.say(...Buffer.from('RFB 003.008\n'), 1, 1);
  }
}

const ASK_ALL = [3, 0, 0, 0, 0, 0, 0, 100, 0, 70];
const ASK_NEW = [3, 1, 0, 0, 0, 0, 0, 100, 0, 70];

test('versions 3.3, 3.7 and 3.8 are spoken', () => {
  for (const [version, answer] of [
    ['RFB 003.003\n', '00000001'],
    ['RFB 003.889\n', '0101'],
    ['RFB 003.007\n', '0101'],
  ]) {
    const viewer = new Viewer();
    expect(viewer.take().toString()).toBe('RFB 003.008\n');
    expect(viewer.say(...Buffer.from(version)).toString('hex')).toBe(answer);
    const init = viewer.say(...(answer.length === 8 ? [1] : [1, 1]));
    expect(init.subarray(-25, -21).toString('hex')).toBe('00640046');
  }
});

test('a viewer with a wrong password is turned away', () => {
  const viewer = new Viewer('secret');
  viewer.take();
  const challenge = viewer.say(...Buffer.from('RFB 003.008\n'), 2).subarray(2);
  expect(
    viewer
      .say(...vncResponse('wrong', challenge))
      .subarray(0, 4)
      .readUInt32BE(0),
  ).toBe(1);
  expect(viewer.ended).toBe(true);
});

test('all is sent when it is asked for, then what has changed, and nothing while the stream is full', () => {
  const viewer = new Viewer();
  viewer.open();
  const all = viewer.say(...ASK_ALL);
  // Two rows of tiles, each one rectangle.
  expect(all.readUInt16BE(2)).toBe(2);
  expect(all.length).toBe(4 + 2 * 12 + 100 * 70 * 4);
  expect(all.readUInt32LE(4 + 12 + 100 * 4 + 4)).toBe(0x101);
  expect(viewer.say(...ASK_NEW)).toHaveLength(0);
  viewer.session.damage(70, 65, 5, 5);
  const some = viewer.take();
  expect(some.readUInt16BE(2)).toBe(1);
  expect([4, 6, 8, 10].map((at) => some.readUInt16BE(at))).toEqual([64, 64, 36, 6]);
  viewer.full = true;
  viewer.session.damage(0, 0, 1, 1);
  expect(viewer.take()).toHaveLength(0);
  expect(viewer.say(...ASK_NEW).length).toBeGreaterThan(0);
  viewer.session.damage(0, 0, 1, 1);
  expect(viewer.say(...ASK_NEW)).toHaveLength(0);
  viewer.full = false;
  viewer.session.drained();
  expect(viewer.take().length).toBeGreaterThan(0);
});

test('another size is told to who understands it', () => {
  const viewer = new Viewer();
  viewer.open();
  viewer.say(2, 0, 0, 1, 0xff, 0xff, 0xff, 0x21);
  viewer.say(...ASK_ALL);
  viewer.say(...ASK_NEW);
  viewer.screen.width = 50;
  viewer.session.resize();
  const told = viewer.take();
  expect([8, 10].map((at) => told.readUInt16BE(at))).toEqual([50, 70]);
  expect(told.readInt32BE(12)).toBe(-223);
  const ignorant = new Viewer();
  ignorant.open();
  ignorant.say(...ASK_ALL);
  ignorant.screen.width = 50;
  ignorant.session.resize();
  expect(ignorant.say(...ASK_NEW).length).toBe(4 + 2 * 12 + 100 * 70 * 4);
});

test('keys and places get through; text to paste is passed over', () => {
  const viewer = new Viewer();
  viewer.open();
  viewer.say(6, 0, 0, 0, 0, 0, 0, 3, 4, 1, 4, 4, 1, 0, 0, 0, 0, 0xff, 0x0d, 5, 1, 0xff, 0xff, 0, 7);
  expect(viewer.keys).toEqual([[0xff0d, true]]);
  expect(viewer.places).toEqual([[99, 7, 1]]);
});

test('what makes no sense ends the session, and nothing throws', () => {
  for (const bad of [
    [...Buffer.from('GET / HTTP/1')],
    [...Buffer.from('RFB 003.008\n'), 2],
    [...Buffer.from('RFB 003.008\n'), 1, 1, 99],
    [...Buffer.from('RFB 003.008\n'), 1, 1, 2, 0, 0xff, 0xff],
    [...Buffer.from('RFB 003.008\n'), 1, 1, 6, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
    [...Buffer.from('RFB 003.008\n'), 1, 1, 0, 0, 0, 0, ...new Array<number>(16).fill(7)],
  ]) {
    const viewer = new Viewer();
    viewer.say(...bad);
    expect(viewer.ended).toBe(true);
  }
  const random = noise(7);
  for (let round = 0; round < 300; round++) {
    const viewer = new Viewer();
    viewer.open();
    viewer.session.receive(
      Uint8Array.from({ length: 400 }, () => (random.next().value as number) % (round % 2 ? 8 : 256)),
    );
  }
});
