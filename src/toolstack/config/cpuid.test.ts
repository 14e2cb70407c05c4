import { expect, test } from 'vitest';
import { cpuidJson, parseCpuid } from './cpuid.ts';

function parse(value: string | readonly string[]) {
  const lines: string[] = [];
  const config = parseCpuid(value, (line) => lines.push(line));
  return { config, lines };
}

const x = 'x'.repeat(32);

test('the example of xl.cfg(5), in both syntaxes', () => {
  const entries = [{ leaf: 1, subleaf: null, registers: { edx: `xx0${'x'.repeat(29)}`, ecx: `${'x'.repeat(31)}0` } }];
  expect(parse('host,tm=0,sse3=0')).toEqual({ config: { cpuid: entries, msr: [] }, lines: [] });
  const line = '1:ecx=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx0,edx=xx0xxxxxxxxxxxxxxxxxxxxxxxxxxxxx';
  expect(parse([line])).toEqual({ config: { cpuid: entries, msr: [] }, lines: [] });
});

test('names of libxl, names of the featureset, subleaves, numbers', () => {
  const { config, lines } = parse('host,avx2=0,lahf-lm=k,lahfsahf=1,xsavec=s,maxleaf=0xd,invtsc=0');
  expect(lines).toEqual([]);
  expect(config.cpuid).toEqual([
    { leaf: 7, subleaf: 0, registers: { ebx: `${'x'.repeat(26)}0${'x'.repeat(5)}` } },
    { leaf: 0x80000001, subleaf: null, registers: { ecx: `${'x'.repeat(31)}1` } },
    { leaf: 0xd, subleaf: 1, registers: { eax: `${'x'.repeat(30)}sx` } },
    { leaf: 0, subleaf: null, registers: { eax: `${'0'.repeat(28)}1101` } },
    { leaf: 0x80000007, subleaf: null, registers: { edx: `${'x'.repeat(23)}0${'x'.repeat(8)}` } },
  ]);
});

test.each([
  ['family=6', 'xxxx00000000xxxxxxxx0110xxxxxxxx'],
  ['family=25', 'xxxx00001010xxxxxxxx1111xxxxxxxx'],
  ['model=54', 'xxxxxxxxxxxx0011xxxxxxxx0110xxxx'],
  ['stepping=3', `${'x'.repeat(28)}0011`],
])('%s is spread over its fields', (words, eax) => {
  expect(parse(`host,${words}`).config.cpuid).toEqual([{ leaf: 1, subleaf: null, registers: { eax } }]);
});

test('what is wrong in a string is told in xl’s words, and the rest counts', () => {
  const { config, lines } = parse('host,nosuch=0,avx,tm=y,sse3=0');
  expect(lines).toEqual([
    'while parsing CPUID flag: "nosuch=0":',
    '  error #2: unknown CPUID flag name',
    'while parsing CPUID flag: "avx":',
    '  error #1: missing "=" in key=value',
    'while parsing CPUID flag: "tm=y":',
    '  error #3: illegal CPUID value (must be: [0|1|x|k|s])',
  ]);
  expect(config.cpuid[0].registers.ecx).toBe(`${'x'.repeat(31)}0`);
  expect(parse('avx=0').lines).toEqual(['while parsing CPUID string: "avx=0":', '  error: first word must be "host"']);
  expect(parse('').lines).toEqual([]);
});

test.each([
  ['a:eax=', 1, 'illegal leaf number'],
  ['7,b:eax=', 2, 'illegal subleaf number'],
  ['1', 3, 'missing colon'],
  [`1:efx=${x}`, 4, 'invalid register name (must be e[abcd]x)'],
  ['1:eax', 4, 'invalid register name (must be e[abcd]x)'],
  ['1:eax=xxx', 5, 'policy string must be exactly 32 characters long'],
])('the line %s is error %i', (line, number, words) => {
  expect(parse([line]).lines).toEqual([`while parsing CPUID line: "${line}":`, `  error #${number}: ${words}`]);
});

test('as libxl prints it', () => {
  expect(cpuidJson(parse('host').config)).toBeUndefined();
  expect(cpuidJson(parse(['0x7,0:ebx=' + x, `1:edx=${x}, eax=${x}`]).config)).toEqual({
    cpuid: [
      { leaf: 7, subleaf: 0, ebx: x },
      { leaf: 1, eax: x, edx: x },
    ],
    msr: [],
  });
  expect(cpuidJson(parse('host,rdcl-no=1').config)).toEqual({
    cpuid: [],
    msr: [{ index: 0x10a, policy: `${'x'.repeat(63)}1` }],
  });
});
