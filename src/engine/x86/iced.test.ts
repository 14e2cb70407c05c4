/**
 * The decoder against iced-x86: a sweep over all opcodes with all prefixes and ModRM digits, random code, and the text of a
 * kernel. Compared are validity, length, mnemonic, every operand, prefixes, flags, memory sizes, features and privileges.
 *
 * EXCEPTIONS has each known difference with its reason; anything else fails. DOMUS_DECODE_COUNT sets the number of random
 * instructions for each mode, DOMUS_DECODE_SEED the seed.
 */
import { existsSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import {
  Code,
  CpuidFeature,
  Decoder,
  DecoderOptions,
  Instruction as Iced,
  MemorySizeExt,
  Mnemonic,
  OpKind,
  Register,
  RflagsBits,
} from 'iced-x86';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadKernel } from '../../toolstack/kernel-image.ts';
import { DECODE_OK, decode, RIP } from './decoder.ts';
import { FORMS, type Form, mnemonicOf } from './forms.ts';
import { Instruction } from './instruction.ts';
import { FLAG } from './opcode-map.ts';
import { OPERANDS, type OperandInfo, type OperandSize } from './operands.ts';
import { FEATURES_ALL, FEATURES_V2, showFeatures } from './tables.ts';
import { CodeGenerator, SLOT } from './testing.ts';

const COUNT = Number(process.env['DOMUS_DECODE_COUNT'] ?? 100_000);
const SEED = Number(process.env['DOMUS_DECODE_SEED'] ?? 1);
const KERNEL = join(homedir(), '.cache/domus/guests/linux-image-cloud-amd64/vmlinuz');

type Mode = 32 | 64;

interface Difference {
  /** What differs: 'validity', 'length', 'mnemonic', 'operand', 'prefix', 'flags', 'static'. */
  readonly what: string;
  readonly ours: string;
  readonly theirs: string;
  /** Undefined where we say #UD. */
  readonly form: Form | undefined;
  /** iced's name of it, such as Add_rm8_r8; INVALID. */
  readonly code: string;
  readonly features: readonly string[];
}

/** iced's features that are in every CPU with 64-bit mode, or that we call by another name. */
const BASE =
  /^(INTEL\w+|X64|FPU\w*|CX8|CMPXCHG16B|CPUID|MSR|MULTIBYTENOP|PAUSE|RDPMC|SMM|SYSCALL|TSC|INV(EPT|VPID)|SKINIT(_or_SVM)?)$/;
const OTHER_NAMES: Readonly<Record<string, string>> = { PREFETCHW: 'PRFCHW' };

function isShown(feature: string): boolean {
  return BASE.test(feature) || FEATURES_ALL.includes(OTHER_NAMES[feature] ?? feature);
}

const ours = new Instruction();
const theirs = new Iced();

interface Exception {
  readonly reason: string;
  readonly applies: (difference: Difference) => boolean;
  used: number;
}

function exception(reason: string, applies: Exception['applies']): Exception {
  return { reason, applies, used: 0 };
}

/** iced's names for what is the same to us. All but the name is compared. */
const RENAMED: Readonly<Record<string, string>> = {
  reservednop: 'nop',
  // D0 /6 and its like: an alias.
  sal: 'shl',
  // REX.W or VEX.W is an operand size for us, not another instruction.
  pcmpestri64: 'pcmpestri',
  pcmpestrm64: 'pcmpestrm',
  vpcmpestri64: 'vpcmpestri',
  vpcmpestrm64: 'vpcmpestrm',
};

