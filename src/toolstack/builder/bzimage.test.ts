import { describe, expect, test } from 'vitest';
import { findPayload } from './bzimage.ts';
import { KernelImageError } from './errors.ts';

/** A bzImage of two setup sectors whose payload starts 16 bytes into the protected-mode part. */
function makeBzImage(payload: Uint8Array, { version = 0x020f, setupSects = 2 } = {}): Uint8Array {
  const start = ((setupSects || 4) + 1) * 512 + 16;
  const bytes = new Uint8Array(start + payload.length + 100);
  const view = new DataView(bytes.buffer);
  bytes[0x1f1] = setupSects;
  view.setUint16(0x1fe, 0xaa55, true);
  bytes.set(new TextEncoder().encode('HdrS'), 0x202);
  view.setUint16(0x206, version, true);
  view.setUint32(0x248, 16, true);
  view.setUint32(0x24c, payload.length, true);
  bytes.set(payload, start);
  return bytes;
}

const MAGICS: [string, number[]][] = [
  ['gzip', [0x1f, 0x8b]],
  ['bzip2', [0x42, 0x5a, 0x68]],
  ['lzma', [0x5d, 0x00]],
  ['xz', [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00]],
  ['lzo', [0x89, 0x4c, 0x5a, 0x4f]],
  ['lz4', [0x02, 0x21, 0x4c, 0x18]],
  ['zstd', [0x28, 0xb5, 0x2f, 0xfd]],
];

const padded = (magic: number[]): Uint8Array => new Uint8Array([...magic, 9, 9, 9, 9, 9, 9, 0x78, 0x56, 0x34, 0x12]);

describe('findPayload()', () => {
  test.each(MAGICS)('knows %s and its trailer', (kind, magic) => {
    const payload = findPayload(makeBzImage(padded(magic)), 'vmlinuz');
    expect(payload.kind).toBe(kind);
    expect(payload.unpackedBytes).toBe(0x12345678);
    // gzip's last four bytes are its own ISIZE, not a trailer.
    expect(payload.bytes.length).toBe(padded(magic).length - (kind === 'gzip' ? 0 : 4));
  });

  test.each(MAGICS)('takes a bare %s file as it is', (kind, magic) => {
    const payload = findPayload(padded(magic), 'vmlinux.z');
    expect(payload).toEqual({ kind, bytes: padded(magic) });
  });

  test('reads setup_sects 0 as 4', () => {
    expect(findPayload(makeBzImage(padded([0x1f, 0x8b]), { setupSects: 0 }), 'k').kind).toBe('gzip');
  });

  test('gives an ELF payload and a bare ELF whole', () => {
    const elf = padded([0x7f, 0x45, 0x4c, 0x46]);
    expect(findPayload(makeBzImage(elf), 'k')).toEqual({ kind: 'elf', bytes: elf });
    expect(findPayload(elf, 'k')).toEqual({ kind: 'elf', bytes: elf });
  });

  test.each<[string, Uint8Array, RegExp]>([
    ['an empty file', new Uint8Array(), /the file is empty/],
    ['text', new TextEncoder().encode('#!/bin/sh\n'), /not a kernel/],
    ['boot protocol 2.07', makeBzImage(padded([0x1f, 0x8b]), { version: 0x0207 }), /at least 2\.08 .*found 2\.07/],
    ['an unknown payload', makeBzImage(padded([1, 2, 3, 4])), /found bytes 01 02 03 04/],
    ['an empty payload', makeBzImage(new Uint8Array()), /payload_length: expected more than 0/],
  ])('refuses %s', (_case, bytes, message) => {
    expect(() => findPayload(bytes, 'k')).toThrow(KernelImageError);
    expect(() => findPayload(bytes, 'k')).toThrow(message);
  });

  test('refuses a bzImage cut at any offset before the payload ends', () => {
    const payload = padded([0x1f, 0x8b]);
    const image = makeBzImage(payload);
    for (let length = 0; length < image.length - 100; length++) {
      expect(() => findPayload(image.subarray(0, length), 'cut'), `length ${length}`).toThrow(KernelImageError);
    }
    expect(() => findPayload(image.subarray(0, 1560), 'cut')).toThrow(/^cut: bzImage truncated: the payload ends at/);
  });
});
