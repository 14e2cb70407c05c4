/** Buffers for bytes on their way from the guest to the host, used again and again. */

export const CHUNK_BYTES = 1 << 16;
const SPARE_MAX = 64;

export class ChunkPool {
  readonly #spare: Uint8Array[] = [];

  take(): Uint8Array {
    return this.#spare.pop() ?? new Uint8Array(CHUNK_BYTES);
  }

  give(chunk: Uint8Array): void {
    if (this.#spare.length < SPARE_MAX) this.#spare.push(chunk);
  }
}
