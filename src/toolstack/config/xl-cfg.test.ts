import { describe, expect, it } from 'vitest';
import { appendOverrides, ConfigError, type ConfigValue, parseXlConfig } from './xl-cfg.ts';

type Plain = string | Plain[];
const plain = (value: ConfigValue): Plain => (value.kind === 'string' ? value.text : value.items.map(plain));

function parse(text: string, warn: (line: string) => void = () => {}): Record<string, Plain> {
  const { settings } = parseXlConfig('f.cfg', text, warn);
  return Object.fromEntries([...settings.values()].map(({ name, value }) => [name, plain(value)]));
}

/** The error's lines but for the last, which is always the same. */
function errors(text: string, source = 'f.cfg'): string[] {
  try {
    parseXlConfig(source, text, () => {});
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    const lines = error.message.split('\n');
    expect(lines.pop()).toBe('Failed to parse config: Invalid argument');
    return lines;
  }
  return [];
}

const near = (line: number, text: string, what: string) => `f.cfg:${line}: config parsing error near ${text}: ${what}`;

describe('parseXlConfig()', () => {
  it('reads strings, numbers, lists, comments and both separators', () => {
    const text = `# head\nname = "a'b" ; memory=0x40\nl = [ 'x', [ 1, 2, ],\n\n "y", # why\n]\ne = []; s = "\\"\\\\\\n\\t"`;
    expect(parse(text)).toEqual({ name: "a'b", memory: '0x40', l: ['x', ['1', '2'], 'y'], e: [], s: '"\\\n\t' });
  });

  it('takes the last of two settings, and joins with +=', () => {
    expect(parse('a = 1\na = 2\nb = "x"\nb += "y"\nl = [1]\nl += [2, 3]\nn += "z"')).toEqual({
      a: '2',
      b: 'xy',
      l: ['1', '2', '3'],
      n: 'z',
    });
  });

  it('lets a comment end the file', () => {
    expect(parse('a = 1 # end')).toEqual({ a: '1' });
  });

  // The texts are what xl 4.17 printed for these files.
  const head = 'name = "b1"\nkernel = "/root/vmlinux"\nramdisk = "/root/domu.initrd"\nmemory = 64\nvcpus = 1\n';
  it.each([
    ['syntax1', 'disk = [ "phy:/dev/loop0,xvda,w" \n', "near `': syntax error, unexpected $end, expecting ']'"],
    ['syntax2', 'foo bar\n', "near `bar': syntax error, unexpected IDENT, expecting += or '='"],
    ['syntax3', 'extra = "unterminated\n', 'near `"unterminated\': lexical error'],
  ])('tells the error of the recorded %s as xl does', (name, line, message) => {
    expect(errors(head + line, `${name}.cfg`)).toEqual([`${name}.cfg:6: config parsing error ${message}`]);
  });

  // What libxlu 4.17's own parser, compiled, answers.
  it.each([
    ['x = = 1\n', [near(1, "`='", "syntax error, unexpected '=', expecting STRING or NUMBER or '['")]],
    ['"s" = 1\n', [near(1, '`"s"\'', "syntax error, unexpected STRING, expecting $end or IDENT or NEWLINE or ';'")]],
    ['x = 1 y = 2\nz\n', [near(1, "`y'", 'syntax error, unexpected IDENT, expecting $end')]],
    ['x = [ 1 2 ]\n', [near(1, "`2'", "syntax error, unexpected NUMBER, expecting ']'")]],
    ['x = "\\q"\n', [near(1, '`"\\q"\'', 'invalid character after backlash in quoted string')]],
    [
      'x = "\\x41"\n',
      [near(1, '`"\\x41"\'', 'invalid digit after backslash hexnumerical character escape in quoted string')],
    ],
    ['x = [1]\nx += "s"\n', [near(2, '`"s"\'', 'can\'t add [list] to "string" or vice versa')]],
    [
      'X = 1\n\n\nb b\n',
      [near(1, "`X'", 'lexical error'), near(4, "`b'", "syntax error, unexpected IDENT, expecting += or '='")],
    ],
    ['a a\nb b\n', [near(1, "`a'", "syntax error, unexpected IDENT, expecting += or '='")]],
  ])('answers %j as libxlu does', (text, lines) => {
    expect(errors(text)).toEqual(lines);
  });

  it('says so when the file looks like Python', () => {
    expect(errors('x = f(1)\n')).toEqual([
      near(1, "`f'", "syntax error, unexpected IDENT, expecting STRING or NUMBER or '['"),
      near(1, "`(1)'", 'lexical error'),
      'warning: Config file looks like it contains Python code.',
      'warning:  Arbitrary Python is no longer supported.',
      'warning:  See https://wiki.xen.org/wiki/PythonInXlConfig',
    ]);
  });

  it('names the line that an unexpected newline ends', () => {
    expect(errors('a = 1\nx =\n')).toEqual([
      near(2, '<newline>', "syntax error, unexpected NEWLINE, expecting STRING or NUMBER or '['"),
    ]);
  });

  it('bounds the depth of lists', () => {
    expect(errors(`x = ${'['.repeat(100_000)}`)).toEqual([near(1, "`['", 'lists are nested deeper than 1000')]);
  });

  it('throws nothing but ConfigError, whatever the text', () => {
    const words = [
      'a',
      'b=',
      '=',
      '+=',
      ' ',
      '\n',
      ';',
      '[',
      ']',
      ',',
      '"x"',
      "'",
      '"',
      '\\',
      '1',
      '0x',
      '#',
      '\0',
      '(',
      'é',
      'X',
    ];
    let seed = 1;
    const random = (below: number) => {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      return Math.floor((seed / 2 ** 32) * below);
    };
    let good = 0;
    for (let i = 0; i < 20_000; i++) {
      const base = i % 2 === 0 ? '' : `${head}disk = [ "a", "b" ]\n`;
      const at = random(base.length + 1);
      let text = base.slice(0, at);
      for (let n = random(8); n >= 0; n--) text += words[random(words.length)];
      text += base.slice(at + random(4));
      try {
        const config = parseXlConfig('f.cfg', text, () => {});
        for (const name of config.settings.keys()) [config.getLong(name), config.getList(name)];
        good++;
      } catch (error) {
        if (!(error instanceof ConfigError)) throw new Error(`for ${JSON.stringify(text)}`, { cause: error });
      }
    }
    expect(good).toBeGreaterThan(100);
  });
});

