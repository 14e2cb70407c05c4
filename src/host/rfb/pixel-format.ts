/** How a VNC viewer wants its pixels. Source: RFC 6143, 7.4. */

export interface PixelFormat {
  readonly bitsPerPixel: 8 | 16 | 32;
  readonly bigEndian: boolean;
  readonly redMax: number;
  readonly greenMax: number;
  readonly blueMax: number;
  readonly redShift: number;
  readonly greenShift: number;
  readonly blueShift: number;
}

export const PIXEL_FORMAT_SIZE = 16;

/** As the framebuffer has them: 0x00RRGGBB, little-endian. */
export const OWN_FORMAT: PixelFormat = {
  bitsPerPixel: 32,
  bigEndian: false,
  redMax: 255,
  greenMax: 255,
  blueMax: 255,
  redShift: 16,
  greenShift: 8,
  blueShift: 0,
};

export function encodePixelFormat(format: PixelFormat): Buffer {
  const bytes = Buffer.alloc(PIXEL_FORMAT_SIZE);
  bytes[0] = format.bitsPerPixel;
  bytes[1] = 24;
  bytes[2] = format.bigEndian ? 1 : 0;
  bytes[3] = 1;
  bytes.writeUInt16BE(format.redMax, 4);
  bytes.writeUInt16BE(format.greenMax, 6);
  bytes.writeUInt16BE(format.blueMax, 8);
  bytes[10] = format.redShift;
  bytes[11] = format.greenShift;
  bytes[12] = format.blueShift;
  return bytes;
}

/** Null for a format with a colour map, or one that fits no pixel. */
export function decodePixelFormat(bytes: Buffer): PixelFormat | null {
  const bitsPerPixel = bytes[0];
  if (bitsPerPixel !== 8 && bitsPerPixel !== 16 && bitsPerPixel !== 32) return null;
  if (bytes[3] === 0) return null;
  const format: PixelFormat = {
    bitsPerPixel,
    bigEndian: bytes[2] !== 0,
    redMax: bytes.readUInt16BE(4),
    greenMax: bytes.readUInt16BE(6),
    blueMax: bytes.readUInt16BE(8),
    redShift: bytes[10],
    greenShift: bytes[11],
    blueShift: bytes[12],
  };
  const shifts = [format.redShift, format.greenShift, format.blueShift];
  return shifts.every((shift) => shift < bitsPerPixel) ? format : null;
}

/** Puts a pixel 0x00RRGGBB at a place; the place behind it. */
export function putPixel(format: PixelFormat, pixel: number, into: Buffer, at: number): number {
  const red = Math.trunc((((pixel >>> 16) & 255) * format.redMax) / 255);
  const green = Math.trunc((((pixel >>> 8) & 255) * format.greenMax) / 255);
  const blue = Math.trunc(((pixel & 255) * format.blueMax) / 255);
  const value = ((red << format.redShift) | (green << format.greenShift) | (blue << format.blueShift)) >>> 0;
  switch (format.bitsPerPixel) {
    case 8:
      into[at] = value;
      return at + 1;
    case 16:
      if (format.bigEndian) into.writeUInt16BE(value & 0xffff, at);
      else into.writeUInt16LE(value & 0xffff, at);
      return at + 2;
    default:
      if (format.bigEndian) into.writeUInt32BE(value, at);
      else into.writeUInt32LE(value, at);
      return at + 4;
  }
}
