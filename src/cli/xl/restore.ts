/** `xl restore`: a saved domain goes on. Source: xl(1); recorded output of xl 4.17. */

import { resolve } from 'node:path';
import { type OpenSaved, openSaved } from '../../host/restore-domain.ts';
import { type DomainConfig, readDomainConfig } from '../../toolstack/config/domain-config.ts';
import { ConfigError } from '../../toolstack/config/xl-cfg.ts';
import { SaveFileError } from '../../toolstack/saved/save-file.ts';
import { type Command, readWords } from './command.ts';
import { readConfigFile } from './config-file.ts';
import { runNew } from './create.ts';

const LONG_OPTIONS = [
  { name: 'vncviewer', takesValue: false, key: 'V' },
  { name: 'vncviewer-autopass', takesValue: false, key: 'A' },
];

/** What `xl create` says of a domain that could not be started; `xl restore` has no code of its own for it. */
const EXIT_NOT_STARTED = 3;

export const restore: Command = {
  name: 'restore',
  modifies: true,
  canDryRun: false,
  summary: 'Restore a domain from a saved state',
  usage: '[options] [<ConfigFile>] <CheckpointFile>',
  options: [
    '-h                       Print this help.',
    '-p                       Do not unpause domain after restoring it.',
    '-e                       Do not wait in the background for the death of the domain.',
    '-d                       Enable debug messages.',
    '-V, --vncviewer          Connect to the VNC display after the domain is created.',
    '-A, --vncviewer-autopass Pass VNC password to viewer via stdin.',
  ].join('\n'),

  async run(words, context) {
    const parsed = readWords(restore, words, { letters: 'FcpdeVA', long: LONG_OPTIONS }, 1, context);
    if (typeof parsed === 'number') return parsed;
    const given = new Set(parsed.options.map(({ key }) => key));
    if (parsed.operands.length > 2) {
      context.help('restore');
      return 2;
    }
    const file = parsed.operands.at(-1) ?? '';
    const configFile = parsed.operands.length === 2 ? parsed.operands[0] : null;
    let saved: OpenSaved | null = null;
    let text: string;
    try {
      saved = await openSaved(file);
      context.err(`Loading new save file ${file}`);
      text = saved.domain.description.config;
    } catch (error) {
      if (!(error instanceof SaveFileError)) throw error;
      context.err(error.message);
      return 1;
    } finally {
      saved?.close();
    }
    const source = configFile ?? '<saved>';
    if (configFile !== null) {
      const other = readConfigFile(configFile, context);
      if (other === null) return 3;
      text = other;
    }
    context.err(`Parsing config from ${source}`);
    let config: DomainConfig;
    try {
      config = readDomainConfig(source, text, { warn: context.err });
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      context.err(error.message);
      return 1;
    }
    const flags = {
      console: given.has('c'),
      foreground: given.has('F'),
      viewer: given.has('V') || given.has('A'),
      autopass: given.has('A'),
      quiet: false,
      paused: given.has('p'),
      preserve: given.has('e'),
      configText: text,
      restoreFrom: resolve(file),
    };
    const code = await runNew(config, flags, context);
    return code === EXIT_NOT_STARTED ? 1 : code;
  },
};
