import { spawnSync } from 'node:child_process';
import { expect, test } from 'vitest';
import { bashCompletion, optionsOf } from './completion.ts';

/** What bash would offer behind these words. */
function offered(script: string, words: readonly string[]): string[] | null {
  const call = `COMP_WORDS=(${words.map((word) => `'${word}'`).join(' ')}); COMP_CWORD=${words.length - 1}`;
  // Stands for the command that the script asks for names.
  const xl = `xl() { printf 'UUID ID name\\n00000000-0000-0000-0000-000000000001  1    web-1   \\n00000000-0000-0000-0000-000000000002  2    db   \\n'; }`;
  const show = `_domus_xl; printf '%s\\n' "\${COMPREPLY[@]}"`;
  const { status, stdout } = spawnSync('bash', ['-c', `${script}\n${xl}\n${call}\n${show}`], { encoding: 'utf8' });
  return status === 0 ? stdout.split('\n').filter((line) => line !== '') : null;
}

test('the completion of bash knows commands, options and domains', async (context) => {
  const script = await bashCompletion();
  if (spawnSync('bash', ['-c', 'complete -p'], {}).error !== undefined) return context.skip('there is no bash');
  expect(offered(script, ['xl', 'crea'])).toEqual(['create']);
  expect(offered(script, ['xl', '-v', 'block-'])).toEqual(['block-attach', 'block-list', 'block-detach']);
  expect(offered(script, ['xl', 'help', 'unp'])).toEqual(['unpause']);
  expect(offered(script, ['xl', 'create', '--d'])).toEqual(['--defconfig', '--dryrun']);
  expect(offered(script, ['xl', 'pause', 'w'])).toEqual(['web-1']);
  expect(offered(script, ['xl', 'console', ''])).toEqual(['web-1', 'db']);
  expect(offered(script, ['xl', 'info', 'w'])).toEqual([]);
});

test('options are found in the help of a command', () => {
  const command = {
    options: '-f FILE, --defconfig=FILE\n   Use -x.\n-n, --dryrun  Dry run\n<Button> is -y\n-p, --pidfile [FILE]',
  };
  expect(
    optionsOf({ name: '', modifies: false, canDryRun: false, summary: '', usage: '', run: async () => 0, ...command }),
  ).toEqual(['--defconfig', '--dryrun', '--pidfile', '-f', '-n', '-p']);
});
