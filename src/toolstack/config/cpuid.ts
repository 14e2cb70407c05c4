/**
 * `cpuid = "host,FLAG=VALUE,..."` and `cpuid = [ "LEAF:REGISTER=BITS,...", ... ]`: what is said of the bits that CPUID answers.
 *
 * Both come to the same: for a register of a leaf 32 characters, the most significant bit first. 0 and 1 are themselves, x is what
 * guests get by default, k and s are the host's. What is wrong is told and passed over, as in xl: the other words count.
 *
 * Source: xl.cfg(5); tools/xl/xl_parse.c parse_config_data, tools/libs/light/libxl_cpuid.c (read for behaviour).
 */

import { ARCH_CAPABILITIES, type CpuidRegister, FEATURE_WORDS } from '../../abi/arch-x86/cpufeatureset.ts';

export interface CpuidEntry {
  readonly leaf: number;
  /** Null where the leaf has no subleaves, or none was named. */
  readonly subleaf: number | null;
  /** 32 characters each: any at all in the second syntax. */
  readonly registers: Partial<Record<CpuidRegister, string>>;
}

/** What was said of the model-specific registers that tell of features, 64 characters each. No guest of Domus has those. */
export interface MsrEntry {
  readonly index: number;
  readonly policy: string;
}

export interface CpuidConfig {
  readonly cpuid: readonly CpuidEntry[];
  readonly msr: readonly MsrEntry[];
}

/** One flag or number by its name. */
interface Field {
  readonly name: string;
  readonly leaf: number;
  readonly subleaf: number | null;
  readonly register: CpuidRegister;
  /** The lowest bit, and how many there are. */
  readonly bit: number;
  readonly length: number;
}

const field = (
  name: string,
  leaf: number,
  register: CpuidRegister,
  bit: number,
  length = 1,
  subleaf: number | null = null,
): Field => ({ name, leaf, subleaf, register, bit, length });

/** Names that are libxl's own. They come before those of the featureset. */
const OWN_FIELDS: readonly Field[] = [
  field('maxleaf', 0, 'eax', 0, 32),
  field('stepping', 1, 'eax', 0, 4),
  field('model', 1, 'eax', 4, 8),
  field('family', 1, 'eax', 8, 8),
  field('brandid', 1, 'ebx', 0, 8),
  field('clflush', 1, 'ebx', 8, 8),
  field('proccount', 1, 'ebx', 16, 8),
  field('localapicid', 1, 'ebx', 24, 8),
  field('est', 1, 'ecx', 7),
  field('cntxid', 1, 'ecx', 10),
  field('cmpxchg16', 1, 'ecx', 13),
  field('sse4_1', 1, 'ecx', 19),
  field('sse4.1', 1, 'ecx', 19),
  field('sse4_2', 1, 'ecx', 20),
  field('sse4.2', 1, 'ecx', 20),
  field('aes', 1, 'ecx', 25),
  field('cmpxchg8', 1, 'edx', 8),
  field('sysenter', 1, 'edx', 11),
  field('psn', 1, 'edx', 18),
  field('clfsh', 1, 'edx', 19),
  field('tm', 1, 'edx', 29),
  field('ia64', 1, 'edx', 30),
  field('pbe', 1, 'edx', 31),
  field('arat', 6, 'eax', 2),
  field('tsc_adjust', 7, 'ebx', 1, 1, 0),
  field('cmt', 7, 'ebx', 12, 1, 0),
  field('lahfsahf', 0x80000001, 'ecx', 0),
  field('cmplegacy', 0x80000001, 'ecx', 1),
  field('altmovcr8', 0x80000001, 'ecx', 4),
  field('nodeid', 0x80000001, 'ecx', 19),
  field('perfctr_core', 0x80000001, 'ecx', 23),
  field('perfctr_nb', 0x80000001, 'ecx', 24),
  field('procpkg', 4, 'eax', 26, 6, 0),
  field('invtsc', 0x80000007, 'edx', 8),
  field('ppin', 0x80000008, 'ebx', 23),
  field('btc-no', 0x80000008, 'ebx', 29),
  field('nc', 0x80000008, 'ecx', 0, 8),
  field('apicidsize', 0x80000008, 'ecx', 12, 4),
  field('svm_npt', 0x8000000a, 'edx', 0),
  field('svm_lbrv', 0x8000000a, 'edx', 1),
  field('svm_nrips', 0x8000000a, 'edx', 3),
  field('svm_tscrate', 0x8000000a, 'edx', 4),
  field('svm_vmcbclean', 0x8000000a, 'edx', 5),
  field('svm_decode', 0x8000000a, 'edx', 7),
  field('svm_pausefilt', 0x8000000a, 'edx', 10),
  field('lfence+', 0x80000021, 'eax', 2),
  field('maxhvleaf', 0x40000000, 'eax', 0, 8),
];

