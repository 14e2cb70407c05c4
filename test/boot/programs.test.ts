/**
 * Debian's gcc, python, perl, openssl and compressors give the same bytes in a guest as on this machine's CPU.
 *
 * DOMUS_PROGRAMS_ROUNDS (default 1) makes it longer, DOMUS_PROGRAMS_SEED (default 1) different. With more than one round every
 * number of vCPUs is tried.
 */

import { readdirSync, readFileSync } from 'node:fs';
import { beforeAll, expect, test } from 'vitest';
import { probeKvm } from '../../src/engine/kvm/self-test.ts';
import { xl } from './guest.ts';
import { type PackagesRoot, packagesRoot, ramdiskWith, runOnHost } from './packages-root.ts';
import { generateProgram } from './programs/program-generator.ts';

const PACKAGES = ['gcc', 'gcc-multilib', 'libc6-dev', 'python3', 'perl', 'openssl', 'xz-utils', 'bzip2', 'zstd'];
const ROUNDS = Number(process.env['DOMUS_PROGRAMS_ROUNDS'] ?? '1');
const SEED = Number(process.env['DOMUS_PROGRAMS_SEED'] ?? '1');
const MINUTE_MS = 60_000;
/** The slowest engine's, with room. */
const TIMEOUT_MS = (10 + 5 * ROUNDS) * MINUTE_MS;
const FUNCTIONS = 12;
const FOLDER = 'programs';
/** A KVM without hardware virtualisation emulates 32-bit code, without x87 and SSE (docs/quirks.md). */
const RUNS_32_BIT_ON_KVM = /^flags\b.*\b(vmx|svm)\b/m.test(readFileSync('/proc/cpuinfo', 'utf8'));

const kvm = probeKvm();
const MACHINES = [
  { engine: 'kvm', vcpus: 2, unusable: kvm.usable ? null : kvm.reason },
  { engine: 'wasm', vcpus: 2, unusable: null },
  { engine: 'wasm', vcpus: 1, unusable: ROUNDS > 1 ? null : 'two vCPUs do; DOMUS_PROGRAMS_ROUNDS=2 tries one as well' },
] as const;

const files = new Map<string, string>();
let root: PackagesRoot;
let ramdisk = '';
let expected: string[] | undefined;
beforeAll(async () => {
  const folder = new URL('./programs/', import.meta.url);
  for (const name of readdirSync(folder))
    if (!name.endsWith('.ts')) files.set(`${FOLDER}/${name}`, readFileSync(new URL(name, folder), 'utf8'));
  files.set(`${FOLDER}/program.c`, generateProgram(SEED, FUNCTIONS * ROUNDS));
  files.set(`${FOLDER}/program32.c`, generateProgram(SEED, (FUNCTIONS / 2) * ROUNDS, 32));
  root = await packagesRoot(PACKAGES);
  ramdisk = ramdiskWith(root, 'initrd-programs.gz', files);
  const text = await runOnHost(root, files, `rm -rf /tmp/work; mkdir /tmp/work; cd /tmp/work; ${COMMAND}`);
  expected = text === undefined ? undefined : results(text);
}, TIMEOUT_MS);

const COMMAND = `sh /${FOLDER}/all.sh /${FOLDER} ${SEED} ${ROUNDS} 2>&1`;
const SCRIPT = `cd /tmp; ${COMMAND}
dmesg | grep -iE 'oops|BUG:|Call Trace|detected stall|soft lockup|segfault|trap |general protection|WARNING: CPU' && echo KERNEL TROUBLE`;

function results(text: string): string[] {
  return text
    .split('\n')
    .filter((line) => line.startsWith('RESULT '))
    .sort();
}

for (const { engine, vcpus, unusable } of MACHINES)
  test(`programs on ${engine} with ${vcpus} vCPU(s) print what they print on this CPU`, {
    timeout: TIMEOUT_MS,
  }, async (context) => {
    if (unusable !== null) return context.skip(unusable);
    if (expected === undefined)
      return context.skip('no user namespaces (unshare --user) to run the programs on this machine');
    expect(expected).toHaveLength(6);
    for (const line of expected) expect(line).toMatch(/ 0$/);
    const run = Buffer.from(SCRIPT).toString('base64');
    const guest = await xl(
      [
        'create',
        '-c',
        root.guest.config,
        `ramdisk="${ramdisk}"`,
        `cmdline="console=hvc0 domus.run=${run}"`,
        `engine="${engine}"`,
        `vcpus=${vcpus}`,
      ],
      TIMEOUT_MS,
    );
    const compared = (lines: readonly string[]): string[] =>
      lines.filter((line) => engine !== 'kvm' || RUNS_32_BIT_ON_KVM || !line.startsWith('RESULT compiled32'));
    expect(compared(results(guest.console)), `${guest.console}\n${guest.log}`).toEqual(compared(expected));
    if (engine !== 'kvm' || RUNS_32_BIT_ON_KVM) expect(guest.console).not.toContain('KERNEL TROUBLE');
    expect(guest.code).toBe(0);
  });