const EXCEPTIONS: readonly Exception[] = [
  exception(
    'extensions without rows: AVX-512, AMX, CET, MPX, XOP, 3DNow!, SSE4A, TSX, SGX, Padlock and so on, never shown to guests',
    ({ what, form, features }) => what === 'validity' && form === undefined && !features.every(isShown),
  ),
  exception(
    'in the hint space iced names what CPUs without CLDEMOTE, CET or PREFETCHI take for NOP, and prefetches that are reserved',
    ({ what, form, code }) =>
      ['mnemonic', 'static'].includes(what) &&
      form?.key === 'nop Ev,Gv' &&
      /^(Cldemote|Rdssp|Prefetchit|Prefetchreserved)/.test(code),
  ),
  exception(
    'F2 before 0F 1E /1 with a register: iced hides the prefix, CPUs ignore it',
    ({ what, form, code }) => what === 'prefix' && form?.key === 'nop Ev,Gv' && code.endsWith('0F1E'),
  ),
  exception(
    'VMMCALL with F2 or F3: VMGEXIT for iced, which is VMMCALL where there is no SEV-ES (APM vol. 3)',
    ({ what, ours, theirs }) => what === 'mnemonic' && ours === 'vmmcall' && theirs === 'vmgexit',
  ),
  exception(
    'a register with itself: iced knows that XOR and SUB clear the flags and that SBB reads only CF',
    ({ what, form }) =>
      what === 'flags' &&
      /^(xor|sub|sbb|cmp) (E.,G.|G.,E.)$/.test(form?.key ?? '') &&
      ours.mod === 3 &&
      ours.reg === ours.rm,
  ),
  exception(
    'shift by an immediate: iced knows the count, the form is for all (flagsConditional)',
    ({ what, form }) => what === 'flags' && form?.flagsConditional === true && form.operands.includes('Ib'),
  ),
  exception(
    'SAR by 1 clears OF (SDM vol. 2); iced only says that it is written',
    ({ what, form }) => what === 'flags' && form?.mnemonic === 'sar' && form.operands.includes('One'),
  ),
  exception(
    'PUSHF, POPF and IRET of 16 bits do not see AC; the form is for all sizes',
    ({ what, form }) => what === 'flags' && /^(pushf|popf|iret)\//.test(form?.mnemonic ?? '') && ours.operandSize === 2,
  ),
  exception(
    'SKINIT: iced has its flags cleared; we do not decode it for anybody',
    ({ what, form }) => what === 'flags' && form?.mnemonic === 'skinit',
  ),
  exception(
    'PADDQ with MMX registers came with SSE2 (APM vol. 5); the SDM and iced say MMX',
    ({ what, form, ours }) => what === 'static' && form?.key === 'paddq Pq,Qq' && ours === 'feature SSE2',
  ),
  exception(
    'SAHF and LAHF have a feature of their own in 64-bit mode',
    ({ what, form }) => what === 'static' && form?.feature === 'LAHF',
  ),
  exception(
    '#UD at CPL 3 comes before #GP for MONITOR, CLAC and for VMX and SVM outside of these; iced only says CPL 0',
    ({ what, form, ours }) => what === 'static' && form?.privilege === 'ud' && ours === 'privilege ud',
  ),
];

function bytesOf(size: OperandSize, mode: Mode): number {
  const { operandSize, vexL } = ours;
  switch (size) {
    case 'v':
      return operandSize;
    case 'y':
      return operandSize === 8 ? 8 : 4;
    case '2y':
      return operandSize === 8 ? 16 : 8;
    case 'z':
      return operandSize === 2 ? 2 : 4;
    case 'x':
      return 16 << vexL;
    case 'h':
      return 8 << vexL;
    case 'f':
      return 4 << vexL;
    case 'e':
      return 2 << vexL;
    case 'p':
      return operandSize + 2;
    case 'a':
      return 2 * operandSize;
    case 's':
      return mode === 64 ? 10 : 6;
    case 'env':
      return operandSize === 2 ? 14 : 28;
    case 'state':
      return operandSize === 2 ? 94 : 108;
    case 'xsave':
      return 0;
    default:
      return size;
  }
}

function generalRegister(number: number, size: number): Register {
  if (size === 8) return Register.RAX + number;
  if (size === 4) return Register.EAX + number;
  if (size === 2) return Register.AX + number;
  if (number < 4) return Register.AL + number;
  if (number >= 8) return Register.R8L + number - 8;
  return (ours.rex === 0 ? Register.AH : Register.SPL) + number - 4;
}

