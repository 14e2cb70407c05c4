/**
 * What a guest was told is on its disks is there, whatever ends it: a reset in the middle of writing, kill -9 of the domain's
 * process, a poweroff. disk-load/load.pl writes, discards, flushes and reads back from several processes at once and says on the
 * console what has been flushed; disk-load/model.ts says what must be on the image then. qemu-img and e2fsprogs judge the images.
 *
 * DOMUS_DATA_ROUNDS (default 1) makes it longer, over all kinds of images; DOMUS_DATA_SEED (default 1) different.
 */

import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { appendFileSync, copyFileSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { AptError } from '../../src/toolstack/guest-image/apt.ts';
import { type BuiltGuest, buildGuest } from '../../src/toolstack/guest-image/build.ts';
import { writeCpio } from '../../src/toolstack/guest-image/cpio.ts';
import { debianTool } from '../../src/toolstack/guest-image/debian-tool.ts';
import { ENGINES, whyUnusable } from '../guests/engines.ts';
import { checkImage, type QemuTools, qemuTools } from '../qemu-tools.ts';
import { DISK_BYTES, fileContent, mayBeGone, PROCESSES, replay, verify } from './disk-load/model.ts';
import { killDomain, uniqueName } from './domains.ts';

const XL = fileURLToPath(new URL('../../src/cli/xl/main.ts', import.meta.url));
const ROUNDS = Number(process.env['DOMUS_DATA_ROUNDS'] ?? '1');
const SEED = Number(process.env['DOMUS_DATA_SEED'] ?? '1');
const MINUTE_MS = 60_000;
const OPERATIONS = 150;
/** More than the process does before it is killed. */
const OPERATIONS_KILLED = 20_000;
const RESET_AT = 90;
const FLUSHES_BEFORE_KILL = 40;

const SCRIPT = `
for word in $(cat /proc/cmdline); do case $word in load=*) load=\${word#load=} ;; esac; done
mount -t ext4 /dev/xvdb /mnt
perl /load.pl $(echo $load | tr , ' ')
umount /mnt
echo 3 >/proc/sys/vm/drop_caches
busybox sha256sum </dev/xvda | sed 's/^/DEVICE /'
dmesg | grep -iE 'oops|BUG:|Call Trace|I/O error' && echo KERNEL TROUBLE
`;

const KINDS = [
  { kind: 'clusters of 64 KiB', options: [] },
  { kind: 'clusters of 4 KiB', options: ['-o', 'cluster_size=4k,lazy_refcounts=on'] },
  { kind: 'counts of one bit', options: ['-o', 'refcount_bits=1'] },
] as const;

const folder = mkdtempSync(join(tmpdir(), 'domus-data-'));
afterAll(() => rmSync(folder, { recursive: true }));

let guest: BuiltGuest;
let ramdisk: string;
let qemu: QemuTools | string;
let why: string | null = null;
beforeAll(async () => {
  qemu = await qemuTools();
  try {
    guest = await buildGuest({ packages: ['perl-base'] });
  } catch (error) {
    if (!(error instanceof AptError)) throw error;
    why = error.message;
    return;
  }
  const load = readFileSync(new URL('./disk-load/load.pl', import.meta.url));
  ramdisk = join(folder, 'initrd.gz');
  copyFileSync(guest.ramdisk, ramdisk);
  // The kernel unpacks one archive after the other.
  appendFileSync(ramdisk, gzipSync(writeCpio([{ kind: 'file', name: 'load.pl', mode: 0o755, content: load }])));
}, 5 * MINUTE_MS);

interface Disks {
  readonly engine: string;
  readonly blocks: string;
  readonly files: string;
}

interface Run {
  readonly code: number | null;
  readonly shown: string;
  /** The last operation of each process that was flushed, as far as the host was told. */
  readonly flushed: readonly number[];
  /** The last file that was flushed; 0: none. */
  readonly file: number;
}

/** Runs the load to its end; or until so many flushes have been told, and then kills the domain's process, which ends xl. */
function runLoad(disks: Disks, load: string, flushesMax = Infinity): Promise<Run> {
  return new Promise((resolve, reject) => {
    const run = Buffer.from(SCRIPT).toString('base64');
    const { name, setting } = uniqueName();
    const child = spawn(
      process.execPath,
      [
        ...[XL, 'create', '-c', guest.config, `engine="${disks.engine}"`, `ramdisk="${ramdisk}"`, 'vcpus=2', setting],
        `disk=["format=qcow2,vdev=xvda,target=${disks.blocks}", "format=qcow2,vdev=xvdb,target=${disks.files}"]`,
        `cmdline="console=hvc0 load=${load} domus.run=${run}"`,
      ],
      { stdio: ['ignore', 'pipe', 'pipe'] },
    );
    const flushed = new Array<number>(PROCESSES).fill(0);
    let file = 0;
    let flushes = 0;
    let shown = '';
    let rest = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      shown += text;
      const lines = (rest + text).split(/\r?\n/);
      rest = lines.pop() ?? '';
      for (const line of lines) {
        const blocks = /^F (\d) (\d+) E$/.exec(line);
        if (blocks !== null) {
          flushed[Number(blocks[1])] = Number(blocks[2]);
          if (++flushes === flushesMax) killDomain(name).catch(reject);
        }
        file = Number(/^G (\d+) E$/.exec(line)?.[1] ?? file);
      }
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      shown += text;
    });
    child.on('error', reject);
    child.on('close', (code) => resolve({ code, shown: shown.replaceAll('\r', ''), flushed, file }));
  });
}

const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

