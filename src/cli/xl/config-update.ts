/**
 * `xl config-update`: another config for a running domain, which counts from its next start on.
 *
 * Source: xl(1); recorded output of xl 4.17, which takes the first word for the domain whatever it is.
 */

import { resolve } from 'node:path';
import { whyNoRecord } from '../../host/domain-client.ts';
import { readRecord, writeRecord } from '../../host/domain-record.ts';
import { stateRoot } from '../../host/state-dir.ts';
import { configJson, readStated, withDefaults } from '../../toolstack/config/domain-config.ts';
import { appendOverrides, ConfigError } from '../../toolstack/config/xl-cfg.ts';
import { type Command, readWords } from './command.ts';
import { readConfigFile } from './config-file.ts';
import { CommandError, findDomain, withStore } from './domains.ts';

const WARNING =
  'WARNING: xl now has better capability to manage domain configuration, avoid using this command when possible';

export const configUpdate: Command = {
  name: 'config-update',
  modifies: true,
  canDryRun: true,
  summary: `Update a running domain's saved configuration, used when rebuilding the domain after reboot.\n${WARNING}`,
  usage: '<Domain> <ConfigFile> [options] [vars]',
  options: [
    '-h                      Print this help.',
    '-f FILE, --defconfig=FILE\n                     Use the given configuration file.',
    '-d                      Enable debug messages.\n',
  ].join('\n'),

  async run(words, context) {
    const [word, ...rest] = words;
    if (word === undefined) {
      context.err("'xl config-update' requires at least 1 argument.\n");
      context.help('config-update');
      return 2;
    }
    context.err(WARNING);
    return await withStore(context, async (store) => {
      const { domid } = await findDomain(store, word);
      const long = [{ name: 'defconfig', takesValue: true, key: 'f' }];
      const parsed = readWords(configUpdate, rest, { letters: 'dqf:', long }, 0, context);
      if (typeof parsed === 'number') return parsed;
      const overrides = parsed.operands.filter((operand) => operand.includes('='));
      const files = parsed.operands.filter((operand) => !operand.includes('='));
      const file = parsed.options.findLast(({ key }) => key === 'f')?.value ?? files[0];
      if (file === undefined) throw new CommandError('Config file not specified');
      const text = readConfigFile(file, context);
      if (text === null) return 1;
      if (!parsed.options.some(({ key }) => key === 'q')) context.err(`Parsing config from ${file}`);
      try {
        const stated = readStated(file, appendOverrides(text, overrides), { warn: context.err });
        if (context.dryRun || parsed.options.some(({ key }) => key === 'd')) context.out(configJson(stated));
        if (context.dryRun) return 0;
        const record = readRecord(stateRoot(), domid);
        if (record === null) throw new CommandError(`libxl: error: ${whyNoRecord(domid)}`);
        const config = withDefaults(stated);
        // Its files are found where the command is given, not where the domain was created.
        const { kernel, ramdisk, bootloader } = config;
        const absolute = (path: string | null): string | null =>
          path === null || bootloader !== null ? path : resolve(path);
        writeRecord(stateRoot(), domid, {
          ...record,
          next: {
            text: appendOverrides(text, overrides),
            config: { ...config, kernel: absolute(kernel), ramdisk: absolute(ramdisk) },
          },
        });
      } catch (error) {
        if (error instanceof ConfigError) throw new CommandError(error.message);
        throw error;
      }
      return 0;
    });
  },
};
