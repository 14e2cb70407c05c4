import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import type { DomainStarter } from './command.ts';
import { main } from './main.ts';

const folder = mkdtempSync(join(tmpdir(), 'domus-xl-'));
afterAll(() => rmSync(folder, { recursive: true }));

const GOOD = 'name = "b1"\nkernel = "/root/vmlinux"\nmemory = 64\n';

function config(name: string, text: string): string {
  const file = join(folder, name);
  writeFileSync(file, text);
  return file;
}
const good = config('good.cfg', GOOD);

async function xl(words: string[], startDomain?: DomainStarter['startDomain']) {
  let out = '';
  const err: string[] = [];
  const streams = { out: (text: string) => (out += text), err: (line: string) => err.push(line) };
  const code = await main(
    words,
    startDomain ? { ...streams, starter: { startDomain, connectConsole: async () => null } } : streams,
  );
  return { code, out, err };
}

const failing = (isExpected: boolean): DomainStarter['startDomain'] => {
  return async () => {
    throw Object.assign(new Error('it is broken'), { name: 'StartError', isExpected });
  };
};

describe('xl', () => {
  it('without a command prints help and fails', async () => {
    const { code, out, err } = await xl([]);
    expect({ code, err }).toEqual({ code: 1, err: [] });
    expect(out).toMatch(
      /^Usage xl \[-vfNtT\] <subcommand> \[args\]\n\nxl full list of subcommands:\n\n create {14}Create a domain from config file <filename>\n/,
    );
    expect(await xl(['help'])).toEqual({ code: 0, out, err: [] });
  });

  it('answers a bad global option, an unknown command and help for one as recorded', async () => {
    expect(await xl(['-Q', 'list'])).toEqual({
      code: 1,
      out: '',
      err: ["xl: invalid option -- 'Q'", 'unknown global option'],
    });
    expect(await xl(['bogus'])).toEqual({ code: 1, out: '', err: ['command not implemented'] });
    expect(await xl(['help', 'bogus'])).toEqual({ code: 0, out: 'command "bogus" not implemented\n', err: [] });
  });

  it('prints help for create, by any way of asking', async () => {
    const { code, out } = await xl(['help', 'create']);
    expect(code).toBe(0);
    expect(out).toMatch(
      /^Usage: xl \[-vtTfN\] create <ConfigFile> \[options\] \[vars\]\n\nCreate a domain .*\.\n\nOptions:\n\n-c {2}/,
    );
    expect(await xl(['create', '-h'])).toEqual({ code: 0, out, err: [] });
    expect(await xl(['cr', '--help'])).toEqual({ code: 0, out, err: [] });
    expect(await xl(['create', 'a', 'b'])).toEqual({ code: 2, out, err: [] });
  });
});

describe('xl create', () => {
  it('answers bad words as recorded', async () => {
    expect(await xl(['create', '-Z', good])).toEqual({ code: 2, out: '', err: ["option `Z' not supported."] });
    expect(await xl(['create', '--foo'])).toEqual({ code: 2, out: '', err: ["xl: unrecognized option '--foo'"] });
    expect(await xl(['create'])).toEqual({
      code: 6,
      out: '',
      err: ['Config file not specified and none in save file'],
    });
    const file = join(folder, 'nosuch.cfg');
    expect(await xl(['create', file])).toEqual({
      code: 3,
      out: '',
      err: [`Failed to read config file: ${file}: No such file or directory`],
    });
    expect((await xl(['create', folder])).err).toEqual([`Failed to read config file: ${folder}: Is a directory`]);
  });

  it('-n prints the config, and starts nothing', async () => {
    for (const words of [
      ['create', '-n', good],
      ['-N', 'create', good],
      ['create', good, '--dryrun'],
      ['create', '-nf', good],
    ]) {
      const { code, out, err } = await xl(words, failing(true));
      expect({ code, err }).toEqual({ code: 0, err: [`Parsing config from ${good}`] });
      expect(JSON.parse(out)).toMatchObject({ c_info: { name: 'b1' }, b_info: { target_memkb: 65536 } });
    }
    expect((await xl(['create', '-nq', good])).err).toEqual([]);
  });

  it('takes settings from the command line, alone with /dev/null', async () => {
    const { out } = await xl(['create', '-n', '/dev/null', 'name="q"', 'kernel="k"', 'memory=64']);
    expect(JSON.parse(out)).toMatchObject({ c_info: { name: 'q' }, b_info: { max_memkb: 65536, kernel: 'k' } });
    expect(JSON.parse((await xl(['create', good, '-n', 'memory=128'])).out)).toMatchObject({
      b_info: { max_memkb: 131072 },
    });
  });

  it('reads the line ends of Windows', async () => {
    const file = config('windows.cfg', `\ufeff${GOOD.replaceAll('\n', '\r\n')}`);
    expect((await xl(['create', '-n', file])).code).toBe(0);
  });

  it('reports a bad config with exit code 1', async () => {
    const bad = config('bad.cfg', `${GOOD}on_crash = "blah"\n`);
    expect(await xl(['create', '-p', bad])).toEqual({
      code: 1,
      out: '',
      err: [`Parsing config from ${bad}`, 'Unknown on_crash action "blah" specified'],
    });
  });

  it('hands the config to the host and returns when the domain runs, with -F when it has ended', async () => {
    const seen: unknown[] = [];
    const start: DomainStarter['startDomain'] = async (domain, options) => {
      seen.push([domain.name, domain.memoryMiB, options.paused, options.preserve]);
      options.log('for the user');
      options.note('for the log');
      return { domid: 3, ended: Promise.resolve(7), leave: () => void seen.push('left') };
    };
    expect(await xl(['create', '-p', good], start)).toEqual({
      code: 0,
      out: '',
      err: [`Parsing config from ${good}`, 'for the user'],
    });
    expect(await xl(['create', '-qeF', good], start)).toEqual({
      code: 7,
      out: '',
      err: ['for the user', 'for the log'],
    });
    expect(seen).toEqual([['b1', 64, true, false], 'left', ['b1', 64, false, true], 'left']);
  });

  it('tells the faults of the host and the kernel image from its own', async () => {
    expect(await xl(['create', '-q', good], failing(true))).toEqual({
      code: 3,
      out: '',
      err: ['libxl: error: it is broken'],
    });
    const { code, err } = await xl(['create', '-q', good], failing(false));
    expect(code).toBe(1);
    expect(err[0]).toMatch(/^xl: this is a defect of Domus: .*it is broken\n +at /);
  });
});
