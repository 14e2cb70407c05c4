import { describe, expect, test } from 'vitest';
import { SHARED_INFO, VCPU_INFO } from '../../abi/arch-x86/shared-info.ts';
import { START_INFO } from '../../abi/start-info.ts';
import { createMachineMemory, type MachineMemory, MFN_BASE } from '../../machine/memory.ts';
import { createVcpuBlock, NO_ROOT, RSI, RSP, VCPU, type VcpuBlock } from '../../machine/vcpu-block.ts';
import { type BuildOptions, type BuiltDomain, buildDomain } from './build-domain.ts';
import { BuildError } from './build-error.ts';
import type { XenElf, XenElfNotes } from './elf.ts';
import { type KernelImage, planLayout } from './layout.ts';

const PAGE = 4096;
const MIB_PAGES = 256;
const LINUX_BASE = 0xffffffff80000000n;
const INIT_P2M = 0x8000000000n;

type Load = Pick<XenElf['loads'][number], 'offset' | 'paddr' | 'filesz' | 'memsz'>;

const NOTES: XenElfNotes = {
  entry: LINUX_BASE + 0x100123n,
  virtBase: LINUX_BASE,
  paddrOffset: 0n,
  initP2m: INIT_P2M,
  modStartPfn: true,
  suspendCancel: true,
  features: '',
  guestOs: 'linux',
  guestVersion: '2.6',
  xenVersion: 'xen-3.0',
  loader: 'generic',
};

const CODE: Load = { offset: 0x1000, paddr: 0x100000, filesz: 0x2345, memsz: 0x2345 };
const DATA: Load = { offset: 0x4000, paddr: 0x200000, filesz: 0x800, memsz: 0x21001 };

/** A kernel of patterned bytes. A note of `undefined` is left out. */
function kernel(
  notes: { [key in keyof XenElfNotes]?: XenElfNotes[key] | undefined } = {},
  loads = [CODE, DATA],
): KernelImage {
  const bytes = new Uint8Array(0x5000);
  for (let at = 0; at < bytes.length; at++) bytes[at] = (at * 7 + (at >> 8)) | 1;
  const entries = Object.entries({ ...NOTES, ...notes }).filter(([, value]) => value !== undefined);
  return {
    name: 'vmlinuz',
    bytes,
    elf: {
      loads: loads.map((load) => ({ ...load, vaddr: 0n, flags: 7 })),
      notes: Object.fromEntries(entries) as unknown as XenElfNotes,
    },
  };
}

const withoutNotes = { initP2m: undefined, modStartPfn: false } as const;

interface Built {
  machine: MachineMemory;
  vcpu: VcpuBlock;
  domain: BuiltDomain;
  image: KernelImage;
}

function build(image: KernelImage, ramPages: number, opts: Partial<BuildOptions> = {}, maxPages = ramPages): Built {
  const machine = createMachineMemory(ramPages, maxPages);
  const vcpu = createVcpuBlock(0);
  const options = { ramdisk: null, cmdline: 'console=hvc0', storePort: 1, consolePort: 2, ...opts };
  return { machine, vcpu, domain: buildDomain(machine, vcpu, image, options), image };
}

const ZEROES = new Uint8Array(32 << 20);
const PATTERN = new Uint8Array(16 << 20);
for (let at = 0; at < PATTERN.length; at++) PATTERN[at] = (at * 13 + (at >> 8)) | 1;
const ramdiskOf = (bytes: number): Uint8Array => PATTERN.subarray(0, bytes);

/** The page-table walk, written from the manual and not from the builder. */
interface Leaf {
  va: bigint;
  pfn: number;
  flags: number;
}

