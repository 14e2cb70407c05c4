import { mkdtemp, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type QemuTools, qemuTools } from '../../../test/qemu-tools.ts';
import { QEMU_FORMATS } from '../formats.ts';
import { type NbdLink, openNbd } from '../nbd-image.ts';
import { openByQemuNbd } from './qemu-nbd.ts';
import { seededRandom } from './test-file.ts';

let folder: string;
let qemu: QemuTools | string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'domus-qemu-nbd-'));
  qemu = await qemuTools();
});
afterAll(() => rm(folder, { recursive: true }));

const SIZE = 8 << 20;

function content(lengthBytes: number, seed: number): Uint8Array {
  const random = seededRandom(seed);
  return Uint8Array.from({ length: lengthBytes }, () => random() * 256);
}

describe('through qemu-nbd', () => {
  test.for(QEMU_FORMATS)('%s images are read and written', async (format, context) => {
    if (typeof qemu === 'string') return context.skip(qemu);
    const path = join(folder, `disk.${format}`);
    await qemu.img('create', '-q', '-f', format, path, String(SIZE));
    const model = new Uint8Array(SIZE);
    const memory = new Uint8Array(new SharedArrayBuffer(1 << 20));
    const image = await openByQemuNbd(path, { format, readOnly: false, program: qemu.nbd });
    expect(image.sizeBytes).toBe(SIZE);
    const writes: Promise<void>[] = [];
    for (let offset = 0; offset < SIZE; offset += 700 << 10) {
      const bytes = content(65_536, offset).subarray(0, SIZE - offset);
      memory.set(bytes, 0);
      model.set(bytes, offset);
      // The memory is the guest's again only when the request is answered.
      await image.write(offset, [memory.subarray(0, 512), memory.subarray(512, bytes.length)]);
      writes.push(image.write(offset, [bytes]));
    }
    await Promise.all(writes);
    await image.writeZeroes(1 << 20, 1 << 20);
    model.fill(0, 1 << 20, 2 << 20);
    await image.flush();
    const reads = [0, 1, 2, 3].map(async (part) => {
      const bytes = new Uint8Array(SIZE / 4);
      await image.read((part * SIZE) / 4, [bytes.subarray(0, 1000), bytes.subarray(1000)]);
      expect(Buffer.compare(bytes, model.subarray((part * SIZE) / 4, ((part + 1) * SIZE) / 4))).toBe(0);
    });
    await Promise.all(reads);
    await expect(image.read(SIZE - 512, [new Uint8Array(1024)])).rejects.toThrow(/the disk has 8388608 bytes/);
    await image.close();
    await writeFile(join(folder, 'model.raw'), model);
    // The server has let go of the image a moment after the connection ended.
    for (let attempt = 0; ; attempt++) {
      try {
        await qemu.img('compare', '-f', format, '-F', 'raw', path, join(folder, 'model.raw'));
        break;
      } catch (error) {
        if (attempt === 50 || !/lock/.test((error as Error).message)) throw error;
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
    }
  });

  test('an image that was open a moment ago can be opened; one that stays open cannot', async (context) => {
    if (typeof qemu === 'string') return context.skip(qemu);
    const path = join(folder, 'again.qed');
    await qemu.img('create', '-q', '-f', 'qed', path, String(SIZE));
    const options = { format: 'qed', readOnly: false, program: qemu.nbd } as const;
    for (let turn = 0; turn < 5; turn++) await (await openByQemuNbd(path, options)).close();
    const image = await openByQemuNbd(path, options);
    await expect(openByQemuNbd(path, options)).rejects.toThrow(/again.qed: Is another process using the image/);
    await image.close();
  });

  test('an image of another format, and a missing one, are refused in its words', async (context) => {
    if (typeof qemu === 'string') return context.skip(qemu);
    const path = join(folder, 'empty');
    await writeFile(path, '');
    await expect(openByQemuNbd(path, { format: 'vmdk', readOnly: true, program: qemu.nbd })).rejects.toThrow(
      /empty: .*not a valid image/,
    );
    await expect(
      openByQemuNbd(join(folder, 'none'), { format: 'vdi', readOnly: true, program: qemu.nbd }),
    ).rejects.toThrow(/none: .*No such file/);
  });

  test('that is not installed', async () => {
    const program = { path: join(folder, 'no-qemu-nbd'), env: {} };
    await expect(openByQemuNbd('/disk', { format: 'vmdk', readOnly: true, program })).rejects.toThrow(
      '/disk: images of format vmdk need qemu-nbd, which is not installed (on Debian: package qemu-utils)',
    );
    expect(await stat(folder)).toBeDefined();
  });
});

describe('a server that misbehaves', () => {
  /** A link whose other end says the given bytes, and then ends. */
  function serverSaying(bytes: Uint8Array): NbdLink {
    const link: NbdLink = {
      name: 'server',
      onData: () => {},
      onEnd: () => {},
      send: async () => {},
      close: async () => {},
    };
    setImmediate(() => {
      link.onData(bytes);
      link.onEnd('gone');
    });
    return link;
  }

  const GREETING = Uint8Array.from([...Buffer.from('NBDMAGICIHAVEOPT'), 0, 1]);
  const option = (type: number, bytes: readonly number[]): number[] => {
    const reply = Buffer.alloc(20);
    reply.writeBigUInt64BE(0x0003e889045565a9n, 0);
    reply.writeUInt32BE(7, 8);
    reply.writeUInt32BE(type, 12);
    reply.writeUInt32BE(bytes.length, 16);
    return [...reply, ...bytes];
  };
  const EXPORT = option(3, [0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 1]);

  test('while negotiating, is refused', async () => {
    const open = (...bytes: number[]) => openNbd(serverSaying(Uint8Array.from(bytes)), 'disk', true);
    await expect(open()).rejects.toThrow(/server: the connection ended: gone/);
    await expect(open(...new Array<number>(18).fill(1))).rejects.toThrow(/not an NBD server/);
    await expect(open(...GREETING, ...new Array<number>(20).fill(255))).rejects.toThrow(/makes no sense/);
    await expect(open(...GREETING, ...option(2 ** 31 + 6, [...Buffer.from('no such disk')]))).rejects.toThrow(
      /refuses export "disk": no such disk/,
    );
    await expect(open(...GREETING, ...option(1, []))).rejects.toThrow(/a disk of -1 bytes/);
  });

  test('later, fails what waits, and all after it', async () => {
    const bytes = Uint8Array.from([...GREETING, ...EXPORT, ...option(1, []), ...new Array<number>(16).fill(7)]);
    const image = await openNbd(serverSaying(bytes), 'disk', true);
    await expect(image.read(0, [new Uint8Array(512)])).rejects.toThrow(/an answer that nobody asked for/);
    await expect(image.read(0, [new Uint8Array(512)])).rejects.toThrow(/an answer that nobody asked for/);
    await image.close();
  });
});
