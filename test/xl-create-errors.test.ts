/**
 * `xl create` with input or a host that cannot do: one line names the cause, the exit code is xl's, and nothing stays behind, no
 * file in the cache, the temporary folder or the working directory, and no process.
 *
 * Exit codes: 1 for a config that is wrong in itself, 3 for a domain that cannot be built. Source: recorded output of xl 4.17.
 */

import { spawn, spawnSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync, constants as zlib, zstdCompressSync } from 'node:zlib';
import { afterAll, describe, expect, it } from 'vitest';
import { cacheRoot } from '../src/toolstack/cache.ts';

const XL = fileURLToPath(new URL('../src/cli/xl/main.ts', import.meta.url));
const LIMIT_MS = 60_000;
const MIB = 2 ** 20;
/** Node's cache of compiled sources. */
const COMPILED = 'compiled';

const folder = mkdtempSync(join(tmpdir(), 'domus-errors-'));
// Another user reads it too.
chmodSync(folder, 0o755);
afterAll(() => rmSync(folder, { recursive: true }));

function file(name: string, content: Uint8Array | string): string {
  const path = join(folder, name);
  writeFileSync(path, content);
  return path;
}

/** ELF64 with Xen's notes and one PT_LOAD, 48 MiB from 16 MiB on, as large as a Linux kernel. Its code would never run. */
function makeKernel(): Buffer {
  const notes = (
    [
      [6, 'linux\0'],
      [5, 'xen-3.0\0'],
      [8, 'generic\0'],
      [3, 0xffffffff80000000n],
      [1, 0xffffffff81000000n],
    ] as const
  ).map(([type, value]) => {
    const desc = Buffer.alloc(8);
    if (typeof value === 'bigint') desc.writeBigUInt64LE(value);
    else desc.write(value);
    return Buffer.concat(
      [Uint32Array.of(4, 8, type), Uint8Array.of(88, 101, 110, 0), desc].map((part) =>
        Buffer.from(part.buffer, part.byteOffset, part.byteLength),
      ),
    );
  });
  const noteBytes = Buffer.concat(notes);
  const head = Buffer.alloc(0x1000);
  head.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  head.writeUInt16LE(2, 0x10);
  head.writeUInt16LE(62, 0x12);
  head.writeUInt32LE(1, 0x14);
  head.writeBigUInt64LE(64n, 0x20);
  head.writeUInt16LE(64, 0x34);
  head.writeUInt16LE(56, 0x36);
  head.writeUInt16LE(2, 0x38);
  const segment = (
    at: number,
    type: number,
    offset: number,
    address: number,
    fileBytes: number,
    memoryBytes: number,
  ): void => {
    head.writeUInt32LE(type, at);
    head.writeUInt32LE(7, at + 4);
    head.writeBigUInt64LE(BigInt(offset), at + 8);
    head.writeBigUInt64LE(BigInt(address), at + 0x18);
    head.writeBigUInt64LE(BigInt(fileBytes), at + 0x20);
    head.writeBigUInt64LE(BigInt(memoryBytes), at + 0x28);
  };
  // Text that does not pack well, so that the middle of a payload is data.
  const text = Buffer.from(Uint32Array.from({ length: 16384 }, (_, i) => Math.imul(i, 0x9e3779b1)).buffer);
  segment(64, 1, 0x1000, 16 * MIB, text.length, 48 * MIB);
  segment(120, 4, 0x200, 0, noteBytes.length, noteBytes.length);
  head.set(noteBytes, 0x200);
  return Buffer.concat([head, text]);
}

/** Source: Linux Documentation/arch/x86/boot.rst. */
function bzImage(payload: Uint8Array): Buffer {
  const setup = Buffer.alloc(1024);
  setup[0x1f1] = 1;
  setup.writeUInt16LE(0xaa55, 0x1fe);
  setup.write('HdrS', 0x202);
  setup.writeUInt16LE(0x20f, 0x206);
  setup.writeUInt32LE(payload.length, 0x24c);
  return Buffer.concat([setup, payload]);
}

function damaged(bytes: Uint8Array, at = bytes.length >> 1): Buffer {
  const copy = Buffer.from(bytes);
  for (let i = at; i < at + 16; i++) copy[i] ^= 0xff;
  return copy;
}

const KERNEL = makeKernel();
const SIZE = Buffer.from(Uint32Array.of(KERNEL.length).buffer);
/** The tool's own format check ends each stream, except for lz4, whose legacy frame has none and is left to the real kernel below. */
const PACKERS: Readonly<Record<string, () => Uint8Array | null>> = {
  gzip: () => gzipSync(KERNEL),
  zstd: () => Buffer.concat([zstdCompressSync(KERNEL, { params: { [zlib.ZSTD_c_checksumFlag]: 1 } }), SIZE]),
  xz: () => packedBy('xz', ['--check=crc32', '-c']),
  lzma: () => packedBy('xz', ['--format=lzma', '-c']),
  bzip2: () => packedBy('bzip2', ['-c']),
};