function* walk({ machine, vcpu }: Built): Generator<Leaf> {
  const entry = (frame: number, index: number): bigint => machine.u64[frame * 512 + index];
  const frameOf = (pte: bigint): number => Number((pte & 0x000ffffffffff000n) >> 12n) - MFN_BASE;
  const visit = function* (frame: number, level: number, base: bigint): Generator<Leaf> {
    expect(frame).toBeGreaterThanOrEqual(0);
    expect(frame).toBeLessThan(machine.layout.ramPages);
    for (let index = 0; index < 512; index++) {
      const pte = entry(frame, index);
      if (pte === 0n) continue;
      const va = base + (BigInt(index) << BigInt(12 + 9 * (level - 1)));
      const flags = Number(pte & 0xfffn) + (pte >> 63n ? 0x1000 : 0);
      if (level > 1) {
        expect(flags).toBe(0x67);
        yield* visit(frameOf(pte), level - 1, va);
      } else yield { va: BigInt.asUintN(64, BigInt.asIntN(48, va)), pfn: frameOf(pte), flags };
    }
  };
  yield* visit(vcpu.u32[VCPU.kernelRoot / 4], 4, 0n);
}

function startInfo({ machine, domain }: Built): Record<string, bigint> {
  const at = domain.startInfoPfn * PAGE;
  const fields: Record<string, bigint> = {};
  for (const [name, offset] of Object.entries(START_INFO)) {
    const isU32 = name === 'flags' || name.endsWith('_evtchn');
    fields[name] = isU32 ? BigInt(machine.u32[(at + offset) / 4]) : machine.u64[(at + offset) / 8];
  }
  return fields;
}

const text = (bytes: Uint8Array): string => {
  const copy = Uint8Array.from(bytes);
  return new TextDecoder().decode(copy.subarray(0, copy.indexOf(0)));
};

const roundUp = (value: bigint, unit: bigint): bigint => ((value + unit - 1n) / unit) * unit;

