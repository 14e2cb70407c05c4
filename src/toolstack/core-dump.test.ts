import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { createDomain, type Domain } from '../hypervisor/domain.ts';
import { createMachineMemory, MFN_BASE, PAGE_SIZE } from '../machine/memory.ts';
import { NO_ROOT, VCPU, VCPU_STATE_UP } from '../machine/vcpu-block.ts';
import { coreDump } from './core-dump.ts';
import { segments } from './core-dump-segments.ts';
import { AptError } from './guest-image/apt.ts';
import { debianTool } from './guest-image/debian-tool.ts';

function dumped(): Buffer {
  const machine = createMachineMemory(8, 10);
  const domain = createDomain(machine, 3, 2, new Uint8Array(16));
  for (let pfn = 0; pfn < 8; pfn++) machine.u8.fill(pfn + 1, pfn * PAGE_SIZE, (pfn + 1) * PAGE_SIZE);
  // Frame 5 was given back.
  machine.u32.fill(0xffffffff, machine.layout.m2pOffset / 4 + 10, machine.layout.m2pOffset / 4 + 12);
  machine.u8[machine.layout.sharedInfoOffset] = 0x5a;
  const { u32 } = domain.vcpus[1];
  u32[VCPU.rip >> 2] = 0x81001234;
  u32[(VCPU.rip >> 2) + 1] = 0xffffffff;
  u32[(VCPU.gpr >> 2) + 8] = 0xdead;
  u32[VCPU.kernelRoot >> 2] = 6;
  u32[VCPU.userRoot >> 2] = NO_ROOT;
  u32[VCPU.state >> 2] = VCPU_STATE_UP;
  return Buffer.concat([...coreDump(domain)]);
}

/** Sections by name, as their headers say. */
function sections(file: Buffer): Map<string, Buffer> {
  const headers = Number(file.readBigUInt64LE(40));
  const part = (i: number): Buffer => {
    const at = headers + i * 64;
    const offset = Number(file.readBigUInt64LE(at + 24));
    return file.subarray(offset, offset + Number(file.readBigUInt64LE(at + 32)));
  };
  const names = part(file.readUInt16LE(62));
  const found = new Map<string, Buffer>();
  for (let i = 1; i < file.readUInt16LE(60); i++) {
    const at = file.readUInt32LE(headers + i * 64);
    found.set(names.toString('latin1', at, names.indexOf(0, at)), part(i));
  }
  return found;
}

it('has the sections of xen/docs/misc/dump-core-format.txt', () => {
  const found = sections(dumped());
  expect([...found.keys()]).toEqual([
    ...['.shstrtab', '.note.Xen', '.xen_prstatus', '.xen_shared_info', '.xen_p2m', '.xen_pages'],
  ]);
  const p2m = found.get('.xen_p2m')!;
  const pfns = [0, 1, 2, 3, 4, 6, 7];
  expect(p2m.length).toBe(pfns.length * 16);
  pfns.forEach((pfn, i) => {
    expect(Number(p2m.readBigUInt64LE(i * 16))).toBe(pfn);
    expect(Number(p2m.readBigUInt64LE(i * 16 + 8))).toBe(pfn + MFN_BASE);
    expect(found.get('.xen_pages')!.subarray(i * PAGE_SIZE, (i + 1) * PAGE_SIZE)).toEqual(
      Buffer.alloc(PAGE_SIZE, pfn + 1),
    );
  });
  expect(found.get('.xen_shared_info')![0]).toBe(0x5a);
  // Offsets in vcpu_guest_context: flags, r8, rip, cr3.
  const second = found.get('.xen_prstatus')!.subarray(0x1430);
  expect(second.length).toBe(0x1430);
  expect(second.readUInt32LE(0x200)).toBe(0x24);
  // u32 word 8 of the block's registers is the low half of rsp.
  expect(second.readBigUInt64LE(0x208 + 0x98)).toBe(0xdeadn);
  expect(second.readBigUInt64LE(0x208 + 0x80)).toBe(0xffffffff81001234n);
  expect(second.readBigUInt64LE(0x1378 + 24)).toBe(BigInt((MFN_BASE + 6) * PAGE_SIZE));
  const notes = found.get('.note.Xen')!;
  // The first has no descriptor; the second is the header.
  expect(notes.toString('latin1', 12, 15)).toBe('Xen');
  expect(notes.readUInt32LE(16 + 8)).toBe(0x2000001);
  const header = Array.from({ length: 4 }, (_, i) => notes.readBigUInt64LE(32 + i * 8));
  expect(header).toEqual([0xf00febedn, 2n, 7n, 4096n]);
});

