/** A rectangle of pixels as bytes for a VNC viewer: raw and hextile. Source: RFC 6143, 7.7.1 and 7.7.4. */

import { type PixelFormat, putPixel } from './pixel-format.ts';

export const ENCODING_RAW = 0;
export const ENCODING_HEXTILE = 5;
/** Not an encoding: the viewer understands that the screen gets another size. */
export const ENCODING_DESKTOP_SIZE = -223;

const TILE = 16;
const HEXTILE_RAW = 1;
const HEXTILE_BACKGROUND = 2;
const HEXTILE_FOREGROUND = 4;
const HEXTILE_SUBRECTS = 8;

/** `pixels`: 0x00RRGGBB, line by line. */
export function encodeRaw(pixels: Uint32Array, count: number, format: PixelFormat): Buffer {
  const bytes = Buffer.allocUnsafe(count * (format.bitsPerPixel / 8));
  let at = 0;
  for (let i = 0; i < count; i++) at = putPixel(format, pixels[i], bytes, at);
  return bytes;
}

/**
 * Tiles of 16x16: of one colour, of two (a background and runs of a foreground, which is what text is), or raw. Each tile says
 * its colours itself, so that none depends on another.
 */
export function encodeHextile(pixels: Uint32Array, width: number, height: number, format: PixelFormat): Buffer {
  const pixelBytes = format.bitsPerPixel / 8;
  const tiles = Math.ceil(width / TILE) * Math.ceil(height / TILE);
  const bytes = Buffer.allocUnsafe(width * height * pixelBytes + tiles);
  let at = 0;
  for (let top = 0; top < height; top += TILE)
    for (let left = 0; left < width; left += TILE) {
      const right = Math.min(left + TILE, width);
      const bottom = Math.min(top + TILE, height);
      const rawBytes = 1 + (right - left) * (bottom - top) * pixelBytes;
      const end = putTwoColours(pixels, width, left, top, right, bottom, format, bytes, at, at + rawBytes);
      if (end > 0) at = end;
      else {
        bytes[at++] = HEXTILE_RAW;
        for (let y = top; y < bottom; y++)
          for (let x = left; x < right; x++) at = putPixel(format, pixels[y * width + x], bytes, at);
      }
    }
  return bytes.subarray(0, at);
}

/** Where the tile ends, or 0 when it has more than two colours or would not be shorter than raw. */
function putTwoColours(
  pixels: Uint32Array,
  width: number,
  left: number,
  top: number,
  right: number,
  bottom: number,
  format: PixelFormat,
  bytes: Buffer,
  start: number,
  limit: number,
): number {
  const background = pixels[top * width + left];
  let foreground = -1;
  for (let y = top; y < bottom; y++)
    for (let x = left; x < right; x++) {
      const pixel = pixels[y * width + x];
      if (pixel === background || pixel === foreground) continue;
      if (foreground !== -1) return 0;
      foreground = pixel;
    }
  const pixelBytes = format.bitsPerPixel / 8;
  if (start + 2 + 2 * pixelBytes > limit) return 0;
  let at = putPixel(format, background, bytes, start + 1);
  if (foreground === -1) {
    bytes[start] = HEXTILE_BACKGROUND;
    return at;
  }
  bytes[start] = HEXTILE_BACKGROUND | HEXTILE_FOREGROUND | HEXTILE_SUBRECTS;
  at = putPixel(format, foreground, bytes, at);
  const countAt = at++;
  let count = 0;
  for (let y = top; y < bottom; y++)
    for (let x = left; x < right; x++) {
      if (pixels[y * width + x] === background) continue;
      let end = x + 1;
      while (end < right && pixels[y * width + end] !== background) end++;
      if (at + 2 > limit || ++count > 255) return 0;
      bytes[at++] = ((x - left) << 4) | (y - top);
      bytes[at++] = (end - x - 1) << 4;
      x = end;
    }
  bytes[countAt] = count;
  return at;
}
