/** Certificates as OpenSSL and Node read them, and whom a host trusts. */

import { spawnSync } from 'node:child_process';
import { createPrivateKey, generateKeyPairSync, type X509Certificate } from 'node:crypto';
import { mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { namesOf, selfSigned } from './certificate.ts';
import { integer, oid, time } from './der.ts';
import { createKeys, forget, KeyError, readKeys, readTrusted, trust, whyNotTrusted } from './host-keys.ts';

let root = '';
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'domus-keys-'));
});
afterEach(() => rmSync(root, { recursive: true }));

const DAY_MS = 86_400_000;
const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

function certificateOf(names: readonly string[], fromDay = -1, untilDay = 1): X509Certificate {
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'prime256v1' });
  const at = (day: number): Date => new Date(Date.now() + day * DAY_MS);
  return selfSigned(privateKey, { names, from: at(fromDay), until: at(untilDay) });
}

test('DER is what X.690 and RFC 5280 give as examples', () => {
  expect(hex(oid('2.100.3'))).toBe('0603813403');
  expect(hex(oid('1.2.840.113549'))).toBe('06062a864886f70d');
  expect(hex(integer(Uint8Array.of(0, 0, 0x80)))).toBe('02020080');
  expect(hex(integer(Uint8Array.of(0)))).toBe('020100');
  expect(Buffer.from(time(new Date('2049-12-31T23:59:59.900Z'))).toString('latin1')).toBe('\x17\x0d491231235959Z');
  expect(Buffer.from(time(new Date('2050-01-01T00:00:00Z'))).toString('latin1')).toBe('\x18\x0f20500101000000Z');
});

test('Node reads what is in a certificate', () => {
  const names = ['a.example', '10.0.0.1', 'fe80::12:0', '::1', '1:2:3:4:5:6:7:8'];
  const certificate = certificateOf(names);
  expect(namesOf(certificate)).toEqual([
    ...['a.example', '10.0.0.1', 'FE80:0:0:0:0:0:12:0', '0:0:0:0:0:0:0:1', '1:2:3:4:5:6:7:8'],
  ]);
  expect(certificate.checkHost('a.example')).toBe('a.example');
  expect(certificate.checkHost('b.example')).toBeUndefined();
  for (const address of names.slice(1)) expect(certificate.checkIP(address), address).toBe(address);
  expect(certificate.checkIP('10.0.0.2')).toBeUndefined();
  expect(certificate.ca).toBe(false);
  expect(certificate.verify(certificate.publicKey)).toBe(true);
  expect(certificate.keyUsage).toEqual(['1.3.6.1.5.5.7.3.1', '1.3.6.1.5.5.7.3.2']);
});

test('OpenSSL finds nothing wrong with a certificate', (context) => {
  const openssl = (...words: string[]) => spawnSync('openssl', words, { encoding: 'utf8' });
  if (openssl('version').status !== 0) return context.skip('no openssl(1)');
  const names = ['a.example', '10.0.0.1'];
  createKeys(root, names, 30, false);
  const file = join(root, 'keys', 'certificate.pem');
  for (const purpose of ['sslserver', 'sslclient'])
    expect(openssl('verify', '-x509_strict', '-purpose', purpose, '-CAfile', file, file).stdout).toBe(`${file}: OK\n`);
  const text = openssl('x509', '-in', file, '-noout', '-text').stdout;
  expect(text).toContain('Signature Algorithm: ecdsa-with-SHA256');
  expect(text).toContain('ASN1 OID: prime256v1');
  expect(text).toMatch(/X509v3 Basic Constraints: critical\s+CA:FALSE/);
  expect(text).toMatch(/X509v3 Key Usage: critical\s+Digital Signature\n/);
  expect(text).toMatch(/X509v3 Subject Alternative Name:\s+DNS:a\.example, IP Address:10\.0\.0\.1\n/);
});

