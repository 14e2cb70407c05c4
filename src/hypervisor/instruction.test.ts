import { expect, test } from 'vitest';
import { MFN_BASE } from '../machine/memory.ts';
import { VCPU } from '../machine/vcpu-block.ts';
import {
  decode,
  effectiveAddress,
  fetchInstruction,
  finishInstruction,
  Instruction,
  instruction,
  registerLo,
  runsLongMode,
  setRegister,
} from './instruction.ts';
import { KERNEL_VA, TestGuest, UNMAPPED_VA, VA_HI } from './testing.ts';

/** GNU as wrote the bytes: [bytes, AT&T text, operand size, reg, immediate, base, index, scale, displacement, 32-bit address]. */
// biome-ignore format: a table
const ASSEMBLED: readonly (readonly [string, string, number, number, number, number, number, number, number, number])[] = [
  ['64660fc14c0990', 'xadd %cx, %fs:-112(%rcx,%rcx,1)', 2, 1, 0, 1, 1, 0, -112, 0],
  ['6766870ccf', 'xchg %cx, (%edi,%ecx,8)', 2, 1, 0, 7, 1, 3, 0, 1],
  ['440fc04c4790', 'xadd %r9b, -112(%rdi,%rax,2)', 1, 9, 0, 7, 0, 1, -112, 0],
  ['66440fb31d20000000', 'btr %r11w, 32(%rip)', 2, 11, 0, -2, -1, 0, 32, 0],
  ['4c0fb11520000000', 'cmpxchg %r10, 32(%rip)', 8, 10, 0, -2, -1, 0, 32, 0],
  ['49814c591034120000', 'orq $4660, 16(%r9,%rbx,2)', 8, 1, 4660, 9, 3, 1, 16, 0],
  ['4d016d00', 'add %r13, (%r13)', 8, 13, 0, 13, -1, 0, 0, 0],
  ['4c293500e0ffff', 'sub %r14, -8192(%rip)', 8, 14, 0, -2, -1, 0, -8192, 0],
  ['674589b7bbdcfeff', 'mov %r14d, -74565(%r15d)', 4, 14, 0, 15, -1, 0, -74565, 1],
  ['420fb0748010', 'cmpxchg %sil, 16(%rax,%r8,4)', 1, 6, 0, 0, 8, 2, 16, 0],
  ['418324fcfe', 'andl $-2, (%r12,%rdi,8)', 4, 4, -2, 12, 7, 3, 0, 0],
  ['6466438344db1001', 'addw $1, %fs:16(%r11,%r11,8)', 2, 0, 1, 11, 11, 3, 16, 0],
  ['678134ad0001000088a9cbed', 'xorl $-305419896, 256(,%ebp,4)', 4, 6, -305419896, -1, 5, 2, 256, 1],
  ['654c0fc32520000000', 'movnti %r12, %gs:32(%rip)', 8, 12, 0, -2, -1, 0, 32, 0],
  ['64f049830424fe', 'lock addq $-2, %fs:(%r12)', 8, 0, -2, 12, -1, 0, 0, 0],
  ['808c240010000001', 'orb $1, 4096(%rsp)', 1, 1, 1, 4, -1, 0, 4096, 0],
  ['f04b0fbab493f0ffff073d', 'lock btrq $61, 134217712(%r11,%r10,4)', 8, 6, 61, 11, 10, 2, 134217712, 0],
  ['67410070f8', 'add %sil, -8(%r8d)', 1, 6, 0, 8, -1, 0, -8, 1],
  ['44871c15000000c0', 'xchg %r11d, -1073741824(,%rdx,1)', 4, 11, 0, -1, 2, 0, -1073741824, 0],
  ['664331745a10', 'xor %si, 16(%r10,%r11,2)', 2, 6, 0, 10, 11, 1, 16, 0],
  ['420fbaaca8f0ffff0716', 'btsl $22, 134217712(%rax,%r13,4)', 4, 5, 22, 0, 13, 2, 134217712, 0],
  ['42807447907f', 'xorb $127, -112(%rdi,%r8,2)', 1, 6, 127, 7, 8, 1, -112, 0],
  ['4c0fc33d20000000', 'movnti %r15, 32(%rip)', 8, 15, 0, -2, -1, 0, 32, 0],
  ['664287aceaf0ffff07', 'xchg %bp, 134217712(%rdx,%r13,8)', 2, 5, 0, 2, 13, 3, 134217712, 0],
  ['f0490fbab6bbdcfeff2c', 'lock btrq $44, -74565(%r14)', 8, 6, 44, 14, -1, 0, -74565, 0],
  ['4801b300100000', 'add %rsi, 4096(%rbx)', 8, 6, 0, 3, -1, 0, 4096, 0],
  ['45296c9810', 'sub %r13d, 16(%r8,%rbx,4)', 4, 13, 0, 8, 3, 2, 16, 0],
  ['490fc1a6bbdcfeff', 'xadd %rsp, -74565(%r14)', 8, 4, 0, 14, -1, 0, -74565, 0],
  ['65480fc32cc500010000', 'movnti %rbp, %gs:256(,%rax,8)', 8, 5, 0, -1, 0, 3, 256, 0],
  ['674a0fc11c0d000000c0', 'xadd %rbx, -1073741824(,%r9d,1)', 8, 3, 0, -1, 9, 0, -1073741824, 1],
  ['48c7460888a9cbed', 'movq $-305419896, 8(%rsi)', 8, 0, -305419896, 6, -1, 0, 8, 0],
  ['646766450fab8200100000', 'bts %r8w, %fs:4096(%r10d)', 2, 8, 0, 10, -1, 0, 4096, 1],
  ['644a09244d000000c0', 'or %rsp, %fs:-1073741824(,%r9,2)', 8, 4, 0, -1, 9, 1, -1073741824, 0],
  ['64410fbaac4af0ffff0709', 'btsl $9, %fs:134217712(%r10,%rcx,2)', 4, 5, 9, 10, 1, 1, 134217712, 0],
  ['4bc78478f0ffff0778563412', 'movq $305419896, 134217712(%r8,%r15,2)', 8, 0, 305419896, 8, 15, 1, 134217712, 0],
  ['4c0fc11520000000', 'xadd %r10, 32(%rip)', 8, 10, 0, -2, -1, 0, 32, 0],
  ['4a0fb104a2', 'cmpxchg %rax, (%rdx,%r12,4)', 8, 0, 0, 2, 12, 2, 0, 0],
  ['65480fc31c2d00010000', 'movnti %rbx, %gs:256(,%rbp,1)', 8, 3, 0, -1, 5, 0, 256, 0],
  ['67440fb3a46df0ffff07', 'btr %r12d, 134217712(%ebp,%ebp,2)', 4, 12, 0, 5, 5, 1, 134217712, 1],
  ['656766f0420fba34850001000002', 'lock btrw $2, %gs:256(,%r8d,4)', 2, 6, 2, -1, 8, 2, 256, 1],
  ['67879a00100000', 'xchg %ebx, 4096(%edx)', 4, 3, 0, 2, -1, 0, 4096, 1],
  ['6566f0430fba6cbd1005', 'lock btsw $5, %gs:16(%r13,%r15,4)', 2, 5, 5, 13, 15, 2, 16, 0],
  ['f0480fba74ee1004', 'lock btrq $4, 16(%rsi,%rbp,8)', 8, 6, 4, 6, 5, 3, 16, 0],
  ['4e873ccd00010000', 'xchg %r15, 256(,%r9,8)', 8, 15, 0, -1, 9, 3, 256, 0],
  ['6566470fbb646110', 'btc %r12w, %gs:16(%r9,%r12,2)', 2, 12, 0, 9, 12, 1, 16, 0],
  ['482128', 'and %rbp, (%rax)', 8, 5, 0, 0, -1, 0, 0, 0],
  ['640fbb0d00e0ffff', 'btc %ecx, %fs:-8192(%rip)', 4, 1, 0, -2, -1, 0, -8192, 0],
  ['410fc17c8690', 'xadd %edi, -112(%r14,%rax,4)', 4, 7, 0, 14, 0, 2, -112, 0],
  ['67410fb1741390', 'cmpxchg %esi, -112(%r11d,%edx,1)', 4, 6, 0, 11, 2, 0, -112, 1],
  ['f04180307f', 'lock xorb $127, (%r8)', 1, 6, 127, 8, -1, 0, 0, 0],
  ['66460fb14cdc90', 'cmpxchg %r9w, -112(%rsp,%r11,8)', 2, 9, 0, 4, 11, 3, -112, 0],
  ['480fbb2520000000', 'btc %rsp, 32(%rip)', 8, 4, 0, -2, -1, 0, 32, 0],
  ['656642c70435000100003412', 'movw $4660, %gs:256(,%r14,1)', 2, 0, 4660, -1, 14, 0, 256, 0],
  ['646641c78600100000feff', 'movw $-2, %fs:4096(%r14)', 2, 0, -2, 14, -1, 0, 4096, 0],
  ['42c7841af0ffff07feffffff', 'movl $-2, 134217712(%rdx,%r11,1)', 4, 0, -2, 2, 11, 0, 134217712, 0],
  ['430fb30cc6', 'btr %ecx, (%r14,%r8,8)', 4, 1, 0, 14, 8, 3, 0, 0],
  ['44290d20000000', 'sub %r9d, 32(%rip)', 4, 9, 0, -2, -1, 0, 32, 0],
  ['6645877cc790', 'xchg %r15w, -112(%r15,%rax,8)', 2, 15, 0, 15, 0, 3, -112, 0],
  ['66460fc10cc5000000c0', 'xadd %r9w, -1073741824(,%r8,8)', 2, 9, 0, -1, 8, 3, -1073741824, 0],
  ['664331b401f0ffff07', 'xor %si, 134217712(%r9,%r8,1)', 2, 6, 0, 9, 8, 0, 134217712, 0],
  ['67f0410fba700817', 'lock btrl $23, 8(%r8d)', 4, 6, 23, 8, -1, 0, 8, 1],
  ['6431a410f0ffff07', 'xor %esp, %fs:134217712(%rax,%rdx,1)', 4, 4, 0, 0, 2, 0, 134217712, 0],
  ['4a291cb3', 'sub %rbx, (%rbx,%r14,4)', 8, 3, 0, 3, 14, 2, 0, 0],
  ['450fab1ca9', 'bts %r11d, (%r9,%rbp,4)', 4, 11, 0, 9, 5, 2, 0, 0],
  ['664501440890', 'add %r8w, -112(%r8,%rcx,1)', 2, 8, 0, 8, 1, 0, -112, 0],
  ['4b0fb334eb', 'btr %rsi, (%r11,%r13,8)', 8, 6, 0, 11, 13, 3, 0, 0],
  ['64450fb3be00100000', 'btr %r15d, %fs:4096(%r14)', 4, 15, 0, 14, -1, 0, 4096, 0],
  ['67442104d5000000c0', 'and %r8d, -1073741824(,%edx,8)', 4, 8, 0, -1, 2, 3, -1073741824, 1],
  ['438004cf01', 'addb $1, (%r15,%r9,8)', 1, 0, 1, 15, 9, 3, 0, 0],
  ['66420fc13c85000000c0', 'xadd %di, -1073741824(,%r8,4)', 2, 7, 0, -1, 8, 2, -1073741824, 0],
  ['6567668374729001', 'xorw $1, %gs:-112(%edx,%esi,2)', 2, 6, 1, 2, 6, 1, -112, 1],
  ['65440fb15cbe90', 'cmpxchg %r11d, %gs:-112(%rsi,%rdi,4)', 4, 11, 0, 6, 7, 2, -112, 0],
  ['65674a81045d0001000078563412', 'addq $305419896, %gs:256(,%r11d,2)', 8, 0, 305419896, -1, 11, 1, 256, 1],
  ['0fb094c4f0ffff07', 'cmpxchg %dl, 134217712(%rsp,%rax,8)', 1, 2, 0, 4, 0, 3, 134217712, 0],
  ['644280044500010000fe', 'addb $-2, %fs:256(,%r8,2)', 1, 0, -2, -1, 8, 1, 256, 0],
  ['89644110', 'mov %esp, 16(%rcx,%rax,2)', 4, 4, 0, 1, 0, 1, 16, 0],
  ['6466f04283342500010000fe', 'lock xorw $-2, %fs:256(,%r12,1)', 2, 6, -2, -1, 12, 0, 256, 0],
  ['66418349f8fe', 'orw $-2, -8(%r9)', 2, 1, -2, 9, -1, 0, -8, 0],
  ['64f049832101', 'lock andq $1, %fs:(%r9)', 8, 4, 1, 9, -1, 0, 0, 0],
  ['6641318487f0ffff07', 'xor %ax, 134217712(%r15,%rax,4)', 2, 0, 0, 15, 0, 2, 134217712, 0],
  ['65f0830520000000fe', 'lock addl $-2, %gs:32(%rip)', 4, 0, -2, -2, -1, 0, 32, 0],
  ['430fb3645710', 'btr %esp, 16(%r15,%r10,2)', 4, 4, 0, 15, 10, 1, 16, 0],
  ['c6800010000001', 'movb $1, 4096(%rax)', 1, 0, 1, 0, -1, 0, 4096, 0],
  ['013520000000', 'add %esi, 32(%rip)', 4, 6, 0, -2, -1, 0, 32, 0],
  ['6448292c85000000c0', 'sub %rbp, %fs:-1073741824(,%rax,4)', 8, 5, 0, -1, 0, 2, -1073741824, 0],
  ['676644876208', 'xchg %r12w, 8(%edx)', 2, 12, 0, 2, -1, 0, 8, 1],
  ['6466440fb154c210', 'cmpxchg %r10w, %fs:16(%rdx,%rax,8)', 2, 10, 0, 2, 0, 3, 16, 0],
  ['410fb04cdd00', 'cmpxchg %cl, (%r13,%rbx,8)', 1, 1, 0, 13, 3, 3, 0, 0],
  ['44280500e0ffff', 'sub %r8b, -8192(%rip)', 1, 8, 0, -2, -1, 0, -8192, 0],
  ['f0480fba2d00e0ffff1d', 'lock btsq $29, -8192(%rip)', 8, 5, 29, -2, -1, 0, -8192, 0],
  ['64664383a4f8f0ffff0701', 'andw $1, %fs:134217712(%r8,%r15,8)', 2, 4, 1, 8, 15, 3, 134217712, 0],
  ['4c291d20000000', 'sub %r11, 32(%rip)', 8, 11, 0, -2, -1, 0, 32, 0],
  ['4a09144d000000c0', 'or %rdx, -1073741824(,%r9,2)', 8, 2, 0, -1, 9, 1, -1073741824, 0],
  ['65412034d2', 'and %sil, %gs:(%r10,%rdx,8)', 1, 6, 0, 10, 2, 3, 0, 0],
  ['6467660fb39c5df0ffff07', 'btr %bx, %fs:134217712(%ebp,%ebx,2)', 2, 3, 0, 5, 3, 1, 134217712, 1],
  ['66f043834c9090fe', 'lock orw $-2, -112(%r8,%r10,4)', 2, 1, -2, 8, 10, 2, -112, 0],
  ['66818436f0ffff073412', 'addw $4660, 134217712(%rsi,%rsi,1)', 2, 0, 4660, 6, 6, 0, 134217712, 0],
  ['4c0958f8', 'or %r11, -8(%rax)', 8, 11, 0, 0, -1, 0, -8, 0],
  ['67664429744310', 'sub %r14w, 16(%ebx,%eax,2)', 2, 14, 0, 3, 0, 1, 16, 1],
  ['0fbb3520000000', 'btc %esi, 32(%rip)', 4, 6, 0, -2, -1, 0, 32, 0],
  ['67660fb30499', 'btr %ax, (%ecx,%ebx,4)', 2, 0, 0, 1, 3, 2, 0, 1],
  ['f04a0fba7495003d', 'lock btrq $61, (%rbp,%r10,4)', 8, 6, 61, 5, 10, 2, 0, 0],
  ['65674e214c1c10', 'and %r9, %gs:16(%esp,%r11d,1)', 8, 9, 0, 4, 11, 0, 16, 1],
  ['430fc3b4a1f0ffff07', 'movnti %esi, 134217712(%r9,%r12,4)', 4, 6, 0, 9, 12, 2, 134217712, 0],
  ['48c78478f0ffff0788a9cbed', 'movq $-305419896, 134217712(%rax,%rdi,2)', 8, 0, -305419896, 0, 7, 1, 134217712, 0],
  ['44305c0410', 'xor %r11b, 16(%rsp,%rax,1)', 1, 11, 0, 4, 0, 0, 16, 0],
  ['4d877c6b10', 'xchg %r15, 16(%r11,%rbp,2)', 8, 15, 0, 11, 5, 1, 16, 0],
  ['4a0fab9434f0ffff07', 'bts %rdx, 134217712(%rsp,%r14,1)', 8, 2, 0, 4, 14, 0, 134217712, 0],
  ['4a092c5d000000c0', 'or %rbp, -1073741824(,%r11,2)', 8, 5, 0, -1, 11, 1, -1073741824, 0],
  ['64660175f8', 'add %si, %fs:-8(%rbp)', 2, 6, 0, 5, -1, 0, -8, 0],
];

