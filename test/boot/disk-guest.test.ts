/**
 * `domus guest build --disk`: the disk boots by pygrub to a login, root gets in without a password, the root file system is the disk,
 * and systemd says that the system is running: no unit failed. It is booted from an image on top of it, of our own making, so that
 * the built one stays as it is.
 *
 * DOMUS_DEBIAN_ALL=1 does so on every engine, and installs a package from Debian's mirror through NAT, which takes minutes. Without
 * it the quickest engine does.
 */
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, expect, test } from 'vitest';
import { openDiskImage } from '../../src/storage/disk-image.ts';
import { hostFiles } from '../../src/storage/host/node-file.ts';
import { createQcow2 } from '../../src/storage/qcow2/create.ts';
import { AptError } from '../../src/toolstack/guest-image/apt.ts';
import { type BuiltDisk, buildDisk } from '../../src/toolstack/guest-image/build-disk.ts';
import { ENGINES, whyUnusable } from '../guests/engines.ts';
import { checkImage, qemuTools } from '../qemu-tools.ts';
import { endDomain, uniqueName } from './domains.ts';

const XL = fileURLToPath(new URL('../../src/cli/xl/main.ts', import.meta.url));
const ALL = process.env['DOMUS_DEBIAN_ALL'] !== undefined;
const LIMIT_MS = 20 * 60_000;
const SIZE_MIB = 1200;
const folder = mkdtempSync(join(tmpdir(), 'domus-disk-guest-'));
afterAll(() => rmSync(folder, { recursive: true }));

/** The packages are the host's, so what the host's apt cannot have the guest's cannot either. */
const INSTALL = 'apt-get -q update && apt-get -qy install hello && hello; ';
/** The quotes keep the mark out of the echo of what was typed. */
const END = 'echo AS-""BUILT';

/**
 * What is waited for, and then typed. Kernel and systemd write to the same console whenever they like, behind a prompt as well, and
 * more so on a busy machine: nothing may be expected to end with it until both have been told to be quiet.
 */
const STEPS: readonly (readonly [RegExp, string])[] = [
  [/Log in as root; there is no password\.[\s\S]*login: /, 'root\n'],
  [
    /root@domus:~# /,
    'dmesg -n 1; systemctl is-system-running --wait; systemctl --failed --no-legend --plain; echo QUI""ET\n',
  ],
  [
    /QUIET[\s\S]*root@domus:~# /,
    `findmnt -no SOURCE,FSTYPE /; hostname; grep -c ^URIs /etc/apt/sources.list.d/*; ${ALL ? INSTALL : ''}${END}; poweroff\n`,
  ],
];

/** Types each answer when its question shows. */
function session(config: string): Promise<{ code: number | null; shown: string }> {
  return new Promise((resolve, reject) => {
    const { name, setting } = uniqueName();
    const xl = spawn(process.execPath, [XL, 'create', '-c', config, setting], { stdio: ['pipe', 'pipe', 'inherit'] });
    const timer = setTimeout(() => void endDomain(name), LIMIT_MS - 60_000);
    let shown = '';
    let answered = 0;
    let step = 0;
    xl.stdout.setEncoding('utf8').on('data', (text: string) => {
      // A piece may end within an escape sequence, so all is looked at each time.
      shown += text;
      const plain = plainText(shown);
      const next = STEPS[step];
      if (next?.[0].test(plain.slice(answered))) {
        step++;
        answered = plain.length;
        xl.stdin.write(next[1]);
      }
    });
    xl.on('error', reject);
    xl.on('close', (code) => {
      clearTimeout(timer);
      resolve({ code, shown: plainText(shown) });
    });
  });
}

const plainText = (text: string): string => text.replace(/\x1b(?:\[[0-9;?]*[A-Za-z]|M)|\r/g, '');

for (const engine of ENGINES)
  test(`a built disk boots to a login and is running${ALL ? '; packages can be installed' : ''}, on ${engine}`, {
    timeout: LIMIT_MS,
  }, async (context) => {
    const unusable = whyUnusable(engine);
    if (unusable !== null) return context.skip(unusable);
    if (!ALL && engine !== ENGINES.find((name) => whyUnusable(name) === null))
      return context.skip('one engine does; DOMUS_DEBIAN_ALL=1 takes all');
    let built: BuiltDisk;
    try {
      built = await buildDisk({ sizeMiB: SIZE_MIB, format: 'qcow2' });
    } catch (error) {
      if (error instanceof AptError) return context.skip(error.message);
      throw error;
    }
    const path = join(folder, `${engine}.qcow2`);
    writeFileSync(path, '');
    const file = await hostFiles.open(path, { readOnly: false, sharing: 'exclusive' });
    await createQcow2(file, SIZE_MIB << 20, { name: built.disk, format: 'qcow2' });
    await file.close();
    const config = join(folder, `${engine}.cfg`);
    writeFileSync(
      config,
      `name = "${engine}"
engine = "${engine}"
memory = 512
bootloader = "pygrub"
disk = [ "format=qcow2,vdev=xvda,target=${path}" ]
vif = [ "script=vif-nat" ]
`,
    );
    const { code, shown } = await session(config);
    expect(shown).toMatch(/\nrunning\nQUIET\n/);
    expect(shown).toMatch(/\n\/dev\/xvda\s+ext4\ndomus\n[1-9]\d*\n/);
    expect(shown).toMatch(ALL ? /\nHello, world!\nAS-BUILT\n/ : /\nAS-BUILT\n/);
    expect(code).toBe(0);
    await (await openDiskImage(hostFiles, path, { format: 'qcow2', readOnly: true })).close();
    const qemu = await qemuTools();
    if (typeof qemu === 'string') return context.skip(qemu);
    await checkImage(qemu, path);
  });