const FIELDS: ReadonlyMap<string, Field> = new Map(
  [
    ...FEATURE_WORDS.flatMap(({ leaf, subleaf, register, bits }) =>
      Array.from(bits, ([name, bit]) => field(name, leaf, register, bit, 1, subleaf)),
    ),
    ...OWN_FIELDS,
  ].map((one) => [one.name, one]),
);

const MSR_ARCH_CAPABILITIES = 0x10a;
const AS_BY_DEFAULT = 'x'.repeat(32);
const REGISTERS: readonly CpuidRegister[] = ['eax', 'ebx', 'ecx', 'edx'];
const U64_END = 1n << 64n;

interface MutableEntry {
  leaf: number;
  subleaf: number | null;
  registers: Partial<Record<CpuidRegister, string>>;
}

class Policy {
  readonly cpuid: MutableEntry[] = [];
  readonly msr: { index: number; policy: string }[] = [];

  entry(leaf: number, subleaf: number | null): MutableEntry {
    let found = this.cpuid.find((entry) => entry.leaf === leaf && entry.subleaf === subleaf);
    if (found === undefined) {
      found = { leaf, subleaf, registers: {} };
      this.cpuid.push(found);
    }
    return found;
  }

  setMsr(index: number, bit: number, character: string): void {
    let found = this.msr.find((entry) => entry.index === index);
    if (found === undefined) {
      found = { index, policy: 'x'.repeat(64) };
      this.msr.push(found);
    }
    found.policy = replaced(found.policy, 63 - bit, character);
  }
}

const replaced = (text: string, at: number, part: string): string =>
  text.slice(0, at) + part + text.slice(at + part.length);

/** strtoul(text, &end, 0): the number, and the characters that it took; 0 characters when there is none. */
function leadingNumber(text: string): { value: bigint; length: number } {
  const match = /^[ \t\n\v\f\r]*([+-]?)(0[xX][0-9a-fA-F]+|[0-9]+)/.exec(text);
  if (match === null) return { value: 0n, length: 0 };
  const [whole, sign, digits] = match;
  const isOctal = /^0[0-9]/.test(digits);
  const octal = /^0[0-7]*/.exec(digits)?.[0] ?? '';
  const taken = isOctal ? octal : digits;
  const value = isOctal ? (octal === '0' ? 0n : BigInt(`0o${octal.slice(1)}`)) : BigInt(digits);
  const length = whole.length - digits.length + taken.length;
  if (value >= U64_END) return { value: U64_END - 1n, length };
  return { value: sign === '-' ? BigInt.asUintN(64, -value) : value, length };
}

const binary = (value: bigint, bits: number): string => BigInt.asUintN(bits, value).toString(2).padStart(bits, '0');

/** An error's number and words. */
type Failure = readonly [number, string];

const MISSING_EQUALS: Failure = [1, 'missing "=" in key=value'];
const UNKNOWN_FLAG: Failure = [2, 'unknown CPUID flag name'];
const ILLEGAL_VALUE: Failure = [3, 'illegal CPUID value (must be: [0|1|x|k|s])'];

function addFlag(policy: Policy, text: string): Failure | null {
  const equals = text.indexOf('=');
  if (equals < 0) return MISSING_EQUALS;
  const name = text.slice(0, equals);
  const value = text.slice(equals + 1);
  const known = FIELDS.get(name);
  if (known !== undefined) return addField(policy, known, value);
  const bit = ARCH_CAPABILITIES.get(name);
  if (bit === undefined) return UNKNOWN_FLAG;
  if (!/^[01xks]$/.test(value)) return ILLEGAL_VALUE;
  policy.setMsr(MSR_ARCH_CAPABILITIES, bit, value === 's' ? 'k' : value);
  return null;
}