it('is an ELF file to readelf', (context) => {
  if (spawnSync('readelf', ['--version']).status !== 0) return context.skip('there is no readelf');
  const folder = mkdtempSync(join(tmpdir(), 'domus-core-'));
  try {
    writeFileSync(join(folder, 'core'), dumped());
    const { stderr } = spawnSync('readelf', ['-aW', join(folder, 'core')], { encoding: 'utf8' });
    expect(stderr).toBe('');
    const shown = execFileSync('readelf', ['-hSW', join(folder, 'core')], { encoding: 'utf8' });
    expect(shown).toMatch(/Type: +CORE \(Core file\)/);
    expect(shown).toMatch(/Machine: +Advanced Micro Devices X86-64/);
    expect(shown).toMatch(/\.note\.Xen +NOTE /);
    expect(shown).toMatch(/\.xen_prstatus +PROGBITS +0+ +[0-9a-f]+ 002860 1430 /);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

/** The tables of a guest: from the root 1 to 4, which maps pages; `entries` by their place there. */
function withTables(upper: number, lower: number, entries: Readonly<Record<number, number>>): Domain {
  const domain = createDomain(createMachineMemory(16, 16), 3, 2, new Uint8Array(16));
  const entry = (table: number, index: number, pfn: number): void =>
    domain.machine.u32.set([(pfn << 12) | 0x67, MFN_BASE >>> 20], table * 1024 + index * 2);
  entry(1, upper, 2);
  entry(2, lower, 3);
  entry(3, 8, 4);
  for (const [index, pfn] of Object.entries(entries)) entry(4, Number(index), pfn);
  domain.vcpus[0].u32[VCPU.kernelRoot >> 2] = 1;
  return domain;
}

const ALL = Array.from({ length: 16 }, (_, pfn) => pfn);

it('has a segment for pages that follow each other as both kinds of addresses', () => {
  const page = (511 * 512 + 510) * 512 * 512 + 8 * 512;
  const domain = withTables(511, 510, { 0: 8, 1: 9, 2: 5, 4: 6, 5: 99, 511: 7 });
  expect(segments(domain, ALL)).toEqual([
    { page, pfn: 8, count: 2 },
    { page: page + 2, pfn: 5, count: 1 },
    { page: page + 4, pfn: 6, count: 1 },
    { page: page + 511, pfn: 7, count: 1 },
  ]);
  // One that was given back is not in the dump.
  expect(
    segments(
      domain,
      ALL.filter((pfn) => pfn !== 9),
    )[0],
  ).toEqual({ page, pfn: 8, count: 1 });
  // Slots of Xen's are none of the guest's.
  expect(segments(withTables(257, 0, { 0: 8 }), ALL)).toEqual([]);
  domain.vcpus[0].u32[VCPU.kernelRoot >> 2] = NO_ROOT;
  expect(segments(domain, ALL)).toEqual([]);
});

it('does not follow page tables that lead round and round', () => {
  const domain = withTables(0, 0, {});
  const { u32 } = domain.machine;
  for (let index = 0; index < 512; index++) u32.set([(1 << 12) | 0x67, MFN_BASE >>> 20], 1024 + index * 2);
  expect(segments(domain, ALL).map(({ pfn }) => pfn)).toEqual([1, 1, 1, 1]);
});

it('shows gdb the registers of each vCPU, and what lies at its address', async (context) => {
  const gdb = await debianTool('gdb', 'gdb-minimal').catch((error: unknown) => {
    if (error instanceof AptError) return context.skip(`there is no gdb: ${error.message}`);
    throw error;
  });
  const domain = withTables(511, 510, { 0: 8, 1: 5 });
  const { u8 } = domain.machine;
  // pop %r11; syscall: over the end of a page, to one that is elsewhere in the file.
  u8.set([0x41, 0x5b, 0x0f], 9 * PAGE_SIZE - 3);
  u8[5 * PAGE_SIZE] = 0x05;
  domain.vcpus.forEach(({ u32 }, id) => {
    for (let i = 0; i < 16; i++) u32[(VCPU.gpr >> 2) + i * 2] = 0x100 * (id + 1) + i;
    u32.set([0x81000ffd, 0xffffffff], VCPU.rip >> 2);
    u32[VCPU.rflags >> 2] = 0x246;
    u32[VCPU.cs >> 2] = 0xe033;
  });
  const folder = mkdtempSync(join(tmpdir(), 'domus-core-'));
  try {
    const core = join(folder, 'core');
    writeFileSync(core, Buffer.concat([...coreDump(domain)]));
    const commands = ['x/2i $rip', 'info registers', 'thread 2', 'info registers'].flatMap((line) => ['-ex', line]);
    const said = execFileSync(gdb.path, ['-batch', '-nx', ...commands, '-c', core], {
      ...{ encoding: 'utf8', env: gdb.env, stdio: ['ignore', 'pipe', 'ignore'] },
    });
    expect(said).toMatch(/0xffffffff81000ffd:\s+pop +%r11\n +0xffffffff81000fff:\s+syscall\n/);
    const names = ['rax', 'rcx', 'rdx', 'rbx', 'rsp', 'rbp', 'rsi', 'rdi'];
    for (let r = 8; r < 16; r++) names.push(`r${r}`);
    for (const id of [0, 1]) {
      const shown = new Map(
        said
          .split('Switching to thread')
          [id].split('\n')
          .map((line) => line.split(/\s+/).slice(0, 2) as [string, string]),
      );
      expect(names.map((name) => Number(shown.get(name)))).toEqual(names.map((_, i) => 0x100 * (id + 1) + i));
      expect(shown.get('rip')).toBe('0xffffffff81000ffd');
      expect(shown.get('eflags')).toBe('0x246');
      expect(shown.get('cs')).toBe('0xe033');
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
});