function packedBy(tool: string, args: readonly string[]): Uint8Array | null {
  const { status, stdout } = spawnSync(tool, args, { input: KERNEL });
  return status === 0 ? Buffer.concat([stdout, SIZE]) : null;
}

interface Ended {
  readonly code: number | null;
  readonly out: string;
  /** Lines of standard error behind the first, which says what is parsed. */
  readonly errors: readonly string[];
  /** What lies in the cache. */
  readonly cache: readonly string[];
}

interface RunOptions {
  readonly env?: NodeJS.ProcessEnv;
  readonly uid?: number;
  /** Runs xl; it is "$@" there. */
  readonly shell?: string;
}

let runs = 0;

/** Runs xl with folders of its own, and checks that nothing but the cache has changed and no process is left. */
async function xl(words: readonly string[], options: RunOptions = {}): Promise<Ended> {
  const home = join(folder, `run-${runs++}`);
  const [cache, temporary, work] = ['cache', 'tmp', 'work'].map((name) => join(home, name));
  for (const path of [temporary, work]) mkdirSync(path, { recursive: true });
  const { uid } = options;
  const state = join(home, 'state');
  if (uid !== undefined) {
    mkdirSync(state);
    chownSync(state, uid, uid);
  }
  const command = [process.execPath, XL, ...words];
  const [program, ...args] =
    options.shell === undefined ? command : ['unshare', '-m', '/bin/sh', '-c', options.shell, 'sh', ...command];
  const child = spawn(program, args, {
    cwd: options.uid === undefined ? work : '/',
    stdio: ['ignore', 'pipe', 'pipe'],
    env: {
      ...process.env,
      DOMUS_ENGINE: '',
      ...options.env,
      DOMUS_CACHE_DIR: cache,
      TMPDIR: temporary,
      ...(uid === undefined ? {} : { DOMUS_STATE_DIR: state }),
    },
    ...(options.uid === undefined ? {} : { uid: options.uid, gid: options.uid }),
  });
  let out = '';
  let err = '';
  child.stdout.on('data', (bytes: Buffer) => (out += bytes.toString()));
  child.stderr.on('data', (bytes: Buffer) => (err += bytes.toString()));
  const timer = setTimeout(() => child.kill('SIGKILL'), LIMIT_MS);
  const code = await new Promise<number | null>((resolve, reject) => {
    child.on('error', reject);
    child.on('close', resolve);
  });
  clearTimeout(timer);
  expect(processesWith(cache)).toEqual([]);
  expect([...readdirSync(temporary), ...readdirSync(work)]).toEqual([]);
  const lines = err.split('\n');
  expect(lines.shift()).toMatch(/^Parsing config from /);
  expect(lines.pop()).toBe('');
  return {
    code,
    out,
    errors: lines,
    cache: existsSync(cache) ? readdirSync(cache).filter((name) => name !== COMPILED) : [],
  };
}

/** Process ids of those whose environment has the text. */
function processesWith(text: string): string[] {
  if (process.platform !== 'linux') return [];
  return readdirSync('/proc').filter((name) => {
    if (!/^\d+$/.test(name)) return false;
    try {
      return readFileSync(`/proc/${name}/environ`, 'latin1').includes(text);
    } catch {
      // It has ended, or is somebody else's.
      return false;
    }
  });
}

/** `xl create /dev/null` with settings: kernel and memory unless they are given. */
const create = (settings: Readonly<Record<string, string | number>>): string[] => [
  'create',
  '/dev/null',
  ...Object.entries({ name: 'b1', kernel: kernelFile, memory: 128, ...settings }).map(
    ([key, value]) => `${key}=${JSON.stringify(value)}`,
  ),
];
const kernelFile = file('vmlinux', KERNEL);