const RIP_RELATIVE = -2;
const MASK64 = (1n << 64n) - 1n;

function place(guest: TestGuest, hex: string, va: number): void {
  const bytes = hex.match(/../g)?.map((byte) => Number.parseInt(byte, 16)) ?? [];
  guest.machine.u8.set(bytes, va - KERNEL_VA);
  guest.vcpu.block.u32[VCPU.rip >> 2] = va;
  guest.vcpu.block.u32[(VCPU.rip >> 2) + 1] = VA_HI;
  guest.vcpu.block.u32[VCPU.cs >> 2] = 0xe033;
}

function decoded(hex: string, long = true): Instruction | undefined {
  const record = new Instruction();
  const bytes = hex.match(/../g)?.map((byte) => Number.parseInt(byte, 16)) ?? [];
  record.bytes.set(bytes);
  record.fetched = bytes.length;
  return decode(record, long) ? record : undefined;
}

test.each(ASSEMBLED)('%s is %s', (hex, text, size, reg, immediate, base, index, scale, displacement, short) => {
  const guest = new TestGuest();
  const { vcpu } = guest;
  const { u64 } = vcpu.block;
  place(guest, hex, KERNEL_VA + 0x100);
  for (let r = 0; r < 16; r++) u64[(VCPU.gpr >> 3) + r] = (0x123456789abcdefn * BigInt(r * r + 17)) & MASK64;
  u64[VCPU.fsBase >> 3] = 0x7fff_1234_5678n;
  u64[VCPU.gsBase >> 3] = 0xffff_8880_ffff_f000n;
  expect(fetchInstruction(vcpu)).toBe(true);
  const i = instruction;
  expect(i.length).toBe(hex.length / 2);
  expect(i.operandSize).toBe(size);
  expect(i.reg).toBe(reg);
  expect(i.lock).toBe(text.startsWith('lock '));
  expect(BigInt.asIntN(64, (BigInt(i.immediateHi) << 32n) | BigInt(i.immediateLo))).toBe(BigInt(immediate));
  let address = BigInt(displacement);
  if (base === RIP_RELATIVE) address += u64[VCPU.rip >> 3] + BigInt(hex.length / 2);
  else if (base >= 0) address += u64[(VCPU.gpr >> 3) + base];
  if (index >= 0) address += u64[(VCPU.gpr >> 3) + index] << BigInt(scale);
  if (short !== 0) address &= 0xffffffffn;
  if (text.includes('%fs:')) address += u64[VCPU.fsBase >> 3];
  if (text.includes('%gs:')) address += u64[VCPU.gsBase >> 3];
  effectiveAddress(vcpu);
  expect((BigInt(i.addressHi) << 32n) | BigInt(i.addressLo)).toBe(address & MASK64);
});