/** Everything that xen.h promises about the start of day, checked through the guest's eyes. */
function checkDomain(built: Built, ramdisk: Uint8Array | null): void {
  const { machine, vcpu, domain, image } = built;
  const { notes } = image.elf;
  const { ramPages } = machine.layout;
  const base = notes.virtBase;
  const info = startInfo(built);
  const leaves = [...walk(built)];
  const boot = leaves.filter(({ va }) => va >= base);
  const tables = new Set(domain.pageTableFrames.map(({ frame }) => frame));
  expect(tables.size).toBe(domain.pageTableFrames.length);

  // The bootstrap mapping: contiguous from virtBase, PFN 0 first; read-only exactly where a page table lies.
  for (const [index, { va, pfn, flags }] of boot.entries()) {
    if (va !== base + BigInt(index * PAGE) || pfn !== index || flags !== (tables.has(pfn) ? 0x21 : 0x23)) {
      expect({ index, va, pfn, flags }).toBe('a mapping of PFN = index');
    }
  }
  const end = base + BigInt(boot.length * PAGE);

  // Page tables: at pt_base, contiguous, as many as the mapping needs.
  const ptPfn = Number((info['pt_base'] - base) >> 12n);
  const ptFrames = Number(info['nr_pt_frames']);
  expect(vcpu.u32[VCPU.kernelRoot / 4]).toBe(ptPfn);
  expect(ptFrames).toBe(3 + Number((roundUp(end, 1n << 21n) - (base & ~0x1fffffn)) >> 21n));
  expect(domain.pageTableFrames.slice(0, ptFrames).map(({ frame }) => frame)).toEqual(
    Array.from({ length: ptFrames }, (_, index) => ptPfn + index),
  );
  expect(domain.pageTableFrames.slice(0, ptFrames).map(({ level }) => level)).toEqual([
    4,
    3,
    2,
    ...Array.from({ length: ptFrames - 3 }, () => 1),
  ]);

  // virt_pgtab_end: at least 512 KiB after the boot stack, 4 MiB aligned, and no more than that asks for.
  const stackTop = vcpu.u64[VCPU.gpr / 8 + RSP];
  expect(stackTop).toBe(base + BigInt((ptPfn + ptFrames + 1) * PAGE));
  expect(end).toBe(roundUp(stackTop + 0x80000n, 4n << 20n));
  expect(base >> 30n).toBe((end - 1n) >> 30n);

  // start_info.
  const startInfoAt = domain.startInfoPfn * PAGE;
  expect(vcpu.u64[VCPU.gpr / 8 + RSI]).toBe(base + BigInt(startInfoAt));
  expect(text(machine.u8.subarray(startInfoAt, startInfoAt + 32))).toBe('xen-3.0-x86_64');
  expect(info['nr_pages']).toBe(BigInt(ramPages));
  expect(machine.mfnToOffset(Number(info['shared_info'] >> 12n))).toBe(machine.layout.sharedInfoOffset);
  expect(Number(info['store_mfn'])).toBe(domain.storePfn + MFN_BASE);
  expect(Number(info['console_mfn'])).toBe(domain.consolePfn + MFN_BASE);
  expect([info['store_evtchn'], info['console_evtchn']]).toEqual([1n, 2n]);
  expect(domain.storePfn).toBe(domain.startInfoPfn + 1);
  expect(domain.consolePfn).toBe(domain.storePfn + 1);
  expect(ptPfn).toBe(domain.consolePfn + 1);

  // The ramdisk.
  const unmapped = notes.modStartPfn && ramdisk !== null;
  expect(info['flags']).toBe(unmapped ? 0x18n : 0x10n);
  if (ramdisk) {
    const pfn = Number(notes.modStartPfn ? info['mod_start'] : (info['mod_start'] - base) >> 12n);
    expect(info['mod_start'] & (notes.modStartPfn ? 0n : 0xfffn)).toBe(0n);
    expect(Number(info['mod_len'])).toBe(ramdisk.length);
    expect(Buffer.compare(machine.u8.subarray(pfn * PAGE, pfn * PAGE + ramdisk.length), ramdisk)).toBe(0);
    if (notes.modStartPfn) expect(pfn).toBe(boot.length);
    else expect(pfn).toBe(domain.layout.kernelEndPfn);
  } else expect([info['mod_start'], info['mod_len']]).toEqual([0n, 0n]);

  // The p2m list, through mfn_list.
  const p2mPages = Math.ceil((ramPages * 8) / PAGE);
  const p2mLeaves = leaves.filter(({ va }) => va >= info['mfn_list']).slice(0, p2mPages);
  for (const [page, leaf] of p2mLeaves.entries()) {
    expect(leaf.va).toBe(info['mfn_list'] + BigInt(page * PAGE));
    expect(leaf.flags).toBe(0x23);
    for (let slot = 0; slot < 512; slot++) {
      const pfn = page * 512 + slot;
      const expected = pfn < ramPages ? BigInt(pfn + MFN_BASE) : 0n;
      if (machine.u64[leaf.pfn * 512 + slot] !== expected) expect(`p2m entry ${pfn}`).toBe('the MFN');
    }
  }
  const separate = leaves.filter(({ va }) => va < base);
  if (notes.initP2m === undefined) {
    expect(separate).toHaveLength(0);
    expect([info['first_p2m_pfn'], info['nr_p2m_frames']]).toEqual([0n, 0n]);
    expect(tables.size).toBe(ptFrames);
  } else {
    expect(info['mfn_list']).toBe(notes.initP2m);
    expect(separate).toHaveLength(p2mPages);
    expect(Number(info['first_p2m_pfn'])).toBe(separate[0].pfn);
    expect(Number(info['nr_p2m_frames'])).toBe(p2mPages + tables.size - ptFrames);
    const l1s = Math.ceil(p2mPages / 512);
    expect(domain.pageTableFrames.slice(ptFrames).map(({ level }) => level)).toEqual([
      3,
      2,
      ...Array.from({ length: l1s }, () => 1),
    ]);
    expect(Math.max(...tables)).toBeLessThan(ramPages);
  }

  // No page has two uses.
  const ramdiskFirst = ramdisk ? domain.layout.ramdiskPfn : 0;
  const uses = [
    ...Array.from(
      { length: domain.layout.kernelEndPfn - domain.layout.kernelStartPfn },
      (_, n) => domain.layout.kernelStartPfn + n,
    ),
    ...Array.from({ length: ramdisk ? Math.ceil(ramdisk.length / PAGE) : 0 }, (_, n) => ramdiskFirst + n),
    ...p2mLeaves.map(({ pfn }) => pfn),
    ...tables,
    domain.startInfoPfn,
    domain.storePfn,
    domain.consolePfn,
    domain.layout.bootStackPfn,
  ];
  expect(new Set(uses).size).toBe(uses.length);

  // The kernel's segments.
  for (const { offset, paddr, filesz, memsz } of image.elf.loads) {
    const target = paddr - Number(notes.paddrOffset);
    const file = image.bytes.subarray(offset, offset + filesz);
    expect(Buffer.compare(machine.u8.subarray(target, target + filesz), file)).toBe(0);
    expect(Buffer.compare(machine.u8.subarray(target + filesz, target + memsz), ZEROES.subarray(filesz, memsz))).toBe(
      0,
    );
  }
}

