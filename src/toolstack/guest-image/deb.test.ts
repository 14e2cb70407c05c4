import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { pack } from 'tar-stream';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { DebError, readDeb, unpackDeb } from './deb.ts';

function ar(members: readonly (readonly [name: string, content: Uint8Array])[]): Buffer {
  const chunks = [Buffer.from('!<arch>\n')];
  for (const [name, content] of members) {
    chunks.push(
      Buffer.from(
        `${name.padEnd(16)}${'0'.padEnd(12)}${'0'.padEnd(6)}${'0'.padEnd(6)}${'100644'.padEnd(8)}${String(content.length).padEnd(10)}\`\n`,
      ),
    );
    chunks.push(Buffer.from(content), Buffer.alloc(content.length % 2, '\n'));
  }
  return Buffer.concat(chunks);
}

async function tar(): Promise<Buffer> {
  const archive = pack();
  archive.entry({ name: './boot', type: 'directory' });
  archive.entry({ name: './boot/vmlinuz-6.1' }, 'kernel');
  archive.entry({ name: './boot/link', type: 'symlink', linkname: 'vmlinuz-6.1' });
  archive.entry({ name: './usr/share/doc' }, 'x'.repeat(100_000));
  archive.finalize();
  const chunks: Uint8Array[] = [];
  for await (const chunk of archive) chunks.push(chunk as Uint8Array);
  return Buffer.concat(chunks);
}

let folder = '';
let path = '';
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'domus-deb-'));
  path = join(folder, 'x.deb');
});
afterAll(async () => {
  await rm(folder, { recursive: true });
});

const CONTROL = [
  ['debian-binary', Buffer.from('2.0\n')],
  ['control.tar.xz', Buffer.from('odd')],
] as const;

describe('readDeb()', () => {
  test.each<[string, (bytes: Buffer) => Buffer]>([
    ['data.tar', (bytes) => bytes],
    ['data.tar.gz', (bytes) => gzipSync(bytes)],
    ['data.tar.zst', (bytes) => zstdCompressSync(bytes)],
  ])('hands out wanted regular files of %s', async (name, compress) => {
    await writeFile(path, ar([...CONTROL, [name, compress(await tar())]]));
    const files = await readDeb(path, (file) => file.startsWith('boot/'));
    expect([...files].map(([file, content]) => [file, Buffer.from(content).toString()])).toEqual([
      ['boot/vmlinuz-6.1', 'kernel'],
    ]);
  });

  test.each<[string, () => Promise<Buffer>, RegExp]>([
    ['a file that is no archive', async () => Buffer.from('hello'), /no ar magic/],
    ['an archive without data.tar', async () => ar(CONTROL), /no data\.tar member/],
    ['an unknown compression', async () => ar([...CONTROL, ['data.tar.br', Buffer.alloc(4)]]), /found data\.tar\.br/],
    [
      'a truncated package',
      async () => ar([...CONTROL, ['data.tar.gz', gzipSync(await tar())]]).subarray(0, -20),
      /truncated: member data\.tar\.gz/,
    ],
    [
      'a damaged payload',
      async () => ar([...CONTROL, ['data.tar.gz', gzipSync(await tar()).fill(0x55, 30, 60)]]),
      /data\.tar\.gz is damaged/,
    ],
    [
      'a damaged xz payload',
      async () => ar([...CONTROL, ['data.tar.xz', Buffer.from('not xz at all, far from it')]]),
      /data\.tar\.xz is damaged/,
    ],
    ['a damaged header', async () => ar(CONTROL).fill('?', 60, 70), /damaged ar header at 8/],
  ])('refuses %s', async (_case, make, message) => {
    await writeFile(path, await make());
    await expect(readDeb(path, () => true)).rejects.toThrow(DebError);
    await expect(readDeb(path, () => true)).rejects.toThrow(message);
  });
});

test('unpackDeb() gives all kinds of entries in their order, and the control files', async () => {
  const control = pack();
  control.entry({ name: './control' }, 'Package: x\n');
  control.finalize();
  const data = pack();
  data.entry({ name: './usr/', type: 'directory', mode: 0o755 });
  data.entry({ name: './usr/a', mode: 0o4755 }, 'A');
  data.entry({ name: './usr/b', type: 'link', linkname: './usr/a' });
  data.entry({ name: './usr/c', type: 'symlink', linkname: 'a' });
  data.entry({ name: './usr/share/doc/x' }, 'unwanted');
  data.finalize();
  const bytes = async (archive: AsyncIterable<unknown>): Promise<Buffer> =>
    Buffer.concat((await Array.fromAsync(archive)) as Uint8Array[]);
  await writeFile(
    path,
    ar([CONTROL[0], ['control.tar.gz', gzipSync(await bytes(control))], ['data.tar', await bytes(data)]]),
  );
  const unpacked = await unpackDeb(path, (name) => !name.startsWith('usr/share/doc/'));
  expect(Buffer.from(unpacked.control.get('control') ?? '').toString()).toBe('Package: x\n');
  expect(unpacked.entries).toEqual([
    { kind: 'directory', name: 'usr', mode: 0o755 },
    { kind: 'file', name: 'usr/a', mode: 0o4755, content: Buffer.from('A') },
    { kind: 'hard-link', name: 'usr/b', target: 'usr/a' },
    { kind: 'symlink', name: 'usr/c', target: 'a' },
  ]);
});
