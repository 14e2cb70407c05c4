import { describe, expect, it } from 'vitest';
import { getopt } from './getopt.ts';

const LONG = [
  { name: 'defconfig', takesValue: true, key: 'f' },
  { name: 'dryrun', takesValue: false, key: 'n' },
  { name: 'ignore-global-affinity-masks', takesValue: false, key: 'i' },
  { name: 'quiet', takesValue: false, key: 'q' },
  { name: 'vncviewer', takesValue: false, key: 'V' },
  { name: 'vncviewer-autopass', takesValue: false, key: 'A' },
  { name: 'help', takesValue: false, key: 'h' },
];

/** One line an event, as a small C program around glibc's getopt_long prints them. */
function lines(command: string, inOrder = false): string[] {
  const words = command === '' ? [] : command.split(' ');
  const { events, operands } = getopt(words, { program: 'xl', letters: 'AFVcdef:inpq', long: LONG, inOrder });
  return [
    ...events.map((event) => (event.kind === 'error' ? event.message : `${event.key} ${event.value ?? '-'}`)),
    ...operands.map((operand) => `op ${operand}`),
  ];
}

describe('getopt()', () => {
  // The answers are those of glibc 2.36.
  it.each([
    ['', []],
    ['--foo', ["xl: unrecognized option '--foo'"]],
    ['--foo=1', ["xl: unrecognized option '--foo=1'"]],
    ['--d', ["xl: option '--d' is ambiguous; possibilities: '--defconfig' '--dryrun'"]],
    ['--v', ["xl: option '--v' is ambiguous; possibilities: '--vncviewer' '--vncviewer-autopass'"]],
    ['--vncviewer=3', ["xl: option '--vncviewer' doesn't allow an argument"]],
    ['--vncviewer', ['V -']],
    ['--vncviewer-', ['A -']],
    ['--defc', ["xl: option '--defconfig' requires an argument"]],
    ['--defc a', ['f a']],
    ['--defconfig=a=b', ['f a=b']],
    ['--q=1', ["xl: option '--quiet' doesn't allow an argument"]],
    ['-f', ["xl: option requires an argument -- 'f'"]],
    ['-fa b -nq c', ['f a', 'n -', 'q -', 'op b', 'op c']],
    ['-nf c', ['n -', 'f c']],
    ['-n5', ['n -', "xl: invalid option -- '5'"]],
    ['- -- -n', ['op -', 'op -n']],
    ['-: x', ["xl: invalid option -- ':'", 'op x']],
    ['-n-q', ['n -', "xl: invalid option -- '-'", 'q -']],
  ])('answers %j as glibc does', (command, expected) => {
    expect(lines(command)).toEqual(expected);
  });

  it('stops at the first operand when told to', () => {
    expect(lines('-n create -q', true)).toEqual(['n -', 'op create', 'op -q']);
  });
});