describe('buildDomain()', () => {
  test('builds what Linux expects: ramdisk unmapped, p2m at INIT_P2M', () => {
    const ramdisk = ramdiskOf(0x12345);
    const built = build(kernel(), 64 * MIB_PAGES, { ramdisk });
    checkDomain(built, ramdisk);
    expect(built.domain.hypercallPageOffset).toBeUndefined();
  });

  test('maps ramdisk and p2m list after a kernel without MOD_START_PFN and INIT_P2M', () => {
    const ramdisk = ramdiskOf(3 * PAGE);
    const built = build(kernel(withoutNotes), 64 * MIB_PAGES, { ramdisk });
    checkDomain(built, ramdisk);
    expect(built.domain.layout.p2mPfn).toBe(built.domain.layout.ramdiskPfn + 3);
  });

  test('builds a guest at virtual base 0 with a physical offset', () => {
    const image = kernel({ ...withoutNotes, virtBase: 0n, paddrOffset: 0x100000n, entry: 0x10n });
    checkDomain(build(image, 16 * MIB_PAGES), null);
  });

  test('ignores an INIT_P2M at or above the virtual base, or one that is not page aligned', () => {
    for (const initP2m of [LINUX_BASE, LINUX_BASE + 0x40000000n, INIT_P2M + 8n]) {
      const { layout } = build(kernel({ initP2m }), 16 * MIB_PAGES).domain;
      expect(layout.p2mSeparate).toBe(false);
      expect(layout.p2mVa).toBe(LINUX_BASE + BigInt(layout.kernelEndPfn * PAGE));
    }
  });

  test('shares page tables when INIT_P2M lies in the L3 slot of the kernel', () => {
    // Directly below the virtual base, and the base in the middle of an L2.
    const image = kernel({
      virtBase: 0xffffffff90000000n,
      entry: 0xffffffff90100000n,
      initP2m: 0xffffffff8fe00000n,
    });
    const built = build(image, 64 * MIB_PAGES);
    expect(built.domain.layout.p2mTables.map(({ level }) => level)).toEqual([1]);
    expect([...walk(built)].filter(({ va }) => va < 0xffffffff90000000n)).toHaveLength(32);
  });

  test('starts vCPU 0 at the entry point in kernel mode', () => {
    const { vcpu, machine } = build(kernel(), 16 * MIB_PAGES);
    const { u32, u64 } = vcpu;
    expect(u64[VCPU.rip / 8]).toBe(NOTES.entry);
    expect(u64[VCPU.rflags / 8]).toBe(0x202n);
    expect([VCPU.cs, VCPU.ss, VCPU.ds, VCPU.es, VCPU.fs, VCPU.gs].map((offset) => u32[offset / 4])).toEqual([
      0xe033, 0xe02b, 0, 0, 0, 0,
    ]);
    for (let register = 0; register < 16; register++) {
      if (register !== RSP && register !== RSI) expect(u64[VCPU.gpr / 8 + register]).toBe(0n);
    }
    expect(u32[VCPU.kernelSs / 4]).toBe(0xe02b);
    expect(u64[VCPU.kernelSp / 8]).toBe(u64[VCPU.gpr / 8 + RSP]);
    expect(u32[VCPU.userRoot / 4]).toBe(NO_ROOT);
    expect(u32[VCPU.userMode / 4]).toBe(0);
    expect(u32[VCPU.cr4 / 4]).toBe(0x660);
    expect(u32[VCPU.xcr0 / 4]).toBe(1);
    expect(u64[VCPU.dr / 8 + 6]).toBe(0xffff0ff0n);
    expect(u64[VCPU.dr / 8 + 7]).toBe(0x400n);
    expect(u32[VCPU.vcpuInfo / 4]).toBe(machine.layout.sharedInfoOffset);
  });

  test('prepares shared_info, grant table and rings', () => {
    const { machine, domain } = build(kernel(), 16 * MIB_PAGES, {}, 32 * MIB_PAGES);
    const { sharedInfoOffset, grantTableOffset } = machine.layout;
    const page = machine.u8.slice(sharedInfoOffset, sharedInfoOffset + PAGE);
    for (let vcpu = 0; vcpu < 32; vcpu++) {
      const at = SHARED_INFO.vcpu_info + vcpu * VCPU_INFO.SIZE + VCPU_INFO.evtchn_upcall_mask;
      expect(page[at]).toBe(1);
      page[at] = 0;
    }
    expect(page.every((byte) => byte === 0)).toBe(true);
    const grants = Array.from(machine.u32.subarray(grantTableOffset / 4, grantTableOffset / 4 + 6));
    expect(grants).toEqual([1, domain.consoleMfn, 1, domain.storeMfn, 0, 0]);
    const console = machine.u8.slice(domain.consolePfn * PAGE, (domain.consolePfn + 1) * PAGE);
    expect(console.findIndex((byte) => byte !== 0)).toBe(0xc10);
    expect(console[0xc10]).toBe(1);
    const store = machine.u8.slice(domain.storePfn * PAGE, (domain.storePfn + 1) * PAGE);
    expect(store.every((byte) => byte === 0)).toBe(true);
  });

  test('fills the hypercall page that the kernel names', () => {
    const loads = [CODE, { ...DATA, filesz: 0, memsz: 0x8000 }];
    const { machine, domain } = build(kernel({ hypercallPage: LINUX_BASE + 0x203000n }, loads), 16 * MIB_PAGES);
    expect(domain.hypercallPageOffset).toBe(0x203000);
    expect(Array.from(machine.u8.subarray(0x203020, 0x20302a))).toEqual([0x51, 0x41, 0x53, 0xb8, 1, 0, 0, 0, 0x0f, 5]);
    expect(machine.u8[0x202fff]).toBe(0);
    expect(machine.u8[0x204000]).toBe(0);
  });

  test('hands over a command line of 1023 bytes', () => {
    const cmdline = `é${'x'.repeat(1021)}`;
    const { machine, domain } = build(kernel(), 16 * MIB_PAGES, { cmdline });
    const at = domain.startInfoPfn * PAGE + START_INFO.cmd_line;
    expect(text(machine.u8.subarray(at, at + 1024))).toBe(cmdline);
  });

  test('treats an empty ramdisk as none', () => {
    checkDomain(build(kernel(), 16 * MIB_PAGES, { ramdisk: new Uint8Array(0) }), null);
  });

  test('keeps its promises for many sizes of memory, kernel and ramdisk', () => {
    let seed = 0x2545f491;
    const random = (limit: number): number => {
      seed ^= seed << 13;
      seed ^= seed >>> 17;
      seed ^= seed << 5;
      return (seed >>> 0) % limit;
    };
    let builds = 0;
    for (let round = 0; round < 40; round++) {
      const ramPages = 8 * MIB_PAGES + random(120 * MIB_PAGES);
      const notes = [{}, withoutNotes, { modStartPfn: false }, { initP2m: undefined }][round % 4];
      const image = kernel(notes, [CODE, { ...DATA, memsz: 0x800 + random(20 << 20) }]);
      const ramdisk = random(3) === 0 ? null : ramdiskOf(1 + random(16 << 20));
      try {
        checkDomain(build(image, ramPages, { ramdisk }), ramdisk);
        builds++;
      } catch (error) {
        // Too small is an answer as well, if it is right: the parts really need more than there is.
        if (!(error instanceof BuildError)) throw error;
        const size = (ramdisk?.length ?? 0) + image.elf.loads[1].paddr + image.elf.loads[1].memsz;
        expect(size, error.message).toBeGreaterThan(ramPages * PAGE - (7 << 20));
      }
    }
    expect(builds).toBeGreaterThan(20);
  });
});

