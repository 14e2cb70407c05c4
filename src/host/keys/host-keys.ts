/**
 * The key of this host and the certificates of those that it trusts, for migrations by TLS. In the folder `keys` of the state folder:
 *
 *   key.pem, certificate.pem   this host's own
 *   trusted/FINGERPRINT.pem    a certificate of another host each; its name is the start of its SHA-256
 *
 * Trust is in certificates, one by one, not in who has signed them: there is no authority whose key could be lost, and a private key never leaves its host.
 * Who is trusted may have domains of this host, and may send some, whose configs open files and run scripts as the user does who owns the state folder.
 */

import { createPrivateKey, generateKeyPairSync, X509Certificate } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { isIP } from 'node:net';
import { join } from 'node:path';
import { keysFolder } from '../state-dir.ts';
import { namesOf, selfSigned } from './certificate.ts';

/** Keys are missing, or are none; one line. */
export class KeyError extends Error {
  override readonly name = 'KeyError';
}

export interface HostKeys {
  /** PEM */
  readonly key: string;
  readonly certificate: X509Certificate;
  readonly trusted: readonly X509Certificate[];
}

const DAY_MS = 86_400_000;
/** Clocks of two hosts differ. */
const EARLIER_MS = 3_600_000;
const NAMES_MAX = 64;
/** Of a name of a host, and of one of its parts. Source: RFC 1035, 2.3.4. */
const HOST_NAME =
  /^(?=.{1,253}$)[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*$/i;
const TRUSTED_MAX = 1024;
const PEM = /-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g;

/** Makes this host's key and certificate. `replace`: those that there are. @throws KeyError */
export function createKeys(root: string, names: readonly string[], days: number, replace: boolean): X509Certificate {
  if (names.length > NAMES_MAX) throw new KeyError(`expected at most ${NAMES_MAX} names, found ${names.length}`);
  for (const name of names)
    if (isIP(name) === 0 && !HOST_NAME.test(name))
      throw new KeyError(`expected the name or the address of a host, found "${name}"`);
  const folder = keysFolder(root);
  if (!replace && readIfThere(join(folder, 'key.pem')) !== null)
    throw new KeyError(`this host has a key: ${join(folder, 'key.pem')}`);
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'prime256v1' });
  const now = Date.now();
  const facts = { names, from: new Date(now - EARLIER_MS), until: new Date(now + days * DAY_MS) };
  const certificate = selfSigned(privateKey, facts);
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  // The key goes last: without it there is nothing.
  rmSync(join(folder, 'key.pem'), { force: true });
  writeWhole(join(folder, 'certificate.pem'), certificate.toString());
  writeWhole(join(folder, 'key.pem'), privateKey.export({ type: 'pkcs8', format: 'pem' }).toString());
  return certificate;
}

/** @throws KeyError where this host has none */
export function readKeys(root: string): HostKeys {
  const folder = keysFolder(root);
  const key = readIfThere(join(folder, 'key.pem'));
  const pem = readIfThere(join(folder, 'certificate.pem'));
  if (key === null || pem === null)
    throw new KeyError(`this host has no key for migrations (${folder}): domus keys create`);
  const [certificate] = certificatesIn(pem, join(folder, 'certificate.pem'));
  let isPair: boolean;
  try {
    isPair = certificate.checkPrivateKey(createPrivateKey(key));
  } catch {
    throw new KeyError(`${join(folder, 'key.pem')}: this is no private key`);
  }
  if (!isPair) throw new KeyError(`${join(folder, 'key.pem')}: the key of another certificate than certificate.pem`);
  return { key, certificate, trusted: readTrusted(root) };
}

/** Certificates of other hosts. @throws KeyError */
export function readTrusted(root: string): X509Certificate[] {
  const folder = join(keysFolder(root), 'trusted');
  let files: string[];
  try {
    files = readdirSync(folder);
  } catch {
    return [];
  }
  return files
    .filter((file) => file.endsWith('.pem'))
    .sort()
    .flatMap((file) => certificatesIn(readIfThere(join(folder, file)) ?? '', join(folder, file)));
}

/**
 * Trusts the certificates in a text, those of other hosts; those that are new. Only one may have a name: else one host that is trusted could call itself another one.
 * @throws KeyError, and then none of them is trusted
 */