function registerOf(info: OperandInfo, mode: Mode): Register {
  let number = 0;
  if (info.place === 'fixed') number = info.fixed;
  else if (info.place === 'imm') number = (ours.immLo >> 4) & (mode === 64 ? 15 : 7);
  else number = ours[info.place];
  const size = bytesOf(info.size, mode);
  switch (info.class) {
    case 'gpr':
      return size === 1 && info.place === 'fixed' ? Register.AL + number : generalRegister(number, size);
    case 'xmm':
      return (size === 32 ? Register.YMM0 : Register.XMM0) + number;
    case 'mmx':
      return Register.MM0 + number;
    case 'st':
      return Register.ST0 + number;
    case 'segment':
      return Register.ES + number;
    case 'control':
      return Register.CR0 + number;
    case 'debug':
      return Register.DR0 + number;
    default:
      return Register.None;
  }
}

/** iced shows the overrides ES, CS, SS and DS in 64-bit mode too, where they mean nothing. */
function segmentDiffers(mode: Mode): boolean {
  const shown: Register = theirs.segmentPrefix;
  const counts = mode === 32 || shown === Register.FS || shown === Register.GS;
  return (counts ? shown : Register.None) !== (ours.segment < 0 ? Register.None : Register.ES + ours.segment);
}

function immediate(): bigint {
  return (BigInt(ours.immHi >>> 0) << 32n) | BigInt(ours.immLo >>> 0);
}

function memoryDiffers(info: OperandInfo, mode: Mode): string {
  const bits = 8 * ours.addressSize;
  const displacement: bigint = theirs.memoryDisplacement;
  if (segmentDiffers(mode)) return 'segment';
  if (info.class === 'translate') return theirs.memoryIndex === Register.AL ? '' : 'XLAT';
  if (info.class === 'moffs') return BigInt.asUintN(bits, displacement) === immediate() ? '' : 'moffs';
  if (info.place !== 'rm' || ours.mod === 3) return 'not memory';
  const { base, index } = ours;
  const ripRegister = ours.addressSize === 8 ? Register.RIP : Register.EIP;
  const ourBase = base < 0 ? Register.None : base === RIP ? ripRegister : generalRegister(base, ours.addressSize);
  if (theirs.memoryBase !== ourBase) return 'base';
  if (info.class === 'vsib') {
    // Whether it is an XMM or YMM register goes by L and the widths of index and element.
    if (((theirs.memoryIndex - Register.XMM0) & 31) !== index) return 'vector index';
  } else if (theirs.memoryIndex !== (index < 0 ? Register.None : generalRegister(index, ours.addressSize)))
    return 'index';
  if (index >= 0 && theirs.memoryIndexScale !== 1 << ours.scale) return 'scale';
  const next = base === RIP ? theirs.nextIP : 0n;
  if (BigInt.asUintN(bits, displacement) !== BigInt.asUintN(bits, BigInt(ours.displacement) + next))
    return 'displacement';
  return '';
}

const IMMEDIATE_BITS = new Map<OpKind, number>([
  [OpKind.Immediate8, 8],
  [OpKind.Immediate16, 16],
  [OpKind.Immediate32, 32],
  [OpKind.Immediate64, 64],
  [OpKind.Immediate8to16, 16],
  [OpKind.Immediate8to32, 32],
  [OpKind.Immediate8to64, 64],
  [OpKind.Immediate32to64, 64],
]);