describe('planLayout()', () => {
  /** PT_LOADs of Debian's 6.1.0-56-amd64. */
  const DEBIAN_LOADS: Load[] = [
    { offset: 0, paddr: 0x1000000, filesz: 0, memsz: 0x18ea9f0 },
    { offset: 0, paddr: 0x2a00000, filesz: 0, memsz: 0x644000 },
    { offset: 0, paddr: 0x3044000, filesz: 0, memsz: 0x35000 },
    { offset: 0, paddr: 0x3079000, filesz: 0, memsz: 0x1987000 },
  ];
  const debian = kernel({ entry: 0xffffffff830791c0n }, DEBIAN_LOADS);

  test('places the ramdisk of Debian 6.1 where real Xen placed it', () => {
    // Real Xen 4.17, 256 MiB: "RAMDISK: [mem 0x04c00000-0x05076fff]".
    const layout = planLayout(debian, 256 * MIB_PAGES, { sizeBytes: 0x477000, name: 'initrd' });
    expect(layout.ramdiskPfn * PAGE).toBe(0x4c00000);
    expect((layout.ramdiskPfn + layout.ramdiskPages) * PAGE - 1).toBe(0x5076fff);
    // 3 + one L1 for each 2 MiB of 76 MiB; 128 pages of p2m behind the ramdisk.
    expect(layout.bootstrapTables).toHaveLength(41);
    expect(layout.p2mPfn).toBe(0x5077);
    expect(layout.p2mPages).toBe(128);
    expect(layout.p2mTables.map(({ level }) => level)).toEqual([3, 2, 1]);
  });

  test('grows the mapping by 4 MiB when its own page tables would cross the padding', () => {
    // Chosen so that 3 pages + tables + stack + padding end exactly at 4 MiB, and one page later.
    const ends = [0, PAGE].map((extra) => {
      const memsz = (1024 - 128 - 1 - 5 - 3) * PAGE + extra - CODE.paddr;
      const layout = planLayout(kernel({}, [{ ...CODE, memsz }]), 32 * MIB_PAGES, null);
      return [layout.mappedEndPfn, layout.bootstrapTables.length];
    });
    expect(ends).toEqual([
      [1024, 5],
      [2048, 7],
    ]);
  });

  test('maps the p2m list of the largest domain with several L1 tables', () => {
    const layout = planLayout(debian, 0xfe000, null);
    expect(layout.p2mPages).toBe(0x7f0);
    expect(layout.p2mTables.map(({ level }) => level)).toEqual([3, 2, 1, 1, 1, 1]);
  });

  const errors: [string, () => unknown, string][] = [
    ['a domain without memory', () => planLayout(debian, 0, null), 'the domain has no memory'],
    [
      'a kernel larger than memory',
      () => planLayout(debian, 32 * MIB_PAGES, null),
      "kernel vmlinuz takes memory up to 74 MiB and does not fit in the domain's 32 MiB of memory",
    ],
    [
      'memory that ends right after the kernel',
      () => planLayout(debian, 75 * MIB_PAGES, null),
      "the domain's 75 MiB of memory is too small: kernel vmlinuz takes it up to 74 MiB, and with what it needs to start 76.2 MiB",
    ],
    [
      'a domain of a few pages',
      () => planLayout(debian, 3, null),
      "kernel vmlinuz takes memory up to 74 MiB and does not fit in the domain's 12 KiB of memory",
    ],
    [
      'a ramdisk larger than memory',
      () => planLayout(debian, 256 * MIB_PAGES, { sizeBytes: 300 << 20, name: 'initrd.img' }),
      "ramdisk initrd.img is 300 MiB and does not fit in the domain's 256 MiB of memory (179.4 MiB free after the kernel)",
    ],
    [
      'a mapped ramdisk larger than memory',
      () => planLayout(kernel(withoutNotes), 64 * MIB_PAGES, { sizeBytes: 64 << 20, name: 'r' }),
      "ramdisk r is 64 MiB and does not fit in the domain's 64 MiB of memory (61 MiB free after the kernel)",
    ],
    [
      'a mapped ramdisk that leaves the 1 GiB slot',
      () => planLayout(kernel(withoutNotes), 2048 * MIB_PAGES, { sizeBytes: 1 << 30, name: 'r' }),
      'kernel vmlinuz: the initial mapping 0xffffffff80000000..0xffffffffc0c00000 (with ramdisk r in it) does not stay within the 1 GiB (one L3 slot) of its virtual base',
    ],
    [
      'a virtual base near the end of its slot',
      () => planLayout(kernel({ virtBase: 0xffffffffbfe00000n, entry: 0xffffffffbff00000n }), 64 * MIB_PAGES, null),
      'kernel vmlinuz: the initial mapping 0xffffffffbfe00000..0xffffffffc0400000 does not stay within the 1 GiB (one L3 slot) of its virtual base',
    ],
    [
      'a mapping past the end of the address space',
      () => planLayout(kernel({ virtBase: 0xfffffffffff00000n }), 64 * MIB_PAGES, null),
      'kernel vmlinuz: the initial mapping 0xfffffffffff00000..0x10000000000400000 is not in the part of the address space that a guest has',
    ],
    [
      'a virtual base that is not canonical',
      () => planLayout(kernel({ virtBase: 0x800000000000n }), 64 * MIB_PAGES, null),
      'is not in the part of the address space that a guest has',
    ],
    [
      "a virtual base in Xen's hole",
      () => planLayout(kernel({ virtBase: 0xffff800000000000n }), 64 * MIB_PAGES, null),
      'is not in the part of the address space that a guest has',
    ],
    [
      'a virtual base that is not page aligned',
      () => planLayout(kernel({ virtBase: LINUX_BASE + 8n }), 64 * MIB_PAGES, null),
      'kernel vmlinuz: virtual base 0xffffffff80000008 is not page aligned',
    ],
    [
      'an entry point outside the image',
      () => planLayout(kernel({ entry: LINUX_BASE }), 64 * MIB_PAGES, null),
      'kernel vmlinuz: entry point 0xffffffff80000000 is outside its image at 0xffffffff80100000..0xffffffff80222000',
    ],
    [
      'a hypercall page outside the image',
      () => planLayout(kernel({ hypercallPage: LINUX_BASE + 0x222000n }), 64 * MIB_PAGES, null),
      'kernel vmlinuz: hypercall page 0xffffffff80222000 is outside its image',
    ],
    [
      'a hypercall page that is not page aligned',
      () => planLayout(kernel({ hypercallPage: LINUX_BASE + 0x100800n }), 64 * MIB_PAGES, null),
      'kernel vmlinuz: hypercall page 0xffffffff80100800 is not page aligned',
    ],
    [
      'a p2m list that runs into the mapping',
      () => planLayout(kernel({ initP2m: LINUX_BASE - 0x1000n }), 64 * MIB_PAGES, null),
      'kernel vmlinuz: the p2m list at 0xffffffff7ffff000..0xffffffff8001f000 overlaps the initial mapping',
    ],
    [
      "a p2m list in Xen's hole",
      () => planLayout(kernel({ initP2m: 0xffff800000000000n }), 64 * MIB_PAGES, null),
      'kernel vmlinuz: the p2m list at 0xffff800000000000..0xffff800000020000 is not in the part of the address space',
    ],
    [
      'no segments',
      () => planLayout(kernel({}, []), 64 * MIB_PAGES, null),
      'kernel vmlinuz: it has no segments to load',
    ],
    [
      'a segment outside the file',
      () => planLayout(kernel({}, [{ ...CODE, offset: 0x4000 }]), 64 * MIB_PAGES, null),
      "kernel vmlinuz: segment 0: 9029 bytes at file offset 16384 pass the file's end at 20480 bytes",
    ],
    [
      'more bytes in the file than in memory',
      () => planLayout(kernel({}, [CODE, { ...DATA, memsz: 0x7ff }]), 64 * MIB_PAGES, null),
      'kernel vmlinuz: segment 1: 2048 bytes in the file, but only 2047 in memory',
    ],
    [
      'a segment outside any memory',
      () => planLayout(kernel({}, [{ ...CODE, paddr: 2 ** 51 }]), 64 * MIB_PAGES, null),
      'kernel vmlinuz: segment 0: guest-physical 0x8000000000000..0x8000000002345 is outside the memory of any domain',
    ],
    [
      'a segment below the physical offset',
      () => planLayout(kernel({ paddrOffset: 0x200000n }), 64 * MIB_PAGES, null),
      'kernel vmlinuz: segment 0: guest-physical 0x-100000..',
    ],
    [
      'a number that is none',
      () => planLayout(kernel({}, [{ ...CODE, memsz: Number.NaN }]), 64 * MIB_PAGES, null),
      'kernel vmlinuz: segment 0: memsz NaN is not a byte count',
    ],
    [
      'a command line of 1024 bytes',
      () => build(kernel(), 16 * MIB_PAGES, { cmdline: `é${'x'.repeat(1022)}` }),
      'the kernel command line is 1024 bytes long; a guest takes at most 1023',
    ],
    [
      'a command line with a NUL',
      () => build(kernel(), 16 * MIB_PAGES, { cmdline: 'a\0b' }),
      'the kernel command line contains a NUL character',
    ],
  ];
  test.each(errors)('refuses %s in one line', (_, attempt, message) => {
    let caught: unknown;
    try {
      attempt();
    } catch (error) {
      caught = error;
    }
    expect(caught).toBeInstanceOf(BuildError);
    expect((caught as BuildError).message).toContain(message);
    expect((caught as BuildError).message).not.toContain('\n');
  });

  test('names the free memory exactly: a ramdisk of that size fits, one page more does not', () => {
    for (const notes of [{}, withoutNotes]) {
      const image = kernel(notes);
      const ramPages = 64 * MIB_PAGES + 3;
      const fits = (pages: number): boolean => {
        try {
          planLayout(image, ramPages, { sizeBytes: pages * PAGE, name: 'r' });
          return true;
        } catch {
          return false;
        }
      };
      let pages = 0;
      while (fits(pages + 1)) pages++;
      const free = `(${Math.floor((pages / 256) * 10) / 10} MiB free after the kernel)`;
      expect(() => planLayout(image, ramPages, { sizeBytes: 1 << 30, name: 'r' })).toThrow(free);
    }
  });

  test('writes nothing when it refuses', () => {
    const machine = createMachineMemory(16 * MIB_PAGES, 16 * MIB_PAGES);
    const opts = { ramdisk: new Uint8Array(32 << 20), cmdline: '', storePort: 1, consolePort: 2 };
    expect(() => buildDomain(machine, createVcpuBlock(0), kernel(), opts)).toThrow(BuildError);
    expect(machine.u32.subarray(0, machine.layout.m2pOffset / 4).every((word) => word === 0)).toBe(true);
  });
});
