/** `xl save`: a domain to a file. Source: xl(1); recorded output of xl 4.17. */

import { existsSync, statSync } from 'node:fs';
import { resolve } from 'node:path';
import { DomainClientError, DomainProcessEnded, saveDomain } from '../../host/domain-client.ts';
import { partialPath } from '../../host/state-dir.ts';
import { readDomainConfig } from '../../toolstack/config/domain-config.ts';
import { ConfigError } from '../../toolstack/config/xl-cfg.ts';
import { type Command, type Context, readWords } from './command.ts';
import { readConfigFile } from './config-file.ts';
import { CommandError, findDomain, withStore } from './domains.ts';

export const save: Command = {
  name: 'save',
  modifies: true,
  canDryRun: false,
  summary: 'Save a domain state to restore later',
  usage: '[options] <Domain> <CheckpointFile> [<ConfigFile>]',
  options: [
    '-h  Print this help.',
    '-c  Leave domain running after creating the snapshot.',
    '-p  Leave domain paused after creating the snapshot.',
    '-D  Store the domain id in the configuration.',
  ].join('\n'),

  async run(words, context) {
    const parsed = readWords(save, words, { letters: 'cpD' }, 2, context);
    if (typeof parsed === 'number') return parsed;
    const given = new Set(parsed.options.map(({ key }) => key));
    const [domain, file, configFile, tooMany] = parsed.operands;
    if (tooMany !== undefined) {
      context.help('save');
      return 2;
    }
    return await withStore(context, async (store) => {
      const { domid } = await findDomain(store, domain);
      const config = configFile === undefined ? null : readConfigFile(configFile, context);
      if (configFile !== undefined && (config === null || !isConfig(configFile, config, context))) return 1;
      context.err(`Saving to ${file}`);
      if (domid === 0) throw new CommandError('libxl: error: Domain 0: the host cannot be saved');
      const then = given.has('c') ? 'run' : given.has('p') ? 'pause' : 'end';
      const before = whatIs(file);
      try {
        const saved = await saveDomain(domid, resolve(file), then, config);
        if (saved === null)
          throw new CommandError(`libxl: error: Domain ${domid}:Failed to save domain: No such process`);
        if (saved.remark !== null) context.err(`xl: Domain ${domid}: ${saved.remark}`);
        return 0;
      } catch (error) {
        if (error instanceof DomainProcessEnded) return ended(error, file, before, then === 'end', context);
        if (!(error instanceof DomainClientError)) throw error;
        throw new CommandError(`libxl: error: ${error.message}\nFailed to save domain, resuming domain`);
      }
    });
  },
};

/** Tells one file from another that has taken its name; null: there is none. */
function whatIs(file: string): string | null {
  const found = statSync(file, { throwIfNoEntry: false });
  return found === undefined ? null : `${found.dev}:${found.ino}:${found.ctimeMs}`;
}

/** Its process was killed. The exit code: where a domain was to end, and its file is there, it has been saved. */
function ended(
  { message, pid }: DomainProcessEnded,
  file: string,
  before: string | null,
  wasToEnd: boolean,
  context: Context,
): number {
  const now = whatIs(file);
  if (now !== null && now !== before && statSync(file).isFile()) {
    context.err(`libxl: error: ${message}; ${file} is whole, and the domain is in it`);
    return wasToEnd ? 0 : 1;
  }
  const partial = partialPath(resolve(file), pid);
  const left = existsSync(partial) ? `; what there is of it is ${partial}` : '';
  throw new CommandError(`libxl: error: ${message}; ${file} has not been written${left}\nFailed to save domain`);
}

/** A request to the domain's process is at most 64 KiB, as JSON. */
const CONFIG_BYTES_MAX = 60_000;

/** Otherwise it has been told what is wrong with it. */
function isConfig(file: string, text: string, context: Context): boolean {
  try {
    readDomainConfig(file, text, { warn: context.err });
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    context.err(error.message);
    return false;
  }
  const size = Buffer.byteLength(JSON.stringify(text));
  if (size > CONFIG_BYTES_MAX)
    context.err(`${file}: ${size} bytes, and at most ${CONFIG_BYTES_MAX} go with a saved domain`);
  return size <= CONFIG_BYTES_MAX;
}
