/**
 * Writer for cpio archives in the "newc" format, the one Linux unpacks as an initramfs.
 *
 *     entry: "070701" | 13 fields of 8 hex digits | name NUL | pad to 4 | content | pad to 4
 *
 * Deterministic: no clock, no host inode numbers, so equal input gives equal bytes.
 * Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst.
 */

/** One member of the archive. Names have no leading slash; parents come before their children. */
export type CpioEntry =
  | { readonly kind: 'file'; readonly name: string; readonly mode: number; readonly content: Uint8Array }
  | { readonly kind: 'directory'; readonly name: string; readonly mode: number }
  | { readonly kind: 'symlink'; readonly name: string; readonly target: string }
  | {
      readonly kind: 'character-device';
      readonly name: string;
      readonly mode: number;
      readonly major: number;
      readonly minor: number;
    };

const S_IFREG = 0o100000;
const S_IFDIR = 0o040000;
const S_IFLNK = 0o120000;
const S_IFCHR = 0o020000;
const TRAILER = 'TRAILER!!!';

/** Builds an archive. All members belong to root and carry time 0. */
export function writeCpio(entries: readonly CpioEntry[]): Uint8Array {
  const chunks: Uint8Array[] = [];
  let ino = 0;
  const member = (name: string, mode: number, nlink: number, content: Uint8Array, major = 0, minor = 0): void => {
    const nameBytes = Buffer.from(`${name}\0`);
    // c_ino, c_mode, c_uid, c_gid, c_nlink, c_mtime, c_filesize, c_maj, c_min, c_rmaj, c_rmin, c_namesize, c_chksum
    const fields = [ino++, mode, 0, 0, nlink, 0, content.length, 0, 0, major, minor, nameBytes.length, 0];
    const header = Buffer.from(`070701${fields.map((field) => field.toString(16).padStart(8, '0')).join('')}`);
    chunks.push(header, nameBytes, padding(header.length + nameBytes.length), content, padding(content.length));
  };
  for (const entry of entries) {
    switch (entry.kind) {
      case 'file':
        member(entry.name, S_IFREG | entry.mode, 1, entry.content);
        break;
      case 'directory':
        member(entry.name, S_IFDIR | entry.mode, 2, new Uint8Array());
        break;
      case 'symlink':
        member(entry.name, S_IFLNK | 0o777, 1, Buffer.from(entry.target));
        break;
      case 'character-device':
        member(entry.name, S_IFCHR | entry.mode, 1, new Uint8Array(), entry.major, entry.minor);
        break;
    }
  }
  ino = 0;
  member(TRAILER, 0, 1, new Uint8Array());
  return Buffer.concat(chunks);
}

function padding(length: number): Uint8Array {
  return new Uint8Array((4 - (length % 4)) % 4);
}
