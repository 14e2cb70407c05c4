/**
 * `xl dmesg`, `xl debug-keys` and `xl trigger`. The hypervisor runs in each domain's process, and what it says is in one log.
 * Source: xl(1); recorded output of xl 4.17.
 */

import { appendFileSync, mkdirSync, readFileSync, truncateSync } from 'node:fs';
import { dirname } from 'node:path';
import { raiseNmi } from '../../host/domain-client.ts';
import { hypervisorLogPath, stateRoot } from '../../host/state-dir.ts';
import { type Command, readWords } from './command.ts';
import { domainReport, memoryMiB } from './domain-report.ts';
import { allDomains, CommandError, findDomain, withStore } from './domains.ts';

export const dmesg: Command = {
  name: 'dmesg',
  modifies: false,
  canDryRun: false,
  summary: 'Read and/or clear dmesg buffer',
  usage: '[-c]',
  options: '  -c                        Clear dmesg buffer as well as printing it',
  async run(words, context) {
    const parsed = readWords(dmesg, words, { letters: 'c' }, 0, context);
    if (typeof parsed === 'number') return parsed;
    const path = hypervisorLogPath(stateRoot());
    try {
      context.out(readFileSync(path, 'utf8'));
      if (parsed.options.length > 0) truncateSync(path);
    } catch (error) {
      // The hypervisor has said nothing yet.
      if (!(error instanceof Error && 'code' in error && error.code === 'ENOENT')) throw error;
    }
    return 0;
  },
};

/** Handlers by key, as `h` shows them. */
const KEYS: Readonly<Record<string, string>> = { h: 'show this message', q: 'dump domain (and guest debug) info' };

export const debugKeys: Command = {
  name: 'debug-keys',
  modifies: true,
  canDryRun: false,
  summary: 'Send debug keys to Xen',
  usage: '<Keys>',
  options: '',
  async run(words, context) {
    const parsed = readWords(debugKeys, words, { letters: '' }, 1, context);
    if (typeof parsed === 'number') return parsed;
    return await withStore(context, async (store) => {
      const lines: string[] = [];
      for (const key of parsed.operands[0]) {
        // Keys that nobody handles are passed over in silence.
        if (key === 'h') {
          lines.push("'h' pressed -> showing installed handlers");
          for (const [letter, what] of Object.entries(KEYS))
            lines.push(` key '${letter}' (ascii '${letter.charCodeAt(0).toString(16)}') => ${what}`);
        } else if (key === 'q') {
          lines.push("'q' pressed -> dumping domain info");
          for (const { domid } of await allDomains(store)) {
            const report = domid === 0 ? null : await domainReport(store, domid);
            if (report === null) continue;
            lines.push(`General information for domain ${domid}:`);
            lines.push(`    dying=${Number(report.dying)} pause_count=${Number(report.paused)}`);
            lines.push(`    nr_pages=${memoryMiB(report) * 256}`);
            lines.push(`    handle=${report.uuid}`);
            lines.push(`VCPU information and callbacks for domain ${domid}:`);
            for (const [id, vcpu] of report.vcpus.entries())
              lines.push(`    VCPU${id}: [has=${vcpu.running ? 'T' : 'F'}] pause_flags=${Number(!vcpu.online)}`);
          }
        }
      }
      const path = hypervisorLogPath(stateRoot());
      mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
      appendFileSync(path, lines.map((line) => `(XEN) ${line}\n`).join(''), { mode: 0o600 });
      return 0;
    });
  },
};

export const setParameters: Command = {
  name: 'set-parameters',
  modifies: true,
  canDryRun: false,
  summary: 'Set hypervisor parameters',
  usage: '<Params>',
  options: '',
  async run(words, context) {
    const parsed = readWords(setParameters, words, { letters: '' }, 1, context);
    if (typeof parsed === 'number') return parsed;
    // None can be set at run time.
    const [params] = parsed.operands;
    context.err(`libxl: error: setting parameters: No such file or directory\ncannot set parameters: ${params}`);
    return 1;
  },
};

const TRIGGERS = ['nmi', 'reset', 'init', 'power', 'sleep', 's3resume'];

export const trigger: Command = {
  name: 'trigger',
  modifies: true,
  canDryRun: false,
  summary: 'Send a trigger to a domain',
  usage: '<Domain> <nmi|reset|init|power|sleep|s3resume> [<VCPU>]',
  options: '',
  async run(words, context) {
    const parsed = readWords(trigger, words, { letters: '' }, 2, context);
    if (typeof parsed === 'number') return parsed;
    const [word, what] = parsed.operands;
    return await withStore(context, async (store) => {
      const { domid } = await findDomain(store, word);
      if (!TRIGGERS.includes(what)) throw new CommandError(`Invalid trigger "${what}"`);
      const vcpu = Number(parsed.operands[2] ?? 0);
      const failed = (reason: string): CommandError =>
        new CommandError(`libxl: error: Domain ${domid}:Send trigger '${what}' failed: ${reason}`);
      // The others press buttons and pull lines that only an HVM guest has.
      if (what !== 'nmi') throw failed('Function not implemented');
      if (domid === 0) throw failed('Invalid argument');
      try {
        if (!(await raiseNmi(domid, vcpu))) throw failed('No such process');
      } catch (error) {
        if (error instanceof Error && error.name === 'DomainClientError') throw failed(error.message);
        throw error;
      }
      return 0;
    });
  },
};