test('privileged instructions have their lengths', () => {
  const lengths: readonly (readonly [string, number, number])[] = [
    ['0f30', 0x0f30, 2], // wrmsr
    ['0f32', 0x0f32, 2], // rdmsr
    ['0fa2', 0x0fa2, 2], // cpuid
    ['0f06', 0x0f06, 2], // clts
    ['f30f09', 0x0f09, 3], // wbnoinvd
    ['0f20c0', 0x0f20, 3], // mov %cr0, %rax
    ['440f20c0', 0x0f20, 4], // mov %cr8, %rax
    ['410f22df', 0x0f22, 4], // mov %r15, %cr3
    ['0f20040c', 0x0f20, 3], // mod is ignored: mov %cr0, %rsp
    ['0f23f8', 0x0f23, 3], // mov %rax, %dr7
    ['0f01d1', 0x0f01, 3], // xsetbv
    ['0f01f9', 0x0f01, 3], // rdtscp
    ['e461', 0xe4, 2], // in $0x61, %al
    ['66ed', 0xed, 2], // in %dx, %ax
    ['f36c', 0x6c, 2], // rep insb
    ['fa', 0xfa, 1], // cli
  ];
  for (const [hex, opcode, length] of lengths) expect(decoded(hex + '90'), hex).toMatchObject({ opcode, length });
});

