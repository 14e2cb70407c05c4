/**
 * Decoder for the legacy LZ4 frame, the form `lz4 -l` writes and the Linux kernel uses.
 *
 *     frame: u32 magic 0x184c2102 | block | block | ...
 *     block: u32 compressed size | that many bytes, which unpack to at most 8 MiB
 *
 * A second magic in a size's place starts a concatenated frame. Source: lz4 doc/lz4_Frame_format.md ("Legacy frame")
 * and doc/lz4_Block_format.md. Own code because npm's lz4js refuses the legacy magic.
 */

const MAGIC = 0x184c2102;
const BLOCK_BYTES_MAX = 8 << 20;

/**
 * Unpacks a legacy LZ4 frame.
 *
 * @param input the frame from its magic on, without trailing bytes
 * @param maxBytes upper limit of the result
 * @returns the unpacked bytes, one chunk per block
 * @throws Error with a one-line reason if the frame is damaged or too large
 */
export function unpackLz4Legacy(input: Uint8Array, maxBytes: number): Uint8Array[] {
  const view = new DataView(input.buffer, input.byteOffset, input.byteLength);
  if (input.length < 4 || view.getUint32(0, true) !== MAGIC) throw new Error('lz4: legacy frame magic is missing');
  const scratch = new Uint8Array(BLOCK_BYTES_MAX);
  const chunks: Uint8Array[] = [];
  let total = 0;
  let at = 4;
  while (at < input.length) {
    if (at + 4 > input.length) throw new Error('lz4: the frame ends inside a block header');
    const size = view.getUint32(at, true);
    at += 4;
    if (size === MAGIC) continue;
    if (size === 0 || at + size > input.length) throw new Error(`lz4: block of ${size} bytes passes the frame's end`);
    const length = unpackBlock(input.subarray(at, at + size), scratch);
    at += size;
    total += length;
    if (total > maxBytes) throw new Error(`unpacks to more than the limit of ${maxBytes} bytes`);
    chunks.push(scratch.slice(0, length));
  }
  return chunks;
}

/** Unpacks one block into `output`; returns the number of bytes written. */
function unpackBlock(input: Uint8Array, output: Uint8Array): number {
  let from = 0;
  let to = 0;
  while (from < input.length) {
    const token = input[from++] ?? 0;
    let literals = token >> 4;
    if (literals === 15) {
      let more: number;
      do {
        if (from >= input.length) throw new Error('lz4: the block ends inside a length');
        more = input[from++] ?? 0;
        literals += more;
      } while (more === 255);
    }
    if (from + literals > input.length || to + literals > output.length)
      throw new Error('lz4: literals pass the block’s end');
    output.set(input.subarray(from, from + literals), to);
    from += literals;
    to += literals;
    // The last sequence of a block has literals only.
    if (from === input.length) return to;

    if (from + 2 > input.length) throw new Error('lz4: the block ends inside an offset');
    const distance = (input[from] ?? 0) | ((input[from + 1] ?? 0) << 8);
    from += 2;
    if (distance === 0 || distance > to) throw new Error('lz4: a match starts before the block');
    let length = (token & 15) + 4;
    if ((token & 15) === 15) {
      let more: number;
      do {
        if (from >= input.length) throw new Error('lz4: the block ends inside a length');
        more = input[from++] ?? 0;
        length += more;
      } while (more === 255);
    }
    if (to + length > output.length) throw new Error('lz4: a match passes the block’s 8 MiB');
    if (distance >= length) {
      output.copyWithin(to, to - distance, to - distance + length);
      to += length;
    } else {
      // The match reads bytes that it has itself just written, so it goes byte by byte.
      for (const end = to + length; to < end; to++) output[to] = output[to - distance] ?? 0;
    }
  }
  throw new Error('lz4: the block ends without literals');
}
