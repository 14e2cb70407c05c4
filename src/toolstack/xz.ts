/**
 * Streaming decoder for .xz and .lzma, over whichever implementation this machine has.
 *
 * @napi-rs/lzma is the first choice. Its native part is an optional package with an `engines` range, and npm running on
 * Node 20 leaves such packages out even though Domus itself runs on Node 24; then the host's `xz` program does the work.
 * With neither, the error says what to install.
 */

import { spawn } from 'node:child_process';

/** What the decoders of @napi-rs/lzma have in common. */
interface StreamDecoder {
  update(chunk: Uint8Array): Uint8Array;
  finish(): Promise<Uint8Array>;
}

/** Input is fed in pieces of this size, so that one call never holds the event loop for long. */
const CHUNK_BYTES = 256 * 1024;

/**
 * Unpacks a stream.
 *
 * @param source the compressed bytes
 * @param format 'xz' (with BCJ filters and concatenated streams) or 'lzma' (LZMA-alone)
 * @returns the unpacked bytes as they come; stop reading to stop the work
 * @throws Error with a one-line reason if the stream is damaged, cut short, or no decoder is there
 */
export async function* unpackXz(
  source: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  format: 'xz' | 'lzma',
): AsyncGenerator<Uint8Array> {
  const decoder = await openNative(format);
  if (!decoder) {
    yield* unpackWithHost(source, format);
    return;
  }
  for await (const chunk of source) {
    for (let at = 0; at < chunk.length; at += CHUNK_BYTES) {
      const unpacked = decoder.update(chunk.subarray(at, at + CHUNK_BYTES));
      if (unpacked.length > 0) yield unpacked;
      await new Promise(setImmediate);
    }
  }
  const rest = await decoder.finish();
  if (rest.length > 0) yield rest;
}

async function openNative(format: 'xz' | 'lzma'): Promise<StreamDecoder | undefined> {
  try {
    const lzma = await import('@napi-rs/lzma');
    return format === 'xz' ? new lzma.XzDecompressor() : new lzma.LzmaDecompressor();
  } catch {
    // The package throws at import when its native part is not installed; the host's program is the answer to that.
    return undefined;
  }
}

async function* unpackWithHost(
  source: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  format: 'xz' | 'lzma',
): AsyncGenerator<Uint8Array> {
  const child = spawn('xz', ['--decompress', '--stdout', `--format=${format}`], { stdio: ['pipe', 'pipe', 'pipe'] });
  let complaint = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    complaint = (complaint + text).slice(0, 1000);
  });
  const ended = new Promise<Error | undefined>((resolve) => {
    child.on('error', (error: NodeJS.ErrnoException) =>
      resolve(
        error.code === 'ENOENT'
          ? new Error(
              `no ${format} decoder: install xz-utils, or run "npm install" with Node 24 so that @napi-rs/lzma gets its native part`,
            )
          : error,
      ),
    );
    child.on('close', (code) =>
      resolve(
        code === 0 ? undefined : new Error(complaint.replace(/^xz: \(stdin\): /, '').trim() || `xz ended with ${code}`),
      ),
    );
  });
  // A child that dies early breaks the pipe; its exit status tells why, so the pipe's own error is not reported.
  child.stdin.on('error', () => {});
  const feed = (async () => {
    for await (const chunk of source) {
      if (child.stdin.destroyed) return undefined;
      // The callback comes when the chunk is in the pipe, or with an error when the child is gone.
      await new Promise<void>((resolve) => child.stdin.write(chunk, () => resolve()));
    }
    child.stdin.end();
    return undefined;
  })().catch((error: unknown) => {
    child.kill();
    return error;
  });
  try {
    yield* child.stdout as AsyncIterable<Uint8Array>;
    const sourceError = await feed;
    if (sourceError !== undefined) throw sourceError;
    const childError = await ended;
    if (childError) throw childError;
  } finally {
    child.kill();
  }
}