describe('XlConfig', () => {
  const long = (value: string) => {
    const lines: string[] = [];
    const config = parseXlConfig('f.cfg', `\nn ${value}\n`, (line) => lines.push(line));
    return [config.getLong('n'), ...lines];
  };

  it.each([
    ['= 64', 64n],
    ['= 0x10', 16n],
    ['= 010', 8n],
    ['= 0', 0n],
    ['= " -5"', -5n],
    ['= "+0X1F"', 31n],
    ['= "9223372036854775807"', 9223372036854775807n],
  ])('getLong() reads %s', (text, value) => {
    expect(long(text)).toEqual([value]);
  });

  it.each([
    ['= "abc"', "parameter `n' is not a valid number"],
    ['= ""', "parameter `n' is not a valid number"],
    ['= 08', "parameter `n' is not a valid number"],
    ['= 0x', "parameter `n' is not a valid number"],
    ['= "64M"', "parameter `n' is not a valid number"],
    ['= 9223372036854775808', "parameter `n' could not be parsed as a number: Numerical result out of range"],
    ['= [ 1 ]', "parameter `n' is a list but should be a single value"],
    ['+= 1', "can't use += with numbers for parameter `n'"],
  ])('getLong() warns of %s', (text, message) => {
    expect(long(text)).toEqual([undefined, `f.cfg:2: warning: ${message}`]);
  });

  it('getList() warns of a single value', () => {
    const lines: string[] = [];
    const config = parseXlConfig('f.cfg', 'l = "x"', (line) => lines.push(line));
    expect(config.getList('l')).toBeUndefined();
    expect(lines).toEqual(["f.cfg:1: warning: parameter `l' is a single value but should be a list"]);
  });
});

describe('appendOverrides()', () => {
  it('puts each word on a line of its own behind the text', () => {
    expect(appendOverrides('a = 1', [])).toBe('a = 1');
    expect(parse(appendOverrides('a = 1\nb = 2', ['a=3', 'c="x"']))).toEqual({ a: '3', b: '2', c: 'x' });
  });

  it('leaves out what was appended before and is set again, and nothing else', () => {
    const own = 'a = 1\nb=2\n';
    const once = appendOverrides(own, ['a=3', 'c=["x=1"]']);
    expect(appendOverrides(once, ['a=3', 'c=["x=1"]'])).toBe(once);
    const twice = appendOverrides(appendOverrides(once, ['d=5']), ['a=4']);
    expect(twice).toBe('a = 1\nb=2\n\nc=["x=1"]\nd=5\na=4\n\n');
    expect(appendOverrides(twice, ['a=4', 'c=7', 'd=6']).length).toBeLessThan(twice.length);
    // What adds to what was before is none of that.
    const added = appendOverrides('a="x"', ['a+="y"', 'b=1']);
    expect(parse(appendOverrides(added, ['b=2']))).toEqual({ a: 'xy', b: '2' });
  });
});