function addField(policy: Policy, { name, leaf, subleaf, register, bit, length }: Field, text: string): Failure | null {
  // libxl has made it by the time that it finds the value wrong.
  const { registers } = policy.entry(leaf, subleaf);
  const number = leadingNumber(text);
  if (number.length === 0 && !/^[xks]/.test(text)) return ILLEGAL_VALUE;
  const bits = number.length > 0 ? binary(number.value, length) : text[0].repeat(length);
  let all = registers[register] ?? AS_BY_DEFAULT;
  const put = (lowest: number, part: string): void => {
    all = replaced(all, 32 - part.length - lowest, part);
  };
  if (name === 'family') {
    // The extended family counts where the family is 15.
    if (number.value < 16n) {
      put(8, bits.slice(4));
      put(20, '00000000');
    } else {
      put(8, '1111');
      put(20, bits[0] + binary(number.value - 15n, 7));
    }
  } else if (name === 'model') {
    put(16, bits.slice(0, 4));
    put(4, bits.slice(4));
  } else put(bit, bits);
  registers[register] = all;
  return null;
}

const LINE_FAILURES = {
  leaf: [1, 'illegal leaf number'],
  subleaf: [2, 'illegal subleaf number'],
  colon: [3, 'missing colon'],
  register: [4, 'invalid register name (must be e[abcd]x)'],
  length: [5, 'policy string must be exactly 32 characters long'],
} as const satisfies Record<string, Failure>;

function addLine(policy: Policy, text: string): Failure | null {
  const leaf = leadingNumber(text);
  if (leaf.length === 0) return LINE_FAILURES.leaf;
  let rest = text.slice(leaf.length);
  let subleaf: number | null = null;
  if (rest.startsWith(',')) {
    const second = leadingNumber(rest.slice(1));
    if (second.length === 0) return LINE_FAILURES.subleaf;
    subleaf = Number(BigInt.asUintN(32, second.value));
    rest = rest.slice(1 + second.length);
  }
  if (!rest.startsWith(':')) return LINE_FAILURES.colon;
  const { registers } = policy.entry(Number(BigInt.asUintN(32, leaf.value)), subleaf);
  rest = rest.slice(1);
  while (rest !== '') {
    const register = REGISTERS.find((name) => rest.startsWith(name));
    const equals = rest.indexOf('=');
    if (register === undefined || equals < 0) return LINE_FAILURES.register;
    const [bits] = rest.slice(equals + 1).split(',', 1);
    if (bits.length !== 32) return LINE_FAILURES.length;
    registers[register] = bits;
    rest = rest.slice(equals + 1 + 32);
    if (rest !== '') rest = rest.slice(1).replace(/^[ \n]+/, '');
  }
  return null;
}

/**
 * Reads the setting's text or the items of its list.
 *
 * @param warn gets the lines that xl prints about what is wrong
 */
export function parseCpuid(value: string | readonly string[], warn: (line: string) => void): CpuidConfig {
  const policy = new Policy();
  const { cpuid, msr } = policy;
  const tell = (what: string, text: string, failure: Failure | null): void => {
    if (failure === null) return;
    warn(`while parsing CPUID ${what}: "${text}":`);
    warn(`  error #${failure[0]}: ${failure[1]}`);
  };
  if (typeof value !== 'string') {
    for (const line of value) tell('line', line, addLine(policy, line));
    return { cpuid, msr };
  }
  const words = value.split(',').filter((word) => word !== '');
  if (words.length > 0 && words[0] !== 'host') {
    warn(`while parsing CPUID string: "${value}":`);
    warn('  error: first word must be "host"');
    return { cpuid, msr };
  }
  for (const word of words.slice(1)) tell('flag', word, addFlag(policy, word));
  return { cpuid, msr };
}

/** As libxl prints it; undefined when nothing was said. */
export function cpuidJson({ cpuid, msr }: CpuidConfig): object | undefined {
  if (cpuid.length === 0 && msr.length === 0) return undefined;
  const entries = cpuid.map(({ leaf, subleaf, registers }) => ({
    leaf,
    ...(subleaf === null ? {} : { subleaf }),
    ...Object.fromEntries(
      REGISTERS.flatMap((name) => (registers[name] === undefined ? [] : [[name, registers[name]]])),
    ),
  }));
  return { cpuid: entries, msr };
}
