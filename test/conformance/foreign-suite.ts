/**
 * Tests of others: FEX-Emu's assembly tests (unittests/ASM of its repository), from a folder. Each is a file in nasm's syntax with
 * what the registers hold at its HLT, as JSON:
 *
 *     %ifdef CONFIG
 *     { "RegData": { "RAX": "0x6", "XMM0": ["0x1", "0x2"], "MM0": ["0x8000000000000000", "0x3fff"] },
 *       "MemoryRegions": { "0x100000000": "4096" }, "HostFeatures": ["SSE4.1"] }
 *     %endif
 *
 * Source of the machine they expect: FEX, Source/Tools/CommonTools/HarnessHelpers.h: code at 0x10000, ten pages at 0xe0000000, two
 * at 0xe7fff000, all registers zero, x87 as FNINIT leaves it, all pages with all rights.
 */

import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { EXIT_EXCEPTION, EXIT_INTERRUPTED } from '../../src/engine/engine.ts';
import { monotonicNs } from '../../src/engine/kvm/host.ts';
import { SHOWN_FEATURES } from '../../src/engine/wasm/cpuid.ts';
import { DECODE_OK, decode } from '../../src/engine/x86/decoder.ts';
import { FORMS } from '../../src/engine/x86/forms.ts';
import { Instruction } from '../../src/engine/x86/instruction.ts';
import { FEATURES_ALL, showFeatures } from '../../src/engine/x86/tables.ts';
import { createMachineMemory, PAGE_SIZE } from '../../src/machine/memory.ts';
import { VCPU } from '../../src/machine/vcpu-block.ts';
import { GDT_FRAME, XCR0 } from './layout.ts';
import { type Subject, setBlock } from './machine.ts';
import { PageTables, USER, WRITABLE } from './page-tables.ts';
import type { Candidate } from './subjects.ts';

const CODE_VA = 0x10000n;
/** The stub that loads and saves FP state, and where. */
const STUB_VA = 0x7f000000;
const IMAGE_VA = STUB_VA + PAGE_SIZE;
const REGIONS: readonly (readonly [va: bigint, pages: number])[] = [
  [0xe0000000n, 10],
  [0xe7fff000n, 2],
];
/** Frames that a subject has; each test takes new ones, so that nothing of the last is left in any cache. */
const FRAMES = 24 * 1024;
const FRAMES_OF_A_TEST_MAX = 2048;
const RUN_NS = 5e9;
const HLT = 0xf4;
const GENERAL_PROTECTION = 13;

/** What the engines have of FEX's names. */
const FEATURES = new Set(['SSSE3', 'SSE4.1', 'SSE4.2', 'MOVBE', 'AVX', 'BMI1', 'BMI2', 'XSAVE']);
/** Where the suite itself says that a test is not for every CPU. */
const LISTS = ['Disabled_Tests', 'Disabled_Tests_host', 'Known_Failures', 'Known_Failures_host'];
/** Tests by name that cannot pass here. */
const LEFT_OUT: Readonly<Record<string, string>> = {
  'VEX/vpclmulqdq_256.asm': 'needs VPCLMULQDQ',
  'PrimaryGroup/5_FF_05.asm': 'far pointers of AMD’s CPUs, which have 32 bits of offset whatever REX.W says',
  'PrimaryGroup/5_FF_05_03_o64.asm': 'far pointers of AMD’s CPUs, which have 32 bits of offset whatever REX.W says',
  'PrimaryGroup/5_FF_05_03_o64_imm.asm': 'far pointers of AMD’s CPUs, which have 32 bits of offset whatever REX.W says',
};
/** In the order of the vCPU block. */
const GPRS = 'RAX RCX RDX RBX RSP RBP RSI RDI R8 R9 R10 R11 R12 R13 R14 R15'.split(' ');

export interface ForeignTest {
  readonly name: string;
  readonly path: string;
  readonly registers: ReadonlyMap<string, readonly bigint[]>;
  readonly regions: readonly (readonly [va: bigint, bytes: number])[];
  readonly memory: readonly (readonly [va: bigint, bytes: readonly number[]])[];
}

/** What a suite holds: tests for these engines, and how many others by reason. */
export interface ForeignSuite {
  readonly tests: readonly ForeignTest[];
  readonly skipped: ReadonlyMap<string, number>;
}

interface Config {
  readonly REGDATA?: Readonly<Record<string, string | readonly string[]>>;
  readonly MEMORYREGIONS?: Readonly<Record<string, string>>;
  readonly MEMORYDATA?: Readonly<Record<string, string>>;
  readonly HOSTFEATURES?: readonly string[];
  readonly MODE?: string;
  readonly ENV?: Readonly<Record<string, string>>;
}

