/**
 * What `xl migrate` and the process of the domain that moves say to each other on the domain's `migration` socket: frames of u8 kind,
 * u32 bytes (little-endian), and so many bytes.
 *
 *   xl to the domain                             the domain to xl
 *   BEGIN    MigrationOptions, as JSON           BYTES   for the target
 *   BYTES    that the target has sent            LINE    for the user; DETAIL for one who asked for more
 *   ENDED    the target will send no more        HANG_UP the target gets no more; what became of its command is told
 *   LOST     some bytes could not be given       RESULT  u8 exit code; of a domain that has gone, the connection ends when nothing
 *            to it, nor any that follow                  is left of it
 *                                                GO      bytes for the target, whole: it may start from now on
 */

export const FRAME_BEGIN = 1;
export const FRAME_BYTES = 2;
export const FRAME_ENDED = 3;
export const FRAME_LINE = 4;
export const FRAME_DETAIL = 5;
export const FRAME_HANG_UP = 6;
export const FRAME_RESULT = 7;
export const FRAME_LOST = 8;
export const FRAME_GO = 9;

const HEADER_BYTES = 5;
/** Of a frame that is no BYTES. */
const MESSAGE_BYTES_MAX = 1 << 20;

export interface MigrationOptions {
  /** The command that reaches the target, for messages. */
  readonly command: string;
  /** Config text for the target instead of the domain's own; null: its own. */
  readonly config: string | null;
  /** All pages are compared at the target. */
  readonly debug: boolean;
}

export function frame(kind: number, bytes: Uint8Array): Uint8Array {
  const whole = new Uint8Array(HEADER_BYTES + bytes.length);
  whole[0] = kind;
  new DataView(whole.buffer).setUint32(1, bytes.length, true);
  whole.set(bytes, HEADER_BYTES);
  return whole;
}

export function textFrame(kind: number, text: string): Uint8Array {
  return frame(kind, new TextEncoder().encode(text));
}

/** Cuts a stream into frames. Those of BYTES come in pieces, as they arrive. */
export class FrameReader {
  readonly #onFrame: (kind: number, bytes: Uint8Array) => void;
  #rest: Uint8Array = new Uint8Array(0);
  /** Of a frame of BYTES that has begun. */
  #bytesLeft = 0;

  constructor(onFrame: (kind: number, bytes: Uint8Array) => void) {
    this.#onFrame = onFrame;
  }

  /** False: this is no stream of frames. */
  push(chunk: Uint8Array): boolean {
    let data = chunk;
    if (this.#rest.length > 0) {
      data = new Uint8Array(this.#rest.length + chunk.length);
      data.set(this.#rest);
      data.set(chunk, this.#rest.length);
    }
    for (;;) {
      if (this.#bytesLeft > 0 && data.length > 0) {
        const piece = data.subarray(0, this.#bytesLeft);
        this.#bytesLeft -= piece.length;
        data = data.subarray(piece.length);
        this.#onFrame(FRAME_BYTES, piece);
      }
      if (data.length < HEADER_BYTES) break;
      const size = new DataView(data.buffer, data.byteOffset).getUint32(1, true);
      if (data[0] === FRAME_BYTES) {
        this.#bytesLeft = size;
        data = data.subarray(HEADER_BYTES);
        continue;
      }
      if (size > MESSAGE_BYTES_MAX || data[0] < FRAME_BEGIN || data[0] > FRAME_GO) return false;
      if (data.length < HEADER_BYTES + size) break;
      this.#onFrame(data[0], data.subarray(HEADER_BYTES, HEADER_BYTES + size));
      data = data.subarray(HEADER_BYTES + size);
    }
    this.#rest = Uint8Array.from(data);
    return true;
  }
}

/** What a BEGIN says; null if that makes no sense. */
export function migrationOptions(bytes: Uint8Array): MigrationOptions | null {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    return null;
  }
  if (typeof value !== 'object' || value === null) return null;
  const { command, config, debug } = { ...value } as Record<string, unknown>;
  const isSane =
    typeof command === 'string' && (config === null || typeof config === 'string') && typeof debug === 'boolean';
  return isSane ? { command, config, debug } : null;
}
