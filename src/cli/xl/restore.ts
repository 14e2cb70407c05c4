/** `xl restore`: a saved domain goes on. Source: xl(1); recorded output of xl 4.17. */

import { statSync } from 'node:fs';
import { resolve } from 'node:path';
import { type EarlyProcess, giveUpProcess, StartError, startProcess } from '../../host/start-domain.ts';
import { type Command, readWords } from './command.ts';

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
    // It loads what a domain needs while this one loads what reads the description, and reads it.
    const process = context.starter === undefined ? earlyProcess(file) : null;
    try {
      const [{ readSavedConfig }, { runNew }] = await Promise.all([import('./saved-config.ts'), import('./create.ts')]);
      const found = await readSavedConfig(file, configFile, context);
      if (typeof found === 'number') return found;
      const flags = {
        console: given.has('c'),
        foreground: given.has('F'),
        viewer: given.has('V') || given.has('A'),
        autopass: given.has('A'),
        quiet: false,
        paused: given.has('p'),
        preserve: given.has('e'),
        configText: found.text,
        restoreFrom: resolve(file),
        ...(process === null ? {} : { process }),
      };
      const code = await runNew(found.config, flags, context);
      return code === EXIT_NOT_STARTED ? 1 : code;
    } finally {
      if (process?.isTaken === false) giveUpProcess(process);
    }
  },
};

/** Null: nothing that could be restored, or a reason against a process that is told when there has to be one. */
function earlyProcess(file: string): EarlyProcess | null {
  if (statSync(file, { throwIfNoEntry: false })?.isFile() !== true) return null;
  try {
    return startProcess('restored');
  } catch (error) {
    if (!(error instanceof StartError)) throw error;
    return null;
  }
}
