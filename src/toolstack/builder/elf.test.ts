/** ELF reader: a small kernel made here, then broken in every way we can name. Real kernels are read by the boot tests. */

import { describe, expect, test } from 'vitest';
import { parseXenElf } from './elf.ts';
import { KernelImageError } from './errors.ts';

interface Note {
  readonly type: number;
  readonly desc: Uint8Array;
}

const u64 = (value: bigint): Uint8Array => new Uint8Array(BigUint64Array.of(value).buffer);
const text = (value: string): Uint8Array => new TextEncoder().encode(value);

const NOTES: readonly Note[] = [
  { type: 6, desc: text('linux\0') },
  { type: 5, desc: text('xen-3.0\0') },
  { type: 8, desc: text('generic\0') },
  { type: 3, desc: u64(0xffffffff80000000n) },
  { type: 1, desc: u64(0xffffffff80001010n) },
  { type: 10, desc: text('!writable_page_tables') },
  { type: 15, desc: u64(0x8000000000n) },
  { type: 16, desc: new Uint8Array([1, 0, 0, 0]) },
  { type: 17, desc: new Uint8Array([1, 0x88, 0, 0]) },
  { type: 13, desc: new Uint8Array([...u64(1n), ...u64(1n)]) },
];

function notesOf(notes: readonly Note[], owner = 'Xen\0'): Uint8Array {
  const bytes: number[] = [];
  for (const { type, desc } of notes) {
    bytes.push(...new Uint8Array(Uint32Array.of(owner.length, desc.length, type).buffer), ...text(owner), ...desc);
    while (bytes.length % 4 !== 0) bytes.push(0);
  }
  return new Uint8Array(bytes);
}

const LOAD = 64;
const NOTE = LOAD + 56;

/** Header, two program headers (PT_LOAD, PT_NOTE), 32 bytes of code, notes, section names, three sections at the end. */
function makeElf({ notes = notesOf(NOTES), noteSegment = true, sectionName = '.notes' } = {}): Uint8Array {
  const names = text(`\0${sectionName}\0.shstrtab\0`);
  const codeAt = 64 + 2 * 56;
  const notesAt = codeAt + 32;
  const namesAt = notesAt + notes.length;
  const sectionsAt = Math.ceil((namesAt + names.length) / 8) * 8;
  const bytes = new Uint8Array(sectionsAt + 3 * 64);
  const view = new DataView(bytes.buffer);
  bytes.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  view.setUint16(0x10, 2, true);
  view.setUint16(0x12, 62, true);
  view.setUint32(0x14, 1, true);
  view.setBigUint64(0x20, 64n, true);
  view.setBigUint64(0x28, BigInt(sectionsAt), true);
  view.setUint16(0x34, 64, true);
  view.setUint16(0x36, 56, true);
  view.setUint16(0x38, 2, true);
  view.setUint16(0x3a, 64, true);
  view.setUint16(0x3c, 3, true);
  view.setUint16(0x3e, 2, true);
  const segment = (at: number, type: number, offset: number, paddr: number, filesz: number, memsz: number): void => {
    view.setUint32(at, type, true);
    view.setUint32(at + 4, 7, true);
    view.setBigUint64(at + 8, BigInt(offset), true);
    view.setBigUint64(at + 0x18, BigInt(paddr), true);
    view.setBigUint64(at + 0x20, BigInt(filesz), true);
    view.setBigUint64(at + 0x28, BigInt(memsz), true);
  };
  segment(LOAD, 1, codeAt, 0x1000, 32, 0x2000);
  segment(NOTE, noteSegment ? 4 : 0, notesAt, 0, notes.length, notes.length);
  bytes.set(notes, notesAt);
  bytes.set(names, namesAt);
  const section = (index: number, name: number, type: number, offset: number, size: number): void => {
    const at = sectionsAt + index * 64;
    view.setUint32(at, name, true);
    view.setUint32(at + 4, type, true);
    view.setBigUint64(at + 0x18, BigInt(offset), true);
    view.setBigUint64(at + 0x20, BigInt(size), true);
  };
  section(1, 1, notes.length > 0 ? 7 : 1, notesAt, notes.length);
  section(2, 2 + sectionName.length, 3, namesAt, names.length);
  return bytes;
}