async function contentOf(tools: QemuTools, image: string): Promise<Buffer> {
  const raw = join(folder, 'content.raw');
  await tools.img('convert', '-f', 'qcow2', '-O', 'raw', image, raw);
  return readFileSync(raw);
}

function expectNoTrouble({ shown }: Run): void {
  expect(shown).not.toMatch(/WRONG|LOAD FAILED|KERNEL TROUBLE| at \/load\.pl line/);
}

/** The file system on the image: the journal is replayed, then it is clean, and what was flushed is there. */
async function expectFiles(tools: QemuTools, image: string, seed: number, last: number): Promise<void> {
  const raw = join(folder, 'files.raw');
  await tools.img('convert', '-f', 'qcow2', '-O', 'raw', image, raw);
  const env = { ...process.env, PATH: `${process.env['PATH']}:/usr/sbin:/sbin`, LC_ALL: 'C' };
  const replayed = spawnSync('e2fsck', ['-fp', raw], { env, encoding: 'utf8' });
  expect([0, 1], `${replayed.stdout}${replayed.stderr}`).toContain(replayed.status);
  const checked = spawnSync('e2fsck', ['-fn', raw], { env, encoding: 'utf8' });
  expect(checked.status, checked.stdout).toBe(0);
  let looked = 0;
  for (let file = 1; file <= last; file++) {
    if (mayBeGone(file, last)) continue;
    const dumped = spawnSync('debugfs', ['-R', `cat ${seed}-${file}`, raw], {
      env,
      encoding: 'utf8',
      maxBuffer: 1 << 26,
    });
    expect(sha256(Buffer.from(dumped.stdout)), `file ${file}`).toBe(sha256(Buffer.from(fileContent(seed, file))));
    looked++;
  }
  expect(looked).toBeGreaterThan(0);
}

for (let round = 0; round < ROUNDS; round++)
  describe(`round ${round + 1}`, () => {
    for (const engine of ENGINES)
      test(`nothing that was flushed is lost, on ${engine}`, { timeout: 20 * MINUTE_MS }, async (context) => {
        const unusable = whyUnusable(engine) ?? why;
        if (unusable !== null) return context.skip(unusable);
        if (typeof qemu === 'string') return context.skip(qemu);
        const { options } = KINDS[round % KINDS.length]!;
        const disks = { engine, blocks: join(folder, 'blocks.qcow2'), files: join(folder, 'files.qcow2') };
        await qemu.img('create', '-q', '-f', 'qcow2', ...options, disks.blocks, String(DISK_BYTES));
        const fileSystem = join(folder, 'files.raw');
        writeFileSync(fileSystem, '');
        truncateSync(fileSystem, 64 << 20);
        const mke2fs = await debianTool('mke2fs', 'e2fsprogs');
        expect(spawnSync(mke2fs.path, ['-q', '-F', '-t', 'ext4', fileSystem], { env: mke2fs.env }).status).toBe(0);
        await qemu.img('convert', '-f', 'raw', '-O', 'qcow2', ...options, fileSystem, disks.files);
        const seed = SEED * 1000 + round * 10;

        // A reset: the domain ends in the middle of everything, and the next one finds the disk as it was.
        const reset = await runLoad(disks, `${seed},${OPERATIONS_KILLED},${RESET_AT}`);
        expect(reset.code, reset.shown).toBe(0);
        expect(reset.shown).toContain('AFTER RESET\n');
        expectNoTrouble(reset);
        await checkImage(qemu, disks.blocks);
        await checkImage(qemu, disks.files);
        const afterReset = await contentOf(qemu, disks.blocks);
        const first = verify(afterReset, Buffer.alloc(DISK_BYTES), seed, OPERATIONS_KILLED, reset.flushed);
        expect(first.wrong).toEqual([]);
        expect(first.flushed).toBeGreaterThan(0);
        expect(reset.shown).toContain(`DEVICE ${sha256(afterReset)}`);
        await expectFiles(qemu, disks.files, seed, reset.file);

        // kill -9 may leave clusters that nothing uses, and no damage.
        const killed = await runLoad(disks, `${seed + 1},${OPERATIONS_KILLED},0`, FLUSHES_BEFORE_KILL + round);
        expect(killed.code, killed.shown).not.toBe(0);
        expectNoTrouble(killed);
        await checkImage(qemu, disks.blocks, true);
        await checkImage(qemu, disks.files, true);
        const afterKill = await contentOf(qemu, disks.blocks);
        const second = verify(afterKill, afterReset, seed + 1, OPERATIONS_KILLED, killed.flushed);
        expect(second.wrong).toEqual([]);
        expect(second.flushed).toBeGreaterThan(0);
        await expectFiles(qemu, disks.files, seed + 1, killed.file);

        // To the end: all of it is there, neither more nor less.
        await qemu.img('check', '-q', '-r', 'leaks', disks.blocks);
        const whole = await runLoad(disks, `${seed + 2},${OPERATIONS},0`);
        expect(whole.code, whole.shown).toBe(0);
        expect(whole.shown).toContain('LOAD DONE\n');
        expectNoTrouble(whole);
        await checkImage(qemu, disks.blocks);
        const expected = replay(afterKill, seed + 2, OPERATIONS);
        expected.write(`load ${seed + 2}\n`);
        expect(whole.shown).toContain(`DEVICE ${sha256(expected)}`);
        const raw = join(folder, 'expected.raw');
        writeFileSync(raw, expected);
        expect(await qemu.img('compare', '-f', 'raw', '-F', 'qcow2', raw, disks.blocks)).toContain('identical');
        await expectFiles(qemu, disks.files, seed + 2, whole.file);
      });
  });