test('a REX that is not the last prefix counts for nothing', () => {
  expect(decoded('48668907')).toMatchObject({ rex: 0, operandSize: 2 });
  expect(decoded('66488907')).toMatchObject({ rex: 0x48, operandSize: 8 });
});

test('in 32-bit code 40..4f are no prefixes, and 16-bit addressing is not decoded', () => {
  expect(decoded('488907', false)).toBeUndefined();
  expect(decoded('8907', false)).toMatchObject({ operandSize: 4, base: 7 });
  expect(decoded('890578563412', false)).toMatchObject({ ripRelative: false, displacement: 0x12345678 });
  expect(decoded('678907', false)).toBeUndefined();
});

test('what Xen does not emulate is not decoded, nor what is cut off', () => {
  for (const hex of ['0f05', '90', 'c3', '0f3800', 'ff20', '488b07'])
    expect(decoded(hex + '0000000000'), hex).toBeUndefined();
  for (const hex of ['', '66', '48', '0f', '89', '8904', '8945', 'c707010203', '0fba28']) {
    expect(decoded(hex), hex).toBeUndefined();
  }
  expect(decoded('66'.repeat(14) + '89')).toBeUndefined();
});

test('every byte string is decoded within its bounds', () => {
  const record = new Instruction();
  let seed = 1;
  for (let n = 0; n < 50_000; n++) {
    for (let k = 0; k < 15; k++) record.bytes[k] = seed = ((Math.imul(seed, 1103515245) + 12345) >>> 0) >>> 3;
    record.fetched = n % 16;
    if (decode(record, (n & 1) === 0)) expect(record.length).toBeLessThanOrEqual(record.fetched);
  }
});