/** '' or what of the operand differs. */
function operandDiffers(number: number, info: OperandInfo, mode: Mode): string {
  const kind = theirs.opKind(number);
  const wide = ours.addressSize === 8 ? 2 : ours.addressSize === 4 ? 1 : 0;
  switch (kind) {
    case OpKind.Register: {
      if (info.place === 'rm' && ours.mod !== 3) return 'not a register';
      const register: Register = theirs.opRegister(number);
      const expected = registerOf(info, mode);
      // Selectors and the like: iced has registers of 32 and 64 bits here, of which 16 are used.
      if (info.class === 'gpr' && info.size === 2 && info.place !== 'fixed')
        return ((register - expected) & 15) === 0 ? '' : 'register';
      return register === expected ? '' : `register ${Register[expected]}`;
    }
    case OpKind.Memory:
      return memoryDiffers(info, mode);
    case OpKind.NearBranch16:
    case OpKind.NearBranch32:
    case OpKind.NearBranch64: {
      const bits = 8 * ours.operandSize;
      if (info.class !== 'relative' || bits !== 16 << (kind - OpKind.NearBranch16)) return 'branch';
      const target: bigint = theirs.nearBranchTarget;
      return BigInt.asUintN(bits, theirs.nextIP + BigInt(ours.immLo)) === target ? '' : 'target';
    }
    case OpKind.FarBranch16:
    case OpKind.FarBranch32: {
      const offset = kind === OpKind.FarBranch16 ? theirs.farBranch16 : theirs.farBranch32;
      return info.class === 'far' && offset === ours.immLo >>> 0 && theirs.farBranchSelector === ours.imm2 ? '' : 'far';
    }
    case OpKind.Immediate8_2nd:
      return theirs.immediate8_2nd === ours.imm2 ? '' : 'second immediate';
  }
  const bits = IMMEDIATE_BITS.get(kind);
  if (bits !== undefined) {
    if (info.class === 'one') return theirs.immediate8 === 1 ? '' : 'one';
    const value: bigint = theirs.immediate(number);
    return info.class === 'immediate' && BigInt.asUintN(bits, value) === BigInt.asUintN(bits, immediate())
      ? ''
      : 'immediate';
  }
  if (info.class === 'destination') return kind === OpKind.MemoryESDI + wide ? '' : 'destination';
  if (segmentDiffers(mode)) return 'segment';
  if (info.class === 'source') return kind === OpKind.MemorySegSI + wide ? '' : 'source';
  return info.class === 'mask-destination' && kind === OpKind.MemorySegDI + wide ? '' : 'kind';
}

const FLAG_PAIRS: readonly (readonly [ours: number, theirs: number])[] = [
  [FLAG.OF, RflagsBits.OF],
  [FLAG.SF, RflagsBits.SF],
  [FLAG.ZF, RflagsBits.ZF],
  [FLAG.AF, RflagsBits.AF],
  [FLAG.PF, RflagsBits.PF],
  [FLAG.CF, RflagsBits.CF],
  [FLAG.DF, RflagsBits.DF],
  [FLAG.IF, RflagsBits.IF],
  [FLAG.AC, RflagsBits.AC],
];
const ALL_FLAGS = FLAG_PAIRS.reduce((mask, [, bit]) => mask | bit, 0);

/** read, written, cleared, set, undefined of each form, as iced numbers the flags. */
const flagsOfForms = FORMS.map((form) =>
  [form.flagsRead, form.flagsWritten, form.flagsCleared, form.flagsSet, form.flagsUndefined].map((mask) =>
    FLAG_PAIRS.reduce((found, [bit, theirBit]) => ((mask & bit) === 0 ? found : found | theirBit), 0),
  ),
);

function flagsDiffer(form: Form): boolean {
  const { rflagsRead, rflagsWritten, rflagsCleared, rflagsSet, rflagsUndefined } = theirs;
  const [read, written, cleared, set, undefinedFlags] = flagsOfForms[form.index];
  return (
    (rflagsRead & ALL_FLAGS) !== read ||
    ((rflagsWritten | rflagsCleared | rflagsSet) & ALL_FLAGS) !== written ||
    (rflagsCleared & ALL_FLAGS) !== cleared ||
    (rflagsSet & ALL_FLAGS) !== set ||
    (rflagsUndefined & ALL_FLAGS) !== undefinedFlags
  );
}

function featuresOf(): string[] {
  return Array.from(theirs.cpuidFeatures(), (feature: CpuidFeature) => CpuidFeature[feature] as string);
}