export function trust(root: string, text: string, source: string): X509Certificate[] {
  const known = readTrusted(root);
  const own = ownFingerprint(root);
  const added: X509Certificate[] = [];
  for (const certificate of certificatesIn(text, source)) {
    const { fingerprint256 } = certificate;
    const all = [...known, ...added];
    if (fingerprint256 === own || all.some((other) => other.fingerprint256 === fingerprint256)) continue;
    const names = namesOf(certificate);
    if (names.length === 0) throw new KeyError(`${source}: a certificate without the name of a host`);
    const taken = all.find((other) => namesOf(other).some((name) => names.includes(name)));
    if (taken !== undefined)
      throw new KeyError(
        `${source}: ${names.join(', ')}: another certificate of that name is trusted (${shortOf(taken)}): domus keys forget`,
      );
    added.push(certificate);
  }
  if (known.length + added.length > TRUSTED_MAX) throw new KeyError(`more than ${TRUSTED_MAX} certificates`);
  const folder = join(keysFolder(root), 'trusted');
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  for (const certificate of added) writeWhole(join(folder, `${shortOf(certificate)}.pem`), certificate.toString());
  return added;
}

/** Trusts those no more that have this name, or whose fingerprint begins so; those. */
export function forget(root: string, word: string): X509Certificate[] {
  const digits = word.replaceAll(':', '').toLowerCase();
  const isFingerprint = /^[0-9a-f]{8,64}$/.test(digits);
  const known = readTrusted(root);
  const named = known.filter((one) => namesOf(one).includes(word));
  const found = named.length > 0 || !isFingerprint ? named : known.filter((one) => digitsOf(one).startsWith(digits));
  for (const certificate of found)
    rmSync(join(keysFolder(root), 'trusted', `${shortOf(certificate)}.pem`), { force: true });
  return found;
}

/** Why a certificate that another host has shown does not do; null if it does. `name`: how this host calls the other one; null if it does not. */
export function whyNotTrusted(
  shown: X509Certificate | undefined,
  trusted: readonly X509Certificate[],
  name: string | null,
  nowMs = Date.now(),
): string | null {
  if (shown === undefined) return 'it has no certificate';
  const what = `its certificate (${namesOf(shown).join(', ') || 'no name'}, SHA256 ${shortOf(shown)})`;
  if (!trusted.some(({ fingerprint256 }) => fingerprint256 === shown.fingerprint256))
    return `${what} is not trusted here: domus keys trust`;
  if (nowMs > shown.validToDate.getTime()) return `${what} has expired on ${dayOf(shown.validToDate)}`;
  if (nowMs < shown.validFromDate.getTime()) return `${what} counts only from ${shown.validFromDate.toISOString()} on`;
  if (name === null) return null;
  const isItsName = isIP(name) === 0 ? shown.checkHost(name) : shown.checkIP(name);
  return isItsName === undefined ? `${what} is not for the name ${name}` : null;
}

export function dayOf(date: Date): string {
  return date.toISOString().slice(0, 10);
}

/** Enough of the fingerprint to tell it from any other. */
export function shortOf(certificate: X509Certificate): string {
  return digitsOf(certificate).slice(0, 32);
}

function digitsOf({ fingerprint256 }: X509Certificate): string {
  return fingerprint256.replaceAll(':', '').toLowerCase();
}

function ownFingerprint(root: string): string | null {
  const pem = readIfThere(join(keysFolder(root), 'certificate.pem'));
  return pem === null ? null : new X509Certificate(pem).fingerprint256;
}

function certificatesIn(text: string, source: string): [X509Certificate, ...X509Certificate[]] {
  const found: X509Certificate[] = [];
  for (const pem of text.match(PEM) ?? []) {
    try {
      found.push(new X509Certificate(pem));
    } catch {
      throw new KeyError(`${source}: this certificate cannot be read`);
    }
  }
  const [first, ...rest] = found;
  if (first === undefined)
    throw new KeyError(`${source}: expected a certificate (-----BEGIN CERTIFICATE-----), found none`);
  return [first, ...rest];
}

/** At once or not at all; for its owner only. */
function writeWhole(path: string, text: string): void {
  const partial = `${path}.${process.pid}.part`;
  writeFileSync(partial, text, { mode: 0o600 });
  renameSync(partial, path);
}

function readIfThere(path: string): string | null {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    if (error instanceof Error && 'code' in error && (error.code === 'ENOENT' || error.code === 'ENOTDIR')) return null;
    if (error instanceof Error && 'syscall' in error) throw new KeyError(`${path}: ${error.message}`);
    throw error;
  }
}