test('fetchInstruction() reads across a page, and as far as pages go', () => {
  const guest = new TestGuest({ ramPages: 16 });
  place(guest, '48c7450001000000', KERNEL_VA + 0x1ffd);
  expect(fetchInstruction(guest.vcpu)).toBe(true);
  expect(instruction).toMatchObject({ opcode: 0xc7, length: 8, fetched: 15 });
  guest.map(KERNEL_VA + 0x2000, VA_HI, MFN_BASE + 2, 0);
  expect(fetchInstruction(guest.vcpu)).toBe(false);
  expect(instruction.fetched).toBe(3);
  place(guest, '0fa2', KERNEL_VA + 0x1ffe);
  expect(fetchInstruction(guest.vcpu)).toBe(true);
  guest.vcpu.block.u32[VCPU.rip >> 2] = UNMAPPED_VA;
  expect(fetchInstruction(guest.vcpu)).toBe(false);
});

test('fetchInstruction() in user mode reads through the user root', () => {
  const guest = new TestGuest();
  place(guest, '0fa2', KERNEL_VA);
  guest.vcpu.block.u32[VCPU.userMode >> 2] = 1;
  expect(fetchInstruction(guest.vcpu)).toBe(false);
  guest.vcpu.block.u32[VCPU.userRoot >> 2] = guest.root;
  expect(fetchInstruction(guest.vcpu)).toBe(true);
});