/** A copy with some bytes replaced. */
function broken(offset: number, ...values: number[]): Uint8Array {
  const bytes = makeElf();
  bytes.set(values, offset);
  return bytes;
}

function without(type: number): Uint8Array {
  return makeElf({ notes: notesOf(NOTES.filter((note) => note.type !== type)) });
}

function withNote(type: number, desc: Uint8Array): Uint8Array {
  return makeElf({ notes: notesOf([...NOTES.filter((note) => note.type !== type), { type, desc }]) });
}

describe('parseXenElf()', () => {
  test('reads segments and notes', () => {
    const { loads, notes } = parseXenElf(makeElf(), 'vmlinux');
    expect(loads).toEqual([{ offset: 176, vaddr: 0n, paddr: 0x1000, filesz: 32, memsz: 0x2000, flags: 7 }]);
    expect(notes).toEqual({
      entry: 0xffffffff80001010n,
      virtBase: 0xffffffff80000000n,
      paddrOffset: 0n,
      initP2m: 0x8000000000n,
      l1MfnValid: { mask: 1n, value: 1n },
      supportedFeatures: 0x8801,
      modStartPfn: true,
      suspendCancel: false,
      features: '!writable_page_tables',
      guestOs: 'linux',
      guestVersion: '',
      xenVersion: 'xen-3.0',
      loader: 'generic',
    });
  });

  test('finds notes in a section when no segment has them', () => {
    expect(parseXenElf(makeElf({ noteSegment: false }), 'k').notes.guestOs).toBe('linux');
  });

  test('accepts another guest OS with the generic loader, as GRUB has', () => {
    expect(parseXenElf(withNote(6, text('GRUB\0')), 'k').notes.guestOs).toBe('GRUB');
  });

  test('works on a view that does not start its buffer', () => {
    const elf = makeElf();
    const larger = new Uint8Array(elf.length + 13);
    larger.set(elf, 13);
    expect(parseXenElf(larger.subarray(13), 'k').loads).toHaveLength(1);
  });

  test.each<[string, Uint8Array, RegExp]>([
    ['magic', broken(0, 0x7e), /not an ELF file/],
    ['EI_CLASS', broken(4, 1), /EI_CLASS: expected 2 .*found 1/],
    ['EI_DATA', broken(5, 2), /EI_DATA: expected 1/],
    ['EI_VERSION', broken(6, 0), /EI_VERSION: expected 1/],
    ['e_type', broken(0x10, 1), /e_type: expected 2 .*found 1/],
    ['e_machine', broken(0x12, 3), /e_machine: expected 62 .*found 3/],
    ['e_version', broken(0x14, 9), /e_version: expected 1/],
    ['e_phoff past the end', broken(0x20, 0, 0, 1), /e_phoff.*pass the file's end/],
    ['e_phoff near 2^64', broken(0x20, ...u64(0xffff_ffff_ffff_fff0n)), /e_phoff.*pass the file's end/],
    ['e_shoff past the end', broken(0x28, 0, 0, 1), /e_shoff.*pass the file's end/],
    ['e_ehsize', broken(0x34, 52), /e_ehsize: expected 64/],
    ['e_phentsize', broken(0x36, 32), /e_phentsize: expected 56/],
    ['e_phnum 0', broken(0x38, 0), /e_phnum: expected at least 1/],
    ['e_phnum too large', broken(0x38, 0, 1), /e_phnum.*pass the file's end/],
    ['e_phnum PN_XNUM', broken(0x38, 255, 255), /e_phnum: expected fewer/],
    ['e_shentsize', broken(0x3a, 40), /e_shentsize: expected 64/],
    ['e_shnum too large', broken(0x3c, 4), /e_shnum.*pass the file's end/],
    ['e_shstrndx', broken(0x3e, 3), /e_shstrndx: expected below e_shnum 3, found 3/],
    ['no PT_LOAD', broken(LOAD, 6), /at least one PT_LOAD/],
    ['PT_LOAD p_offset', broken(LOAD + 8, ...u64(0x10000n)), /header 0 p_offset.*pass the file's end/],
    ['PT_LOAD p_filesz', broken(LOAD + 0x20, ...u64(1n << 63n)), /header 0 p_offset.*pass the file's end/],
    ['PT_LOAD p_memsz below p_filesz', broken(LOAD + 0x28, ...u64(16n)), /p_memsz: expected at least p_filesz 0x20/],
    ['PT_LOAD p_memsz overflows', broken(LOAD + 0x28, ...u64(1n << 52n)), /52-bit/],
    ['PT_LOAD p_paddr overflows', broken(LOAD + 0x18, ...u64(0xffff_ffff_ffff_f000n)), /52-bit/],
    ['PT_NOTE p_offset', broken(NOTE + 8, ...u64(0x10000n)), /header 1 p_offset.*pass the file's end/],
    [
      'overlapping PT_LOADs',
      broken(NOTE, 1, 0, 0, 0, 7, 0, 0, 0, 176, 0, 0, 0, 0, 0, 0, 0, ...u64(0n), ...u64(0x2fffn)),
      /PT_LOADs overlap/,
    ],
    ['note name size', broken(208, 0xff, 0xff, 0xff, 0xff), /ELF note at 0xd0.*pass the notes' end/],
    ['note of an odd size', withNote(1, new Uint8Array(3)), /note 1: expected 4 or 8 bytes, found 3/],
    ['short L1_MFN_VALID', withNote(13, new Uint8Array(8)), /L1_MFN_VALID\): expected 16 bytes, found 8/],
    ['no notes at all', makeElf({ notes: new Uint8Array() }), /not a Xen guest: the ELF file has no Xen ELF notes/],
    ['only notes of others', makeElf({ notes: notesOf(NOTES, 'GNU\0') }), /not a Xen guest: the ELF file has no Xen/],
    ['legacy __xen_guest', makeElf({ notes: new Uint8Array(), sectionName: '__xen_guest' }), /legacy __xen_guest/],
    ['no ENTRY', without(1), /ENTRY is missing/],
    ['no VIRT_BASE', without(3), /VIRT_BASE is missing/],
    ['no XEN_VERSION', without(5), /XEN_VERSION: expected "xen-3.0", found ""/],
    ['another XEN_VERSION', withNote(5, text('xen-2.0')), /expected "xen-3.0", found "xen-2.0"/],
    [
      'unknown loader and OS',
      makeElf({
        notes: notesOf([{ type: 6, desc: text('os9') }, ...NOTES.filter((note) => note.type !== 6 && note.type !== 8)]),
      }),
      /expected LOADER "generic" or GUEST_OS "linux"/,
    ],
    ['ENTRY outside', withNote(1, u64(0xffffffff80004000n)), /ENTRY: expected in the image/],
    ['HYPERCALL_PAGE outside', withNote(2, u64(0xffffffff80002800n)), /HYPERCALL_PAGE: expected a page in the image/],
    ['VIRT_BASE overflows', withNote(3, u64(0xffff_ffff_ffff_f000n)), /past 64 bits/],
    ['PADDR_OFFSET above the image', withNote(4, u64(0x1001n)), /PADDR_OFFSET: expected at most/],
  ])('refuses: %s', (_case, bytes, message) => {
    expect(() => parseXenElf(bytes, 'vmlinux')).toThrow(KernelImageError);
    expect(() => parseXenElf(bytes, 'vmlinux')).toThrow(message);
    expect(() => parseXenElf(bytes, 'vmlinux')).toThrow(/^vmlinux: [^\n]*$/);
  });

  test('throws nothing but KernelImageError for a file cut at any offset', () => {
    const elf = makeElf();
    for (let length = 0; length < elf.length; length++) {
      expect(() => parseXenElf(elf.subarray(0, length), 'cut'), `length ${length}`).toThrow(KernelImageError);
    }
  });

  test('throws nothing but KernelImageError for any single damaged byte', () => {
    const elf = makeElf();
    for (let at = 0; at < elf.length; at++) {
      for (const value of [0, 1, 0x7f, 0x80, 0xff]) {
        const copy = elf.slice();
        copy[at] = value;
        try {
          parseXenElf(copy, 'damaged');
        } catch (error) {
          expect(error, `byte ${at} = ${value}`).toBeInstanceOf(KernelImageError);
        }
      }
    }
  });
});
