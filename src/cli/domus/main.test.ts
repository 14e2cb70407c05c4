import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { main } from './main.ts';

let out = '';
let err = '';
beforeEach(() => {
  out = '';
  err = '';
  vi.spyOn(process.stdout, 'write').mockImplementation((text) => {
    out += String(text);
    return true;
  });
  vi.spyOn(process.stderr, 'write').mockImplementation((text) => {
    err += String(text);
    return true;
  });
});
afterEach(() => {
  vi.restoreAllMocks();
});

describe('domus', () => {
  test.each([
    [['--help']],
    [['-h']],
    [['help']],
    [['guest', '--help']],
    [['demo', '--help']],
    [['guest', 'build', '-h']],
    [['daemon', '-h']],
    [['daemon', 'stop', '-h']],
    [['disk', '-h']],
    [['disk', 'resize', '-h']],
    [['domains', '--help']],
    [['domains', 'start', '-h']],
    [['completion', '-h']],
    [['fork', '-h']],
    [['snapshots', '--help']],
    [['revert', 'web', '-h']],
    [['keys', '-h']],
    [['keys', 'create', '--help']],
  ])('%j prints the help', async (argv) => {
    expect(await main(argv)).toBe(0);
    expect(out).toMatch(/^usage: domus COMMAND/);
    expect(err).toBe('');
  });

  test.each<[string[], RegExp]>([
    [[], /^usage: domus/],
    [['frobnicate'], /^domus: unknown command "frobnicate"\nTry 'domus --help'\.\n$/],
    [['frobnicate', '--help'], /^domus: unknown command "frobnicate"/],
    [['guest'], /expected "guest build"/],
    [['disk'], /^domus: disk: expected "disk resize DOMAIN VDEV \[SIZE\]"/],
    [['disk', 'flatten'], /^domus: disk: expected/],
    [['disk', 'flatten', 'a', 'b'], /^domus: disk: expected/],
    [['disk', 'flatten', '/nowhere/a'], /^domus: \/nowhere\/a: cannot open it for writing: there is no such file/],
    [['disk', 'resize', 'guest'], /^domus: disk: expected/],
    [['disk', 'shrink', 'guest', 'xvda', '1G'], /^domus: disk: expected/],
    [
      ['disk', 'resize', 'guest', 'xvda', 'large'],
      /^domus: disk resize: expected a size such as 20G or 1500M, found "large"/,
    ],
    [['disk', 'resize', 'guest', 'xvda', '0'], /^domus: disk resize: expected a size/],
    [['disk', 'resize', 'guest', 'floppy', '1G'], /^domus: floppy: expected the name of a virtual disk, such as xvda/],
    [['demo', 'x'], /unknown command "demo x"/],
    [['keys', 'destroy'], /^domus: keys: expected create, show, trust or forget, found "destroy"\n/],
    [['keys', 'show', '--days', '3'], /^domus: keys: --days and --replace are for "keys create"/],
    [['keys', 'create', '--days', '0'], /^domus: keys create: --days: expected a number from 1 to 36500, found "0"/],
    [['keys', 'create', '--colour'], /^domus: keys: Unknown option '--colour'/],
    [['keys', 'create', 'a b'], /^domus: expected the name or the address of a host, found "a b"\n/],
    [['keys', 'trust'], /^domus: keys: expected "keys trust FILE \.\.\."/],
    [['keys', 'trust', '/nowhere/x.pem'], /^domus: ENOENT: .*'\/nowhere\/x\.pem'\n/],
    [['keys', 'forget'], /^domus: keys: expected "keys forget NAME"/],
    [['keys', 'forget', 'nobody'], /^domus: no certificate of the name or fingerprint nobody is trusted\n/],
    [['daemon', 'start'], /^domus: daemon: expected "daemon" or "daemon stop"/],
    [['domains'], /^domus: domains: expected "domains start" or "domains stop"/],
    [['domains', 'restart'], /^domus: domains: expected/],
    [['fork'], /^domus: fork: expected "fork DOMAIN \[-n COUNT\] \[--name PATTERN\] \[-p\]"/],
    [['fork', 'web', 'other'], /^domus: fork: expected/],
    [['fork', 'web', '-n', '0'], /^domus: fork: -n: expected a number from 1 to 1000, found "0"/],
    [['fork', 'web', '-n', 'many'], /^domus: fork: -n: expected a number from 1 to 1000, found "many"/],
    [['fork', 'web', '-n', '2', '--name', 'w'], /^domus: fork: --name: expected "%d" in the name/],
    [['fork', 'web', '--frob'], /^domus: fork: Unknown option '--frob'/],
    [['snapshot'], /^domus: snapshot: expected "snapshot DOMAIN \[SNAPSHOT\]"/],
    [['snapshot', 'web', '-x'], /^domus: snapshot: unknown option "-x"/],
    [['snapshots', '-x'], /^domus: snapshots: unknown option "-x"/],
    [
      ['snapshots', 'remove', 'web'],
      /^domus: snapshots: expected "snapshots \[DOMAIN\]" or "snapshots remove DOMAIN SNAPSHOT"/,
    ],
    [['revert', 'web'], /^domus: revert: expected "revert DOMAIN SNAPSHOT \[-p\]"/],
    [['completion', 'fish'], /^domus: unknown command "completion fish"/],
    [['daemon', 'stop', '--force'], /^domus: daemon: expected "daemon" or "daemon stop"/],
    [['demo', '--nonsense'], /^domus: Unknown option '--nonsense'/],
    [['guest', 'build', '--suite'], /^domus: Option '--suite <value>' argument missing/],
    [['guest', 'build', '--kernel', '/nonexistent'], /^domus: --kernel and --initrd go together/],
    [['guest', 'build', '--package'], /^domus: Option '--package <value>' argument missing/],
    [
      ['guest', 'build', '--kernel', '/x', '--initrd', '/x', '--package', 'gcc'],
      /^domus: --package makes a ramdisk, so it cannot go together with --initrd/,
    ],
    [['demo', '--disk', '2G'], /^domus: --disk is for "guest build"/],
    [['guest', 'build', '--disk', 'large'], /^domus: --disk: expected a size such as 2G or 1500M, found "large"/],
    [['guest', 'build', '--disk', '10M'], /^domus: --disk: expected a size from 768 MiB to 2 TiB, found 10 MiB/],
    [['guest', 'build', '--disk', '2G', '--format', 'vhd'], /^domus: --format: expected raw or qcow2, found "vhd"/],
    [['guest', 'build', '--disk', '2G', '--package=vim,--hook'], /^domus: not a package's name: vim,--hook/],
    [['guest', 'build', '--disk', '2G', '--kernel', 'k'], /^domus: --disk has a kernel of its own/],
    [
      ['guest', 'build', '--kernel', '/nonexistent', '--initrd', '/nonexistent'],
      /^domus: \/nonexistent: cannot read it/,
    ],
  ])('%j fails with 1', async (argv, message) => {
    expect(await main(argv)).toBe(1);
    expect(err).toMatch(message);
    expect(out).toBe('');
  });
});
