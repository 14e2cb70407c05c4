/** `xl uptime` and `xl vm-list`. Source: xl(1); tools/xl/xl_info.c (read for behaviour); recorded output of xl 4.17. */

import { type Command, readWords } from './command.ts';
import { domainReport, uptimeSecondsOf } from './domain-report.ts';
import { allDomains, findDomain, withStore } from './domains.ts';

export const uptime: Command = {
  name: 'uptime',
  modifies: false,
  canDryRun: false,
  summary: 'Print uptime for all/some domains',
  usage: '[-s] [Domain]',
  options: '',
  async run(words, context) {
    const parsed = readWords(uptime, words, { letters: 's' }, 0, context);
    if (typeof parsed === 'number') return parsed;
    const isShort = parsed.options.length > 0;
    return await withStore(context, async (store) => {
      const found =
        parsed.operands.length === 0
          ? await allDomains(store)
          : await Promise.all(parsed.operands.map((word) => findDomain(store, word)));
      if (!isShort) context.out('Name                                ID Uptime\n');
      for (const { domid } of found) {
        const report = await domainReport(store, domid);
        if (report === null) continue;
        const { name } = report;
        const seconds = Math.floor(await uptimeSecondsOf(store, report));
        context.out(
          isShort
            ? ` ${new Date().toTimeString().slice(0, 8)} up ${duration(seconds, false)},  ${name} (${domid})\n`
            : `${name.padEnd(33)} ${String(domid).padStart(4)} ${duration(seconds, true)}\n`,
        );
      }
      return 0;
    });
  },
};

function duration(total: number, withSeconds: boolean): string {
  const days = Math.floor(total / 86400);
  const two = (value: number): string => String(value).padStart(2, '0');
  const hours = String(Math.floor(total / 3600) % 24).padStart(2);
  const time = `${hours}:${two(Math.floor(total / 60) % 60)}${withSeconds ? `:${two(total % 60)}` : ''}`;
  return days === 0 ? time : `${days} day${days > 1 ? 's' : ''}, ${time}`;
}

export const vmList: Command = {
  name: 'vm-list',
  modifies: false,
  canDryRun: false,
  summary: 'List guest domains, excluding dom0, stubdoms, etc.',
  usage: '',
  options: '',
  async run(words, context) {
    const parsed = readWords(vmList, words, { letters: '' }, 0, context);
    if (typeof parsed === 'number') return parsed;
    return await withStore(context, async (store) => {
      context.out('UUID                                  ID    name\n');
      for (const { domid } of await allDomains(store)) {
        const report = await domainReport(store, domid);
        if (report !== null) context.out(`${report.uuid}  ${domid}    ${report.name.padEnd(30)}\n`);
      }
      return 0;
    });
  },
};