test('keys are made once, are a pair, and are their owner`s only', () => {
  expect(() => readKeys(root)).toThrow(/^this host has no key for migrations \(.*\/keys\): domus keys create$/);
  const made = createKeys(root, ['a.example'], 30, false);
  const { key, certificate, trusted } = readKeys(root);
  expect(certificate.fingerprint256).toBe(made.fingerprint256);
  expect(createPrivateKey(key).asymmetricKeyDetails).toEqual({ namedCurve: 'prime256v1' });
  expect(trusted).toEqual([]);
  for (const file of ['', 'key.pem', 'certificate.pem'])
    expect(statSync(join(root, 'keys', file)).mode & 0o077, file).toBe(0);
  expect(readdirSync(join(root, 'keys')).sort()).toEqual(['certificate.pem', 'key.pem']);
  expect(() => createKeys(root, ['a.example'], 30, false)).toThrow(/^this host has a key: /);
  expect(createKeys(root, ['a.example'], 30, true).fingerprint256).not.toBe(made.fingerprint256);
  for (const name of ['a b', '', '-a', 'a..b', 'a,DNS:b', 'x'.repeat(64)])
    expect(() => createKeys(root, [name], 30, true), name).toThrow(KeyError);
  writeFileSync(join(root, 'keys', 'certificate.pem'), made.toString());
  expect(() => readKeys(root)).toThrow('the key of another certificate than certificate.pem');
  writeFileSync(join(root, 'keys', 'key.pem'), 'none');
  expect(() => readKeys(root)).toThrow('key.pem: this is no private key');
});

test('a bundle is trusted whole or not at all, and no two under one name', () => {
  const own = createKeys(root, ['a.example'], 30, false);
  const [b, c, otherB] = [['b.example'], ['c.example', '10.0.0.3'], ['d.example', 'b.example']].map((names) =>
    certificateOf(names),
  );
  const bundle = `of three\n${own}${b}\n\n${c}`;
  expect(trust(root, bundle, 'bundle').map(namesOf)).toEqual([['b.example'], ['c.example', '10.0.0.3']]);
  expect(trust(root, bundle, 'bundle')).toEqual([]);
  expect(() => trust(root, `${certificateOf(['e.example'])}${otherB}`, 'other.pem')).toThrow(
    /^other\.pem: d\.example, b\.example: another certificate of that name is trusted \([0-9a-f]{32}\): domus keys forget$/,
  );
  expect(() => trust(root, 'nothing', 'x')).toThrow(
    'x: expected a certificate (-----BEGIN CERTIFICATE-----), found none',
  );
  expect(() => trust(root, '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----', 'x')).toThrow(
    'x: this certificate cannot be read',
  );
  expect(readTrusted(root).length).toBe(2);
  expect(forget(root, 'nobody')).toEqual([]);
  expect(forget(root, '10.0.0.3').map(namesOf)).toEqual([namesOf(c)]);
  expect(forget(root, b.fingerprint256.slice(0, 20)).length).toBe(1);
  expect(readTrusted(root)).toEqual([]);
});

test('only a certificate that is trusted, counts today and has the name will do', () => {
  const [a, b, old, later] = [
    certificateOf(['a.example', '10.0.0.1']),
    certificateOf(['a.example']),
    certificateOf(['a.example'], -3, -2),
    certificateOf(['a.example'], 1, 2),
  ];
  const trusted = [a, old, later];
  expect(whyNotTrusted(a, trusted, null)).toBeNull();
  expect(whyNotTrusted(a, trusted, 'a.example')).toBeNull();
  expect(whyNotTrusted(a, trusted, 'A.EXAMPLE')).toBeNull();
  expect(whyNotTrusted(a, trusted, '10.0.0.1')).toBeNull();
  expect(whyNotTrusted(a, trusted, 'example')).toMatch(/is not for the name example$/);
  expect(whyNotTrusted(a, trusted, '10.0.0.2')).toMatch(/is not for the name 10\.0\.0\.2$/);
  expect(whyNotTrusted(b, trusted, 'a.example')).toMatch(
    /^its certificate \(a\.example, SHA256 [0-9a-f]{32}\) is not trusted here: domus keys trust$/,
  );
  expect(whyNotTrusted(old, trusted, null)).toMatch(/has expired on \d{4}-\d\d-\d\d$/);
  expect(whyNotTrusted(later, trusted, null)).toMatch(/counts only from /);
  expect(whyNotTrusted(undefined, trusted, null)).toBe('it has no certificate');
});
