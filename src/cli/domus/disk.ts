/** `domus disk resize` and `domus disk flatten`, which xl has no words for. */

import { openXenstored, XenstoredError } from '../../host/xenstored.ts';
import { vdevNumber } from '../../toolstack/config/disk.ts';
import { DiskFlattenError, flattenDisk } from '../../toolstack/disk-flatten.ts';
import { DiskResizeError, resizeDisk } from '../../toolstack/disk-resize.ts';
import { XenstoreClient } from '../../xenstore/client.ts';

const UNITS: Readonly<Record<string, number>> = { '': 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 };

/** "20G", "1500M", "21474836480": bytes; null for what is none. */
export function parseSize(text: string): number | null {
  const match = /^(\d{1,16})([KMGT]?)$/i.exec(text);
  if (match === null) return null;
  const bytes = Number(match[1]) * UNITS[match[2]!.toUpperCase()]!;
  return Number.isSafeInteger(bytes) && bytes > 0 ? bytes : null;
}

/** The exit code; what went wrong has been printed. */
export async function resize(domain: string, vdev: string, sizeBytes: number | null): Promise<number> {
  const fail = (message: string): number => {
    process.stderr.write(`domus: ${message}\n`);
    return 1;
  };
  const id = vdevNumber(vdev);
  if (id === null) return fail(`${vdev}: expected the name of a virtual disk, such as xvda`);
  let store: XenstoreClient | null = null;
  try {
    store = new XenstoreClient(await openXenstored());
    const domid = await domidOf(store, domain);
    if (domid === null) return fail(`there is no domain "${domain}"`);
    const size = await resizeDisk(store, domid, id, sizeBytes);
    process.stdout.write(`${vdev} of domain ${domid} has ${size} bytes\n`);
    return 0;
  } catch (error) {
    if (error instanceof DiskResizeError) return fail(`${vdev} of domain "${domain}": ${error.message}`);
    if (error instanceof XenstoredError) return fail(error.message);
    throw error;
  } finally {
    store?.close();
  }
}

/** Makes an image stand alone that lies over others. The exit code; what went wrong has been printed. */
export async function flatten(path: string): Promise<number> {
  try {
    const bases = await flattenDisk(path);
    process.stdout.write(`${path} stands alone; it lay over ${bases.join(', ')}\n`);
    return 0;
  } catch (error) {
    if (!(error instanceof DiskFlattenError)) throw error;
    process.stderr.write(`domus: ${error.message}\n`);
    return 1;
  }
}

/** By its name or its number; null if there is none. */
async function domidOf(store: XenstoreClient, word: string): Promise<number | null> {
  for (const entry of (await store.directory('/local/domain')) ?? []) {
    if (entry === '0') continue;
    if (entry === word || (await store.read(`/local/domain/${entry}/name`)) === word) return Number(entry);
  }
  return null;
}