test('runsLongMode() takes the L bit from the GDT', () => {
  const guest = new TestGuest();
  const { u32 } = guest.vcpu.block;
  const mode = (cs: number): boolean => {
    u32[VCPU.cs >> 2] = cs;
    return runsLongMode(guest.vcpu);
  };
  u32[VCPU.gdtEntries >> 2] = 16;
  u32[VCPU.gdtFrames >> 2] = 3;
  guest.setWords(KERNEL_VA + 0x3000 + 0x30, [0xffff, 0x00affb00]);
  guest.setWords(KERNEL_VA + 0x3000 + 0x20, [0xffff, 0x00cffb00]);
  expect([0xe033, 0xe030, 0xe023, 0x33, 0x23, 0x37, 0x1003].map(mode)).toEqual([
    true,
    true,
    false,
    true,
    false,
    false,
    false,
  ]);
});

test('finishInstruction() carries into the high word and clears RF', () => {
  const guest = new TestGuest();
  const { u32 } = guest.vcpu.block;
  instruction.length = 7;
  instruction.long = true;
  u32[VCPU.rip >> 2] = 0xfffffffd;
  u32[(VCPU.rip >> 2) + 1] = 0xffff8000;
  u32[VCPU.rflags >> 2] = 0x10202;
  finishInstruction(guest.vcpu);
  expect([u32[VCPU.rip >> 2], u32[(VCPU.rip >> 2) + 1], u32[VCPU.rflags >> 2]]).toEqual([4, 0xffff8001, 0x202]);
});

test('setRegister() leaves or clears what is above, as the CPU does', () => {
  const { vcpu } = new TestGuest();
  const read = (): bigint => vcpu.block.u64[VCPU.gpr >> 3];
  const set = (register: number, size: number, rex: number): bigint => {
    vcpu.block.u64[VCPU.gpr >> 3] = 0x1111222233334444n;
    instruction.rex = rex;
    setRegister(vcpu, register, size, 0xabcdef01, 0x99);
    return read();
  };
  expect(set(0, 8, 0)).toBe(0x99abcdef01n);
  expect(set(0, 4, 0)).toBe(0xabcdef01n);
  expect(set(0, 2, 0)).toBe(0x111122223333ef01n);
  expect(set(0, 1, 0)).toBe(0x1111222233334401n);
  expect(set(4, 1, 0)).toBe(0x1111222233330144n);
  expect(registerLo(vcpu, 4, 1)).toBe(0x01);
  instruction.rex = 0x40;
  expect(registerLo(vcpu, 4, 1)).toBe(0);
});
