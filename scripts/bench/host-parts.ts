/** What the disk and network loads need on the host: an image, and somebody to talk to. The same for every machine. */

import { writeFileSync } from 'node:fs';
import { createServer as createHttpServer } from 'node:http';
import { type AddressInfo, createServer } from 'node:net';
import { openDiskImage } from '../../src/storage/disk-image.ts';
import { hostFiles } from '../../src/storage/host/node-file.ts';
import { createQcow2 } from '../../src/storage/qcow2/create.ts';

export const DISK_MIB = 256;
const DOWNLOAD_MIB = 64;

/** Makes a qcow2 image in which every cluster has a place and content. */
export async function makeDisk(path: string): Promise<void> {
  writeFileSync(path, '');
  const file = await hostFiles.open(path, { readOnly: false, sharing: 'exclusive' });
  await createQcow2(file, DISK_MIB << 20);
  await file.close();
  const image = await openDiskImage(hostFiles, path, { format: 'qcow2', readOnly: false });
  const piece = new Uint8Array(1 << 20).map((_, i) => i % 251);
  for (let i = 0; i < DISK_MIB; i++) await image.write(i << 20, [piece]);
  await image.close();
}

export interface Servers {
  /** HTTP: gives DOWNLOAD_MIB. */
  readonly sourcePort: number;
  /** TCP: takes everything, and closes when the other side has. */
  readonly sinkPort: number;
  close(): void;
}

/** On 127.0.0.1, which is 10.0.2.2 for the guests. */
export async function startServers(): Promise<Servers> {
  const data = Buffer.alloc(DOWNLOAD_MIB << 20, 'domus');
  const source = createHttpServer((_, response) => void response.end(data));
  const sink = createServer((socket) => {
    socket.resume();
    socket.on('error', () => socket.destroy());
  });
  const portOf = (server: typeof sink): Promise<number> =>
    new Promise((resolve) => {
      server.listen(0, '127.0.0.1', () => resolve((server.address() as AddressInfo).port));
    });
  return {
    sourcePort: await portOf(source),
    sinkPort: await portOf(sink),
    close() {
      source.close();
      source.closeAllConnections();
      sink.close();
    },
  };
}