describe.skipIf(process.platform === 'win32')('xl create says in one line', () => {
  it.each<[string, Record<string, string | number>, RegExp]>([
    ['that there is no such kernel', { kernel: '/nonexistent' }, /^libxl: error: \/nonexistent: .*no such file$/],
    ['that the kernel is a device', { kernel: '/dev/zero' }, /^libxl: error: \/dev\/zero: .*it is a device$/],
    ['that the kernel is a folder', { kernel: folder }, /: it is a folder$/],
    [
      'that there is no such ramdisk',
      { ramdisk: '/nonexistent' },
      /^libxl: error: failed to open file '\/nonexistent': No such file or directory$/,
    ],
    [
      'that an ELF file is no Xen guest',
      { kernel: process.execPath },
      /^libxl: error: .*node.*: not a Xen guest: .*no Xen ELF notes/,
    ],
    ['that a text is no kernel', { kernel: XL }, /^libxl: error: .*main\.ts: not a kernel: /],
    [
      'that 4 MiB are too few',
      { memory: 4 },
      /^libxl: error: kernel .*vmlinux takes memory up to 64 MiB .* 4 MiB of memory$/,
    ],
    ['that 0 MiB are too few', { memory: 0 }, /^libxl: error: the domain has no memory$/],
    ['that 999999 MiB are too many', { memory: 999999 }, /^libxl: error: memory = 999999 MiB is more than the \d+ MiB/],
    [
      'that vcpus = 0 is one and the memory too small',
      { vcpus: 0, memory: 64 },
      /^libxl: error: the domain's 64 MiB of memory is too small: /,
    ],
  ])('%s', async (_, settings, message) => {
    const { code, out, errors, cache } = await xl(create(settings));
    expect(errors).toEqual([expect.stringMatching(message)]);
    expect({ code, out, cache }).toEqual({ code: 3, out: '', cache: [] });
  });

  it('that the ramdisk is larger than the memory', async () => {
    const ramdisk = file('ramdisk', '');
    truncateSync(ramdisk, 200 * MIB);
    const { code, errors, cache } = await xl(create({ ramdisk }));
    expect(errors).toEqual([
      expect.stringMatching(/^libxl: error: ramdisk .*ramdisk is 200 MiB and does not fit in the domain's 128 MiB/),
    ]);
    expect({ code, cache }).toEqual({ code: 3, cache: [] });
  });

  it.each<[string, Record<string, string | number>, RegExp]>([
    [
      '10000 VCPUs',
      { vcpus: 10000 },
      /^\/dev\/null:\d+: parameter `vcpus' is 10000, but a domain can have at most 32 VCPUs$/,
    ],
    ['an unknown engine', { engine: 'steam' }, /^\/dev\/null:\d+: parameter `engine' is "steam", but the engines are /],
  ])('that a config asks for %s', async (_, settings, message) => {
    const { code, out, errors, cache } = await xl(create(settings));
    expect(errors).toEqual([expect.stringMatching(message)]);
    expect({ code, out, cache }).toEqual({ code: 1, out: '', cache: [] });
  });

  it('where the syntax of a config is wrong', async () => {
    const config = file('syntax.cfg', 'name = "b1"\nkernel = "k"\nfoo bar\n');
    expect(await xl(['create', config])).toEqual({
      code: 1,
      out: '',
      errors: [
        `${config}:3: config parsing error near \`bar': syntax error, unexpected IDENT, expecting += or '='`,
        'Failed to parse config: Invalid argument',
      ],
      cache: [],
    });
  });

  it('that DOMUS_ENGINE has a bad value', async () => {
    const { code, errors } = await xl(create({}), { env: { DOMUS_ENGINE: 'steam' } });
    expect({ code, errors }).toEqual({
      code: 3,
      errors: ["libxl: error: DOMUS_ENGINE: expected auto, kvm or wasm, found `steam'"],
    });
  });
});

describe.skipIf(process.platform === 'win32')('xl create finds a bzImage', () => {
  it.for<[string, number]>([
    ['in its header', 0x240],
    ['in its payload', 4096],
  ])('cut short %s', async ([, length]) => {
    const kernel = file('truncated', bzImage(gzipSync(KERNEL)).subarray(0, length));
    const { code, errors, cache } = await xl(create({ kernel }));
    expect(errors).toEqual([
      expect.stringMatching(/^libxl: error: .*truncated: bzImage truncated: .*the file has \d+ bytes$/),
    ]);
    expect({ code, cache }).toEqual({ code: 3, cache: [] });
  });

  it.for(Object.keys(PACKERS))('damaged in its %s payload', async (kind, context) => {
    const payload = PACKERS[kind]();
    if (payload === null) return context.skip(`no tool here that packs ${kind}`);
    const kernel = file(`damaged-${kind}`, bzImage(damaged(payload)));
    const { code, errors, cache } = await xl(create({ kernel }));
    const [error, ...before] = errors.toReversed();
    expect(error).toMatch(new RegExp(`^libxl: error: .*damaged-${kind}: `));
    expect(error).not.toMatch(/defect/);
    expect(before.every((line) => line.startsWith('xl: kernel: unpack '))).toBe(true);
    expect({ code, cache }).toEqual({ code: 3, cache: [] });
  });

  it('damaged, with a kernel of Debian', async (context) => {
    const guests = join(cacheRoot(), 'guests');
    const kernels = (existsSync(guests) ? readdirSync(guests) : [])
      .map((name) => join(guests, name, 'vmlinuz'))
      .filter((name) => existsSync(name));
    if (kernels.length === 0) context.skip('no guest has been built here');
    for (const original of kernels) {
      const bytes = readFileSync(original);
      const kernel = file('debian', damaged(bytes));
      const { code, errors, cache } = await xl(create({ kernel, memory: 4 }));
      // An lz4 payload has no checksum, so the damage may reach the guest, but under a cache name of its own.
      const { kind } = /\((?<kind>\w+)\)$/.exec(errors[0])?.groups ?? {};
      expect({ code, kind: typeof kind }).toEqual({ code: 3, kind: 'string' });
      expect(errors).toHaveLength(2);
      if (kind !== 'lz4') {
        expect(errors[1]).toMatch(/^libxl: error: .*debian: the \w+ payload is damaged/);
        expect(cache).toEqual([]);
      }
    }
  });
});

describe('xl create says of a disk', () => {
  const image = file('disk.img', new Uint8Array(MIB));
  const script = (body: string): string => {
    const path = file(`script-${runs++}`, `#!/bin/sh\n${body}\n`);
    chmodSync(path, 0o755);
    return path;
  };
  // The upper ones are what xl 4.17 printed, without the place in its sources.
  it.for<[string, readonly string[], string | RegExp]>([
    [
      'that there is no such file',
      ['/nosuch.img,raw,xvda,w'],
      'Disk vdev=xvda failed to stat: /nosuch.img: No such file or directory',
    ],
    ['that its name is none', [`${image},raw,qqq,w`], 'Invalid or unsupported virtual disk identifier qqq'],
    [
      'that it is a folder',
      [`${folder},raw,xvda,w`],
      /^Disk vdev=xvda: .*: is a directory; expected a file or a block device$/,
    ],
    [
      'that there are two of it',
      [`${image},raw,xvda,r`, `${image},raw,xvda,r`],
      /^Domain \d+: device vbd 51712 is there already$/,
    ],
    [
      'that there is no such driver domain',
      [`${image},raw,xvda,w,backend=stub`],
      'Disk vdev=xvda: backend=stub: there is no such domain',
    ],
    [
      'that there is no disk in the drive',
      [',,hdc:cdrom,r'],
      'Disk vdev=hdc: a drive without a disk is for HVM guests; expected a target',
    ],
    [
      'that its script fails',
      [`vdev=xvda,script=${script('exit 5')},target=x`],
      /script-\d+ add \[\d+\] exited with error status 5$/,
    ],
    [
      'that there is no such script',
      ['vdev=xvda,script=/nosuch,target=x'],
      'cannot execute /nosuch: No such file or directory',
    ],
  ])('%s', async ([, disk, error]) => {
    const words = create({});
    words.push(`disk=${JSON.stringify(disk)}`);
    const { code, errors } = await xl(words);
    const expected =
      typeof error === 'string'
        ? `libxl: error: ${error}`
        : expect.stringMatching(error.source.replace('^', '^libxl: error: '));
    expect(errors.filter((line) => !line.startsWith('xl: kernel: '))).toEqual([expected]);
    expect(code).toBe(3);
  });
});

describe.skipIf(process.platform !== 'linux')('xl create on a host', () => {
  const isRoot = process.getuid?.() === 0;

  it('without the right to use /dev/kvm says so', async (context) => {
    const uid = 65534;
    if (!existsSync('/dev/kvm')) context.skip('no /dev/kvm');
    if (!isRoot) context.skip('only root can become somebody else');
    const may = (path: string, how: string): boolean => spawnSync('test', [how, path], { uid, gid: uid }).status === 0;
    if (may('/dev/kvm', '-w')) context.skip('everybody may use /dev/kvm here');
    if (!may(XL, '-r') || !may(process.execPath, '-x')) context.skip('nobody but root can read this checkout');
    const { code, errors } = await xl(create({ engine: 'kvm' }), { uid });
    expect(errors).toEqual([
      expect.stringMatching(
        /^libxl: error: no engine can run the domain: \/dev\/kvm cannot be opened: permission denied \(/,
      ),
    ]);
    expect(code).toBe(3);
  });

  it('without /dev/kvm says so', async (context) => {
    if (!isRoot || spawnSync('unshare', ['-m', 'true']).status !== 0)
      context.skip('no right to make a mount namespace');
    const { code, errors } = await xl(create({ engine: 'kvm' }), { shell: 'mount -t tmpfs none /dev && "$@"' });
    expect(errors).toEqual(['libxl: error: no engine can run the domain: /dev/kvm does not exist']);
    expect(code).toBe(3);
  });
});
