/**
 * Writes a C program at random: integers of all widths, float, double and long double, loops, switches, bit fields, function
 * pointers, string functions. It prints a checksum after each function; the same binary prints the same on every CPU.
 *
 * Arithmetic that C leaves undefined is avoided where a CPU would trap (division); the rest (a conversion that does not fit, NaN)
 * is what the instructions make of it, so only runs of one binary can be compared. For 32-bit compilers there is no 128-bit product.
 */

const SCALARS = ['u8', 'u16', 'u32', 'u64', 'i8', 'i16', 'i32', 'i64', 'float', 'double', 'real'] as const;

const HEAD = `#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef uint8_t u8; typedef uint16_t u16; typedef uint32_t u32; typedef uint64_t u64;
typedef int8_t i8; typedef int16_t i16; typedef int32_t i32; typedef int64_t i64;
typedef long double real;
typedef struct { u32 a : 3, b : 11; i32 c : 9; u64 d : 40; u8 e[5]; double f; } Fields;
static i64 budget;
static u64 sum = 0xcbf29ce484222325u;
static void mix(const void *at, size_t size) {
  const u8 *bytes = at;
  for (size_t i = 0; i < size; i++) sum = (sum ^ bytes[i]) * 0x100000001b3u;
}
static u64 rotate(u64 x, unsigned n) { n &= 63; return x << n | x >> (-n & 63); }
static Fields fields[16];
static char text[256];
static int ascending(const void *a, const void *b) { u32 x = *(const u32 *)a, y = *(const u32 *)b; return (x > y) - (x < y); }
${SCALARS.map((type) => `static ${type} g_${type}[16];`).join('\n')}
`;