function configOf(source: string): Config | null {
  const from = source.indexOf('%ifdef CONFIG');
  const to = source.indexOf('%endif', from);
  if (from < 0 || to < 0) return null;
  const parsed: unknown = JSON.parse(source.slice(from + '%ifdef CONFIG'.length, to));
  if (typeof parsed !== 'object' || parsed === null) return null;
  return Object.fromEntries(Object.entries(parsed).map(([key, value]) => [key.toUpperCase(), value]));
}

/** Why a test is not for these engines. */
function skipReason(config: Config): string | undefined {
  if (config.MODE?.toUpperCase() === '32BIT') return '32-bit code';
  const missing = config.HOSTFEATURES?.map((name) => name.toUpperCase()).find((name) => !FEATURES.has(name));
  if (missing !== undefined) return `needs ${missing}`;
  if (config.ENV?.['FEX_X87REDUCEDPRECISION'] !== undefined) return 'x87 with reduced precision';
  return undefined;
}

/** Bytes of a string of hexadecimal numbers: each is little-endian. */
function hexBytes(text: string): number[] {
  return text.split(' ').flatMap((number) => {
    const digits = number.replace(/^0x/, '');
    const bytes: number[] = [];
    for (let end = digits.length; end > 0; end -= 2)
      bytes.push(Number.parseInt(digits.slice(Math.max(0, end - 2), end), 16));
    return bytes;
  });
}

/** Names in one of the suite's lists of exceptions. */
function readList(path: string): string[] {
  if (!existsSync(path)) return [];
  return readFileSync(path, 'utf8')
    .split('\n')
    .map((line) => line.trim().replace(/^Test_/, ''));
}

/** Reads the tests of a folder and its folders. Throws for a test whose JSON cannot be read. */
export function loadSuite(folder: string): ForeignSuite {
  const tests: ForeignTest[] = [];
  const skipped = new Map<string, number>();
  const paths = readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith('.asm'))
    .map((entry) => join(entry.parentPath, entry.name))
    .sort();
  const listed = new Set(LISTS.flatMap((name) => readList(join(folder, name))));
  for (const path of paths) {
    const name = relative(folder, path);
    const config = configOf(readFileSync(path, 'utf8'));
    const reason =
      config === null ? 'no JSON' : listed.has(name) ? 'disabled by the suite' : (LEFT_OUT[name] ?? skipReason(config));
    if (config === null || reason !== undefined) {
      skipped.set(reason ?? '', (skipped.get(reason ?? '') ?? 0) + 1);
      continue;
    }
    const registers = Object.entries(config.REGDATA ?? {}).map(
      ([name, values]) => [name.toUpperCase(), (typeof values === 'string' ? [values] : values).map(BigInt)] as const,
    );
    tests.push({
      name,
      path,
      registers: new Map(registers),
      regions: Object.entries(config.MEMORYREGIONS ?? {}).map(([va, bytes]) => [BigInt(va), Number(bytes)] as const),
      memory: Object.entries(config.MEMORYDATA ?? {}).map(([va, text]) => [BigInt(va), hexBytes(text)] as const),
    });
  }
  return { tests, skipped };
}

/** Assembles with nasm, as FEX does. */
export class Assembler {
  readonly #folder: string;
  readonly #scratch = mkdtempSync(join(tmpdir(), 'domus-suite-'));

  constructor(folder: string) {
    this.#folder = folder;
  }