/** What does not depend on registers and values: looked at once for each pair of form and code. Gives ours and theirs. */
function staticDifference(form: Form, mode: Mode): [string, string] | undefined {
  const opcode = theirs.opCode;
  const memorySize = MemorySizeExt.size(theirs.memorySize);
  const infos: readonly OperandInfo[] = form.operands.map((type) => OPERANDS[type]);
  const memory = infos.find(({ class: c, place, mod }) =>
    place === 'rm' ? ours.mod !== 3 && mod !== 'register' : /^(moffs|source|destination|mask|translate)/.test(c),
  );
  const ourSize = memory === undefined ? 0 : bytesOf(memory.memorySize, mode);
  if (memory !== undefined && ourSize !== memorySize) return [`memory size ${ourSize}`, String(memorySize)];
  if (opcode.canUseLockPrefix !== form.lockable) return [`lockable ${form.lockable}`, ''];
  if (opcode.mustBeCpl0 !== (form.privilege === 'cpl0')) return [`privilege ${form.privilege}`, ''];
  if (opcode.isInputOutput && form.privilege !== 'iopl') return [`privilege ${form.privilege}`, 'in/out'];
  const features = featuresOf().filter((name) => !BASE.test(name) || name === 'FPU');
  const names = features.map((name) => OTHER_NAMES[name] ?? name);
  const own = ours.vexL === 1 ? form.featureWide : form.feature;
  const isSame = own
    .split('&')
    .every((name) => name === '' || name === 'VMX' || name === 'SVM' || names.includes(name));
  const isLess = own === '' && names.some((name) => !['SSE', 'CET_IBT'].includes(name));
  if ((!isSame && own !== 'FPU') || isLess) return [`feature ${own}`, features.join('+')];
  opcode.free();
  return undefined;
}

const staticsSeen = new Set<string>();
const formsSeen = new Set<Form>();

/** Compares what `ours` and `theirs` hold. */
function difference(status: number, mode: Mode): Difference | undefined {
  const code = theirs.code;
  if (status !== DECODE_OK && code === Code.INVALID) return undefined;
  const form = status === DECODE_OK ? FORMS[ours.form] : undefined;
  const differs = (what: string, ours: string, theirText: string): Difference => ({
    what,
    ours,
    theirs: theirText,
    form,
    code: Code[code],
    features: featuresOf(),
  });
  if (form === undefined || code === Code.INVALID) return differs('validity', form?.key ?? `#${status}`, '');
  formsSeen.add(form);
  if (ours.length !== theirs.length) return differs('length', String(ours.length), String(theirs.length));
  const staticKey = `${code} ${form.index} ${ours.operandSize} ${ours.vexL} ${ours.mod === 3}`;
  if (!staticsSeen.has(staticKey)) {
    staticsSeen.add(staticKey);
    const found = staticDifference(form, mode);
    if (found !== undefined && !explained(differs('static', found[0], found[1])))
      return differs('static', found[0], found[1]);
  }
  const ourName = mnemonicOf(form, ours.operandSize, ours.addressSize);
  const theirName = Mnemonic[theirs.mnemonic].toLowerCase();
  if (ourName !== (RENAMED[theirName] ?? theirName)) return differs('mnemonic', ourName, theirName);
  if (form.operands.length !== theirs.opCount) return differs('operands', form.key, String(theirs.opCount));
  for (let i = 0; i < form.operands.length; i++) {
    const found = operandDiffers(i, OPERANDS[form.operands[i]], mode);
    if (found !== '') return differs('operand', `${form.operands[i]} ${found}`, OpKind[theirs.opKind(i)]);
  }
  const theirRep = theirs.hasRepnePrefix ? 0xf2 : theirs.hasRepPrefix ? 0xf3 : 0;
  // Of two such prefixes iced keeps both.
  if (ours.lock !== theirs.hasLockPrefix || (ours.rep !== theirRep && !(theirs.hasRepPrefix && ours.rep === 0xf3)))
    return differs('prefix', `${ours.lock} ${ours.rep}`, `${theirs.hasLockPrefix} ${theirRep}`);
  if (flagsDiffer(form)) return differs('flags', form.key, '');
  return undefined;
}

function explained(found: Difference): boolean {
  const known = EXCEPTIONS.find(({ applies }) => applies(found));
  if (known !== undefined) known.used++;
  return known !== undefined;
}

