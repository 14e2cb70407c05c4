/** Runs the programs that make a guest's disk, and finds in what they write why they have failed. */

import { spawn } from 'node:child_process';
import { GuestBuildError } from './build.ts';

/** Of mmdebstrap and apt, one may say what is wrong, and who called it that it has failed. */
const ERRORS_MAX = 5;
const ERROR_MARK = 'E: ';

/** Runs a program to its end. @throws GuestBuildError with the errors that it has told of ("E: ..."), or its last line if there are none */
export function runTool(
  path: string,
  words: readonly string[],
  env: NodeJS.ProcessEnv,
  onError?: (line: string) => void,
  onOutput?: (line: string) => void,
): Promise<void> {
  return new Promise((done, failed) => {
    const child = spawn(path, words, { env: { ...env, LC_ALL: 'C' }, stdio: ['ignore', 'pipe', 'pipe'] });
    const errors = new Set<string>();
    let last = '';
    const lines = (use: (line: string) => void): ((text: string) => void) => {
      let rest = '';
      return (text) => {
        const parts = (rest + text).split(/\r?\n/);
        rest = parts.pop() ?? '';
        for (const line of parts) use(line);
      };
    };
    child.stdout.setEncoding('utf8').on(
      'data',
      lines((line) => onOutput?.(line)),
    );
    child.stderr.setEncoding('utf8').on(
      'data',
      lines((line) => {
        if (line.startsWith(ERROR_MARK) && errors.size < ERRORS_MAX) errors.add(line.slice(ERROR_MARK.length));
        else if (line !== '' && !line.startsWith('I: ')) last = line;
        onError?.(line);
      }),
    );
    child.on('error', (error) => failed(new GuestBuildError(`${path}: ${error.message}`)));
    child.on('close', (code) => {
      if (code === 0) done();
      else failed(new GuestBuildError(`${path}: ${[...errors].join('; ') || last || `ended with ${code}`}`));
    });
  });
}
