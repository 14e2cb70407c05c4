import { expect, test } from 'vitest';
import { GuestBuildError } from './build.ts';
import { runTool } from './run-tool.ts';

const sh = (script: string): Promise<void> => runTool('/bin/sh', ['-c', script], process.env);

test.skipIf(process.platform === 'win32').each([
  // What mmdebstrap writes when a package is not there.
  [
    'echo "I: starting apt-get update..."; echo "E: Unable to locate package nosuch"; echo "W: hm"; echo "E: mmdebstrap failed to run"',
    'Unable to locate package nosuch; mmdebstrap failed to run',
  ],
  ['for i in 1 2 2 3 4 5 6 7; do echo "E: $i"; done', '1; 2; 3; 4; 5'],
  ['echo first; echo last; echo; echo "I: done"', 'last'],
  ['true', 'ended with 3'],
])('a program that fails is an error that says why: %s', async (script, why) => {
  await expect(sh(`{ ${script}; } >&2; exit 3`)).rejects.toThrow(new GuestBuildError(`/bin/sh: ${why}`));
});

test.skipIf(process.platform === 'win32')('what a program writes is handed on, a line at a time', async () => {
  const [errors, output]: [string[], string[]] = [[], []];
  const script = 'printf "a\\nb\\n"; printf "E: c\\n" >&2';
  await runTool(
    '/bin/sh',
    ['-c', script],
    process.env,
    (line) => errors.push(line),
    (line) => output.push(line),
  );
  expect([errors, output]).toEqual([['E: c'], ['a', 'b']]);
});