/** A program of some `functions` * 20 lines. The same seed gives the same text. */
export function generateProgram(seed: number, functions: number, bits: 32 | 64 = 64): string {
  let state = seed >>> 0 || 1;
  const below = (limit: number): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * limit);
  };
  const pick = <T>(list: readonly T[]): T => list[below(list.length)]!;
  const real = (): string => pick(['float', 'double', 'double', 'real']);
  const integer = (): string => pick(['u8', 'u16', 'u32', 'u64', 'i8', 'i16', 'i32', 'i64']);

  /** An expression of type u64. */
  const whole = (depth: number): string => {
    if (depth === 0)
      return pick([
        () => pick(['a', 'b', 'c', 'd', 'n']),
        () => `(u64)g_${integer()}[${pick(['a', 'b', 'c', 'd', 'n'])} & 15]`,
        () => `${below(2 ** 31)}u`,
        () => `${below(2 ** 31)}${below(2 ** 21)}u`,
        () => `(u64)fields[${pick(['a', 'd', 'n'])} & 15].${pick(['a', 'b', 'c', 'd', 'e[2]'])}`,
      ])();
    const x = whole(depth - 1);
    const y = whole(below(depth));
    const signed = pick(['i8', 'i16', 'i32']);
    return pick([
      () => `(${x} ${pick(['+', '-', '*', '^', '&', '|'])} ${y})`,
      () => `(u64)((${integer()})${x} ${pick(['+', '-', '*'])} (${integer()})${y})`,
      () => `(${x} ${pick(['/', '%'])} (${y} | 1))`,
      () => `(u64)((u32)${x} ${pick(['/', '%'])} ((u32)${y} | 1))`,
      () => `(u64)((i64)(${signed})${x} ${pick(['/', '%'])} ((i64)(${signed})${y} | 1))`,
      () => `(${x} ${pick(['<<', '>>'])} (${y} & 63))`,
      () => `(u64)((i64)${x} >> (${y} & 63))`,
      () => `(u64)((u32)${x} ${pick(['<<', '>>'])} (${y} & 31))`,
      () => `(u64)((u8)${x} ${pick(['+', '*', '>>'])} ${below(7)})`,
      () => `rotate(${x}, (unsigned)${y})`,
      () => `(u64)__builtin_${pick(['popcountll', 'parityll'])}(${x})`,
      () => `(u64)__builtin_${pick(['clzll', 'ctzll'])}(${x} | 1)`,
      () => `__builtin_bswap64(${x})`,
      () => `(u64)(${x} ${pick(['<', '>', '==', '<=', '!='])} ${y})`,
      () => `(u64)((${integer()})${x} ${pick(['<', '>', '==', '<=', '!='])} (${integer()})${y})`,
      () => `(${x} & ${1 << below(20)} ? ${y} : ~${x})`,
      () => (bits === 64 ? `(u64)((unsigned __int128)${x} * ${y} >> 64)` : `((u64)(u32)${x} * (u32)${y} >> 32)`),
      () => `(u64)(${signed})${floating(depth - 1)}`,
      () => `(u64)(i64)(${floating(depth - 1)} * 1e3)`,
      () => `(u64)(${floating(depth - 1)} ${pick(['<', '>', '>=', '=='])} ${floating(0)})`,
    ])();
  };
  /** An expression of a floating-point type. */
  const floating = (depth: number): string => {
    if (depth <= 0)
      return pick([
        () => 'x',
        () => `g_${real()}[${pick(['a', 'b', 'n'])} & 15]`,
        () => `${below(1000) / 8}${pick(['', 'f', 'L'])}`.replace(/^(\d+)([fL])/, '$1.0$2'),
        () => `fields[n & 15].f`,
        () => `(${real()})(${pick(['i32', 'u32', 'i64', 'u64', 'u8', 'i16'])})${whole(0)}`,
      ])();
    const v = floating(depth - 1);
    const w = floating(below(depth));
    return pick([
      () => `(${v} ${pick(['+', '-', '*', '/'])} ${w})`,
      () => `(${real()})(${v} ${pick(['+', '-', '*'])} ${w})`,
      () => `${pick(['fabs', 'floor', 'ceil', 'trunc', 'rint', 'sqrt'])}${pick(['', 'f', 'l'])}(${v})`,
      () => `${pick(['fmin', 'fmax', 'copysign', 'fmod'])}(${v}, ${w})`,
      () => `(${v} < ${w} ? ${w} : -${v})`,
      () => `ldexp(${v}, (int)(${whole(0)} & 15) - 7)`,
    ])();
  };

  const statement = (index: number, depth: number): string[] => {
    const block = (): string[] =>
      [statement(index, depth - 1), statement(index, depth - 1)].flat().map((line) => `  ${line}`);
    const simple = [
      () => [`${pick(['a', 'b', 'c', 'd'])} = ${whole(3)};`],
      () => [`${pick(['a', 'b', 'c', 'd'])} ${pick(['+=', '-=', '^=', '*='])} ${whole(2)};`],
      () => [`g_${integer()}[${whole(0)} & 15] ${pick(['=', '+=', '^=', '-='])} ${whole(2)};`],
      () => [`x = ${floating(3)};`],
      () => [`g_${real()}[${whole(0)} & 15] = ${floating(2)};`],
      () => [`fields[${whole(0)} & 15].${pick(['a', 'b', 'c', 'd', 'e[3]'])} = ${whole(1)};`],
      () => [`fields[${whole(0)} & 15].f = ${floating(1)};`],
      () => [`memcpy(g_${pick(SCALARS)}, g_${pick(SCALARS)}, ${1 + below(16)});`],
      () => [`memmove((u8 *)g_u64 + (a & 31), (u8 *)g_u64 + (b & 31), ${below(97)});`],
      () => [`memset((u8 *)g_u32 + (c & 15), (int)d, ${below(49)});`],
      () => [
        `snprintf(text, sizeof text, "%llx %.9g %d %s", (unsigned long long)a, (double)x, (int)b, "${'abc'.repeat(1 + below(5))}");`,
        'mix(text, strlen(text));',
      ],
      () => ['qsort(g_u32, 16, 4, ascending);'],
      () => [
        `for (int i = 0; i < 16; i++) g_${pick(['u8', 'u16', 'u32', 'i32', 'float', 'double', 'u64'])}[i] ${pick(['+=', '-=', '*='])} g_${pick(['u8', 'u16', 'u32', 'i32', 'float', 'double', 'u64'])}[${pick(['i', '15 - i', 'i ^ 1'])}];`,
      ],
      () =>
        index > 0
          ? [`${pick(['a', 'b', 'c'])} ^= f${below(index)}(${whole(1)}, ${whole(1)}, ${floating(1)});`]
          : ['d++;'],
      () => (index > 0 ? [`d += table[${whole(1)} % ${index}](b, ${whole(0)}, x);`] : ['d--;']),
    ];
    if (depth === 0 || below(3) > 0) return pick(simple)();
    return pick([
      () => [`if (${whole(2)} & ${1 + below(15)}) {`, ...block(), '} else {', ...block(), '}'],
      () => [`for (int k = 0; k < ${2 + below(12)} && budget-- > 0; k++) {`, '  n = (u64)k;', ...block(), '}'],
      () => [`n = ${whole(1)} & 31;`, 'while (n-- > 0 && budget-- > 0) {', ...block(), '  if (n > 31) break;', '}'],
      () => [
        `switch (${whole(1)} & 7) {`,
        ...[0, 1, 2, 3, 5, 6].flatMap((value) => [
          `case ${value}:`,
          ...block(),
          below(4) > 0 ? '  break;' : '  /* on */',
        ]),
        'default:',
        ...block(),
        '}',
      ],
    ])();
  };

  const lines = [HEAD, 'typedef u64 Function(u64, u64, double);', `extern Function *const table[${functions}];`];
  for (let index = 0; index < functions; index++) {
    lines.push(
      `${below(3) === 0 ? 'static ' : '__attribute__((noinline)) '}u64 f${index}(u64 a, u64 b, double x) {`,
      '  u64 c = a ^ b, d = 1, n = 0;',
      '  if (budget-- <= 0) return a - b;',
    );
    for (let count = 4 + below(8); count > 0; count--) lines.push(...statement(index, 2).map((line) => `  ${line}`));
    lines.push('  mix(&x, sizeof x);', '  return a ^ c * 3 ^ rotate(d, 9) ^ b;', '}');
  }
  lines.push(
    `Function *const table[${functions}] = {${Array.from({ length: functions }, (_, i) => `f${i}`).join(', ')}};`,
    'int main(void) {',
    `  for (int i = 0; i < ${functions}; i++) {`,
    '    budget = 2000;',
    '    u64 got = table[i](sum, (u64)i * 0x9e3779b97f4a7c15u, (double)i / 3);',
    '    mix(&got, sizeof got);',
    // The bytes of a long double behind the tenth are padding.
    '    for (int j = 0; j < 16; j++) mix(&g_real[j], 10);',
    ...SCALARS.filter((type) => type !== 'real').map((type) => `    mix(g_${type}, sizeof g_${type});`),
    '    printf("%d %016llx %016llx\\n", i, (unsigned long long)got, (unsigned long long)sum);',
    '  }',
    '  return 0;',
    '}',
  );
  return `${lines.join('\n')}\n`;
}