  assemble(test: ForeignTest): Uint8Array {
    const source = join(this.#scratch, 'test.asm');
    const binary = join(this.#scratch, 'test.bin');
    writeFileSync(source, `BITS 64\n${readFileSync(test.path, 'utf8')}\nret\n`);
    execFileSync('nasm', ['-i', `${join(this.#folder, 'Includes')}/`, source, '-o', binary], { stdio: 'pipe' });
    return readFileSync(binary);
  }

  close(): void {
    rmSync(this.#scratch, { recursive: true });
  }
}

export function hasNasm(): boolean {
  try {
    execFileSync('nasm', ['--version'], { stdio: 'pipe' });
    return true;
  } catch {
    return false;
  }
}

const dword = (value: number): number[] => [
  value & 0xff,
  (value >> 8) & 0xff,
  (value >> 16) & 0xff,
  (value >> 24) & 0xff,
];
/** mov ecx, [IMAGE]; mov [IMAGE], ecx: PVM's emulator may take the first access to a page, and knows no XSAVE. */
const TOUCH = [...[0x8b, 0x0c, 0x25, ...dword(IMAGE_VA)], ...[0x89, 0x0c, 0x25, ...dword(IMAGE_VA)]];
/** mov eax, XCR0; xor edx, edx */
const ALL_STATE = [0xb8, ...dword(XCR0), 0x31, 0xd2];
/** xrstor64 [IMAGE]; xor ecx, ecx; xor eax, eax; jmp r15 */
const LOAD = [
  ...TOUCH,
  ...ALL_STATE,
  ...[0x48, 0x0f, 0xae, 0x2c, 0x25, ...dword(IMAGE_VA), 0x31, 0xc9, 0x31, 0xc0, 0x41, 0xff, 0xe7],
];
/** xsave64 [IMAGE]; int3 */
const SAVE = [...TOUCH, ...ALL_STATE, ...[0x48, 0x0f, 0xae, 0x24, 0x25, ...dword(IMAGE_VA), 0xcc]];
const STUB = [...LOAD, ...SAVE];
/** An XSAVE area: header, upper halves of the YMM registers. */
const HEADER = 512;
const UPPER = 576;
const IMAGE_BYTES = 832;

export interface ForeignResult {
  /** It uses what the engines do not show: why it says nothing. */
  readonly skipped: string | undefined;
  /** What differs from the test's expectations; none = passed. */
  readonly lines: readonly string[];
}

const instruction = new Instruction();

/** The reason why an instruction may raise an exception in the wasm engine only, if there is one. */
function notShown(bytes: Uint8Array, at: number): string | undefined {
  showFeatures(FEATURES_ALL);
  const status = decode(bytes, at, at + 15, 64, instruction);
  showFeatures(SHOWN_FEATURES);
  if (status !== DECODE_OK) return undefined;
  const form = FORMS[instruction.form];
  const feature = form.feature.split('&').find((name) => name !== '' && !SHOWN_FEATURES.includes(name));
  if (feature !== undefined) return `uses ${feature}`;
  if (form.mnemonic === 'cpuid') return 'asks CPUID, which the hypervisor answers';
  return form.privilege === 'umip' ? 'asks what UMIP forbids' : undefined;
}

/** Selectors of user code and data in Linux, which some tests know. Descriptors: Intel SDM vol. 3, 3.4.5. */
const LINUX_DESCRIPTORS: readonly (readonly [selector: number, high: number])[] = [
  [0x23, 0x00cffb00],
  [0x2b, 0x00cff300],
  [0x33, 0x00affb00],
];

/** Runs tests on one engine. */
export class ForeignRunner {
  readonly #create: Candidate['create'];
  #subject: Subject | null = null;
  #next = 0;

  constructor(create: Candidate['create']) {
    this.#create = create;
  }

  close(): void {
    this.#subject?.close();
    this.#subject = null;
  }

  #fresh(): Subject {
    if (this.#subject !== null && this.#next + FRAMES_OF_A_TEST_MAX < FRAMES) return this.#subject;
    this.close();
    this.#next = GDT_FRAME + 1;
    const machine = createMachineMemory(FRAMES, FRAMES);
    for (const [selector, high] of LINUX_DESCRIPTORS)
      machine.u32.set([0xffff, high], (GDT_FRAME * PAGE_SIZE) / 4 + (selector >> 3) * 2);
    return (this.#subject = this.#create(machine));
  }

  run(test: ForeignTest, code: Uint8Array): ForeignResult {
    const subject = this.#fresh();
    const { machine, block, engine } = subject;
    const { u32, u64 } = block;
    const limit = this.#next + FRAMES_OF_A_TEST_MAX;
    const take = (): number => {
      if (this.#next === limit) throw new Error(`${test.name}: wants more than ${FRAMES_OF_A_TEST_MAX} frames`);
      return this.#next++;
    };
    const root = take();
    const tables = new PageTables(machine, root, take);
    const frames = new Map<bigint, number>();
    const map = (va: bigint, pages: number): void => {
      for (let i = 0n; i < pages; i++) {
        const page = (va & ~0xfffn) + i * 4096n;
        if (frames.has(page)) continue;
        const frame = take();
        frames.set(page, frame);
        tables.map(page, frame, USER | WRITABLE, 0);
      }
    };
    const put = (va: bigint, bytes: ArrayLike<number>): void => {
      for (let i = 0; i < bytes.length; i++) {
        const frame = frames.get((va + BigInt(i)) & ~0xfffn);
        if (frame === undefined) throw new Error(`${test.name}: MemoryData outside of MemoryRegions`);
        machine.u8[frame * PAGE_SIZE + Number((va + BigInt(i)) & 0xfffn)] = bytes[i];
      }
    };
    const pagesOf = (bytes: number): number => Math.ceil(bytes / PAGE_SIZE);
    map(BigInt(STUB_VA), 2);
    map(CODE_VA, pagesOf(code.length));
    for (const [va, pages] of REGIONS) map(va, pages);
    for (const [va, bytes] of test.regions) map(va, pagesOf(bytes));
    put(BigInt(STUB_VA), STUB);
    put(CODE_VA, code);
    for (const [va, bytes] of test.memory) put(va, bytes);
    const image = (frames.get(BigInt(IMAGE_VA)) ?? 0) * PAGE_SIZE;
    machine.u32[image / 4] = 0x37f;
    machine.u32[image / 4 + 6] = 0x1f80;
    machine.u32[(image + HEADER) / 4] = XCR0;
    u32[VCPU.kernelRoot / 4] = root;
    engine.prepareRoot(root * PAGE_SIZE);
    engine.flushTlb();
    // All zero but R15, which the stub jumps to: the first thing that tests of it do is to set it.
    for (let i = 0; i < 16; i++) u64[VCPU.gpr / 8 + i] = i === 15 ? CODE_VA : 0n;
    setBlock(block, STUB_VA, { fsBase: 0n, gsBase: 0n });
    const exit = this.#run(subject);
    const rip = u64[VCPU.rip / 8];
    const vector = u32[VCPU.exitVector / 4];
    const frame = frames.get(rip & ~0xfffn);
    const atHlt = frame !== undefined && machine.u8[frame * PAGE_SIZE + Number(rip & 0xfffn)] === HLT;
    if (exit !== EXIT_EXCEPTION || vector !== GENERAL_PROTECTION || !atHlt) {
      const absent = frame === undefined ? undefined : notShown(machine.u8, frame * PAGE_SIZE + Number(rip & 0xfffn));
      if (absent !== undefined) return { skipped: absent, lines: [] };
      const cr2 = vector === 14 ? `, cr2 ${u64[VCPU.cr2 / 8].toString(16)}` : '';
      const what = `does not come to its HLT: exit ${exit}, vector ${vector} at rip ${rip.toString(16)}${cr2}`;
      return { skipped: undefined, lines: [what] };
    }
    const gprs = u64.slice(VCPU.gpr / 8, VCPU.gpr / 8 + 16);
    const bases = { FS: u64[VCPU.fsBase / 8], GS: u64[VCPU.gsBase / 8], RIP: rip };
    setBlock(block, STUB_VA + LOAD.length, { fsBase: 0n, gsBase: 0n });
    this.#run(subject);
    return {
      skipped: undefined,
      lines: compare(test, gprs, bases, new DataView(machine.u8.buffer, image, IMAGE_BYTES)),
    };
  }

  #run({ engine }: Subject): number {
    const deadline = monotonicNs() + RUN_NS;
    engine.setRunDeadline(deadline);
    for (;;) {
      const exit = engine.run();
      if (exit !== EXIT_INTERRUPTED || monotonicNs() >= deadline) return exit;
    }
  }
}

/** Values of a register, in the words that the tests give: one for a general register, two for MMX (80 bits), up to four for XMM. */
function valuesOf(
  name: string,
  gprs: BigUint64Array,
  bases: Readonly<Record<string, bigint>>,
  image: DataView,
): bigint[] {
  const gpr = GPRS.indexOf(name);
  if (gpr >= 0) return [gprs[gpr]];
  if (bases[name] !== undefined) return [bases[name]];
  const number = Number(name.replace(/\D+/, ''));
  const pair = (at: number): bigint[] => [image.getBigUint64(at, true), image.getBigUint64(at + 8, true)];
  if (!name.startsWith('MM')) return [...pair(160 + 16 * number), ...pair(UPPER + 16 * number)];
  // By physical number: the image has the stack's order.
  const top = (image.getUint16(2, true) >> 11) & 7;
  const [low, high] = pair(32 + 16 * ((number - top) & 7));
  return [low, high & 0xffffn];
}

function compare(
  test: ForeignTest,
  gprs: BigUint64Array,
  bases: Readonly<Record<string, bigint>>,
  image: DataView,
): string[] {
  const lines: string[] = [];
  for (const [name, expected] of test.registers) {
    const values = valuesOf(name, gprs, bases, image);
    const same = values.every((value, i) => expected[i] === undefined || value === BigInt.asUintN(64, expected[i]));
    const text = (words: readonly bigint[]): string => words.map((word) => word.toString(16)).join(' ');
    if (!same) lines.push(`${name}: expected ${text(expected)}, is ${text(values)}`);
  }
  return lines;
}
