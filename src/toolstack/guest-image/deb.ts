/**
 * Reader for Debian binary packages (.deb): hands out chosen files of data.tar, or all that a package has.
 *
 *     .deb:   "!<arch>\n" | member debian-binary | member control.tar.* | member data.tar.{xz,zst,gz} (or data.tar)
 *     member: name 16 | mtime 12 | uid 6 | gid 6 | mode 8 | size 10 (decimal) | "`\n" | content | pad to 2
 *
 * Streams: a kernel package unpacks to 100-400 MB, of which a guest needs two or three. Nothing is written to disk and
 * no ownership is applied, so no privilege is needed. Source: deb(5).
 */

import { createReadStream } from 'node:fs';
import { open } from 'node:fs/promises';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGunzip, createZstdDecompress } from 'node:zlib';
import { extract } from 'tar-stream';
import { unpackXz } from '../xz.ts';

/** A .deb cannot be read. `message` is one line and starts with the file's name. */
export class DebError extends Error {
  override readonly name = 'DebError';
}

interface Member {
  readonly name: string;
  readonly offset: number;
  readonly size: number;
}

/** An entry of a package. Names and hard links' targets have no leading "./" or "/" and no trailing one. */
export type DebEntry =
  | { readonly kind: 'file'; readonly name: string; readonly mode: number; readonly content: Uint8Array }
  | { readonly kind: 'directory'; readonly name: string; readonly mode: number }
  | { readonly kind: 'symlink'; readonly name: string; readonly target: string }
  | { readonly kind: 'hard-link'; readonly name: string; readonly target: string };

const AR_MAGIC = '!<arch>\n';
const AR_HEADER_BYTES = 60;

function plainName(name: string): string {
  return name
    .replace(/^(\.?\/)+/, '')
    .replace(/\/+$/, '')
    .replace(/^\.$/, '');
}

/** The first member whose name starts with `prefix`. */
async function findMember(path: string, prefix: 'control.tar' | 'data.tar'): Promise<Member> {
  const file = await open(path, 'r');
  try {
    const { size: fileSize } = await file.stat();
    const read = async (offset: number, length: number): Promise<string> => {
      const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, offset);
      return buffer.toString('latin1', 0, bytesRead);
    };
    if ((await read(0, AR_MAGIC.length)) !== AR_MAGIC)
      throw new DebError(`${path}: not a Debian package (no ar magic)`);
    for (let at = AR_MAGIC.length; at < fileSize; ) {
      const header = await read(at, AR_HEADER_BYTES);
      const size = Number(header.slice(48, 58).trim());
      if (header.length < AR_HEADER_BYTES || header.slice(58) !== '`\n' || !Number.isSafeInteger(size) || size < 0) {
        throw new DebError(`${path}: damaged ar header at ${at}`);
      }
      const name = header.slice(0, 16).trim().replace(/\/$/, '');
      const offset = at + AR_HEADER_BYTES;
      if (offset + size > fileSize)
        throw new DebError(
          `${path}: truncated: member ${name} ends at ${offset + size}, the file has ${fileSize} bytes`,
        );
      if (name.startsWith(prefix)) return { name, offset, size };
      at = offset + size + (size % 2);
    }
  } finally {
    await file.close();
  }
  throw new DebError(`${path}: not a Debian package (no ${prefix} member)`);
}

/**
 * Reads chosen regular files of a package.
 *
 * @param path the .deb file
 * @param want decides by name, without the leading "./" or "/", whether a file is wanted
 * @returns the wanted files by that name
 * @throws DebError if the package is damaged or packed in a way we do not know
 */
export async function readDeb(path: string, want: (name: string) => boolean): Promise<Map<string, Uint8Array>> {
  const files = new Map<string, Uint8Array>();
  await readTar(
    path,
    'data.tar',
    (entry) => {
      if (entry.kind === 'file') files.set(entry.name, entry.content);
    },
    want,
  );
  return files;
}

/** A package with all that is in it. */
export interface UnpackedDeb {
  /** control, postinst, md5sums, ... by name. */
  readonly control: ReadonlyMap<string, Uint8Array>;
  /** In the archive's order: folders come before what is in them. Device nodes and pipes are left out. */
  readonly entries: readonly DebEntry[];
}

/**
 * Reads a whole package.
 *
 * @param want decides by name, without the leading "./", which regular files are needed
 * @throws DebError if the package is damaged or packed in a way we do not know
 */
export async function unpackDeb(path: string, want: (name: string) => boolean): Promise<UnpackedDeb> {
  const control = new Map<string, Uint8Array>();
  await readTar(path, 'control.tar', (entry) => {
    if (entry.kind === 'file') control.set(entry.name, entry.content);
  });
  const entries: DebEntry[] = [];
  await readTar(path, 'data.tar', (entry) => entries.push(entry), want);
  return { control, entries };
}

const KINDS: Readonly<Record<string, DebEntry['kind']>> = {
  file: 'file',
  'contiguous-file': 'file',
  directory: 'directory',
  symlink: 'symlink',
  link: 'hard-link',
};

/** Visits the entries of one archive of a package; of files not wanted nothing is kept. */
async function readTar(
  path: string,
  prefix: 'control.tar' | 'data.tar',
  visit: (entry: DebEntry) => void,
  want: (name: string) => boolean = () => true,
): Promise<void> {
  const member = await findMember(path, prefix);
  const source = createReadStream(path, {
    start: member.offset,
    end: member.offset + member.size - 1,
    highWaterMark: 1 << 20,
  });
  const tar = extract();
  tar.on('entry', (header, stream, next) => {
    const name = plainName(header.name);
    const kind = KINDS[header.type ?? ''];
    if (name === '' || kind === undefined || !want(name)) {
      stream.on('end', next);
      stream.resume();
      return;
    }
    const mode = header.mode === undefined ? 0o644 : header.mode & 0o7777;
    const target = header.linkname ?? '';
    const chunks: Uint8Array[] = [];
    stream.on('data', (chunk) => chunks.push(chunk as Uint8Array));
    stream.on('end', () => {
      if (kind === 'file') visit({ kind, name, mode, content: Buffer.concat(chunks) });
      else if (kind === 'directory') visit({ kind, name, mode });
      else if (kind === 'symlink') visit({ kind, name, target });
      else visit({ kind, name, target: plainName(target) });
      next();
    });
  });
  try {
    switch (member.name.slice(prefix.length)) {
      case '':
        await pipeline(source, tar);
        break;
      case '.gz':
        await pipeline(source, createGunzip(), tar);
        break;
      case '.zst':
        await pipeline(source, createZstdDecompress(), tar);
        break;
      case '.xz':
        await pipeline(Readable.from(unpackXz(source, 'xz'), { objectMode: false, highWaterMark: 1 << 20 }), tar);
        break;
      default:
        throw new DebError(`${path}: expected ${prefix}, .gz, .xz or .zst, found ${member.name}`);
    }
  } catch (error) {
    if (error instanceof DebError) throw error;
    throw new DebError(
      `${path}: ${member.name} is damaged: ${error instanceof Error ? error.message : String(error)}`,
      { cause: error },
    );
  }
}