/** Unexplained differences, each once. */
class Findings {
  readonly found = new Map<string, string>();

  note(found: Difference, bytes: Uint8Array, at: number): void {
    const { what, ours, theirs, form, code } = found;
    const key = `${what}: ${form?.key ?? 'no form'} ${ours} | ${code} ${theirs}`;
    if (this.found.size < 20 && !this.found.has(key))
      this.found.set(key, Buffer.from(bytes.subarray(at, at + 15)).toString('hex'));
  }

  compare(bytes: Uint8Array, at: number, mode: Mode, decoder: Decoder): void {
    decoder.position = at;
    decoder.decodeOut(theirs);
    const found = difference(decode(bytes, at, bytes.length, mode, ours), mode);
    if (found !== undefined && !explained(found)) this.note(found, bytes, at);
  }

  compareSlots(bytes: Uint8Array, slots: number, mode: Mode): void {
    const decoder = new Decoder(mode, bytes, DecoderOptions.None);
    decoder.ip = 0x7654_3210n;
    for (let i = 0; i < slots; i++) this.compare(bytes, SLOT * i, mode, decoder);
    decoder.free();
  }
}

function sectionsOf(elf: Uint8Array): Uint8Array[] {
  const view = new DataView(elf.buffer, elf.byteOffset, elf.byteLength);
  const first = Number(view.getBigUint64(0x28, true));
  const size = view.getUint16(0x3a, true);
  const sections: Uint8Array[] = [];
  for (let i = 0; i < view.getUint16(0x3c, true); i++) {
    const header = first + i * size;
    const isCode = (view.getUint32(header + 8, true) & 4) !== 0;
    const offset = Number(view.getBigUint64(header + 0x18, true));
    if (isCode) sections.push(elf.subarray(offset, offset + Number(view.getBigUint64(header + 0x20, true))));
  }
  return sections;
}

describe('decode() and iced-x86 agree', () => {
  beforeAll(() => showFeatures(FEATURES_ALL));
  afterAll(() => showFeatures(FEATURES_V2));

  for (const mode of [64, 32] as const) {
    it(`on every opcode, mandatory prefix and digit in ${mode}-bit mode`, () => {
      const findings = new Findings();
      const code = new CodeGenerator(mode, SEED, (bytes, slots) => findings.compareSlots(bytes, slots, mode));
      for (const lead of [[], [0x0f], [0x0f, 0x38], [0x0f, 0x3a]]) code.sweepLegacy(lead);
      code.sweepVex();
      expect(findings.found).toEqual(new Map());
    });

    it(`on ${COUNT} random instructions in ${mode}-bit mode, seed ${SEED}`, () => {
      const findings = new Findings();
      const code = new CodeGenerator(mode, SEED, (bytes, slots) => findings.compareSlots(bytes, slots, mode));
      for (let i = 0; i < COUNT; i++) code.putRandom();
      code.flush();
      expect(findings.found).toEqual(new Map());
    });
  }

  it('on each form at least once', () => {
    expect(FORMS.filter((form) => !formsSeen.has(form)).map((form) => form.key)).toEqual([]);
  });

  it('but for differences that all still exist', () => {
    expect(EXCEPTIONS.filter(({ used }) => used === 0).map(({ reason }) => reason)).toEqual([]);
  });

  it('on the text of a kernel', async (context) => {
    if (!existsSync(KERNEL)) context.skip(`no ${KERNEL}`);
    const { elf } = await loadKernel(KERNEL, { cacheDir: join(homedir(), '.cache/domus') });
    const findings = new Findings();
    for (const text of sectionsOf(elf)) {
      const bytes = text.slice(0, Math.min(text.length, 3 * COUNT));
      const decoder = new Decoder(64, bytes, DecoderOptions.None);
      for (let at = 0; at < bytes.length - 15; ) {
        findings.compare(bytes, at, 64, decoder);
        at += theirs.code === Code.INVALID ? 1 : theirs.length;
      }
      decoder.free();
    }
    expect(findings.found).toEqual(new Map());
  });
});
