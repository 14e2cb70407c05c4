/**
 * The certificate that a host shows to others: one that it has signed itself, for a key on P-256. It says by which names the host is called, and until when
 * it counts; that it is the host's, whoever trusts it has been told (host-keys.ts). It can sign no other certificate.
 *
 * Node reads certificates and makes none. The libraries that do so bring some twenty packages for what is one fixed form here.
 * Source: RFC 5280, 4.1 and 4.2; RFC 5480, 2.1.1; RFC 5758, 3.2.
 */

import { createPublicKey, type KeyObject, randomBytes, sign, X509Certificate } from 'node:crypto';
import { isIP } from 'node:net';
import {
  bitString,
  type Der,
  explicit,
  implicit,
  integer,
  octetString,
  oid,
  sequence,
  set,
  TRUE,
  time,
  utf8String,
} from './der.ts';

const ECDSA_WITH_SHA256 = sequence(oid('1.2.840.10045.4.3.2'));
const COMMON_NAME = oid('2.5.4.3');
const KEY_USAGE = oid('2.5.29.15');
const SUBJECT_ALT_NAME = oid('2.5.29.17');
const BASIC_CONSTRAINTS = oid('2.5.29.19');
const EXTENDED_KEY_USAGE = oid('2.5.29.37');
const SERVER_AUTH = oid('1.3.6.1.5.5.7.3.1');
const CLIENT_AUTH = oid('1.3.6.1.5.5.7.3.2');
/** Bit 0 of KeyUsage. */
const DIGITAL_SIGNATURE = bitString(Uint8Array.of(0x80), 7);
const VERSION_3 = Uint8Array.of(2);
const SERIAL_BYTES = 16;
/** Of an attribute of a name. Source: RFC 5280, appendix A, ub-common-name. */
const COMMON_NAME_MAX = 64;

export interface CertificateFacts {
  /** DNS names and IP addresses, one at least. */
  readonly names: readonly string[];
  readonly from: Date;
  readonly until: Date;
}

/** `privateKey`: on P-256. */
export function selfSigned(privateKey: KeyObject, { names, from, until }: CertificateFacts): X509Certificate {
  const subject = sequence(set(sequence(COMMON_NAME, utf8String(names[0].slice(0, COMMON_NAME_MAX)))));
  const serial = randomBytes(SERIAL_BYTES);
  // Positive, and of the full length.
  serial[0] = (serial[0] & 0x7f) | 0x40;
  const unsigned = sequence(
    explicit(0, integer(VERSION_3)),
    integer(serial),
    ECDSA_WITH_SHA256,
    subject,
    sequence(time(from), time(until)),
    subject,
    createPublicKey(privateKey).export({ type: 'spki', format: 'der' }),
    explicit(
      3,
      sequence(
        sequence(BASIC_CONSTRAINTS, TRUE, octetString(sequence())),
        sequence(KEY_USAGE, TRUE, octetString(DIGITAL_SIGNATURE)),
        sequence(EXTENDED_KEY_USAGE, octetString(sequence(SERVER_AUTH, CLIENT_AUTH))),
        sequence(SUBJECT_ALT_NAME, octetString(sequence(...names.map(generalName)))),
      ),
    ),
  );
  const signature = sign('sha256', unsigned, privateKey);
  return new X509Certificate(sequence(unsigned, ECDSA_WITH_SHA256, bitString(signature)));
}

/** Source: RFC 5280, 4.2.1.6. */
function generalName(name: string): Der {
  const family = isIP(name);
  if (family === 4) return implicit(7, Uint8Array.from(name.split('.').map(Number)));
  if (family === 6) return implicit(7, addressBytes(name));
  return implicit(2, new TextEncoder().encode(name));
}

/** Of an IPv6 address: URLs have one form for each. */
function addressBytes(address: string): Uint8Array {
  const [head, tail] = new URL(`http://[${address}]`).hostname.slice(1, -1).split('::');
  const words = (text: string | undefined): number[] =>
    text === undefined || text === '' ? [] : text.split(':').map((word) => Number.parseInt(word, 16));
  const [first, last] = [words(head), words(tail)];
  const all = [...first, ...new Array<number>(8 - first.length - last.length).fill(0), ...last];
  return Uint8Array.from(all.flatMap((word) => [word >> 8, word & 0xff]));
}

/** By which names its owner is called. */
export function namesOf({ subjectAltName = '' }: X509Certificate): string[] {
  return subjectAltName
    .split(', ')
    .map((entry) => entry.replace(/^(DNS|IP Address):/, ''))
    .filter((name) => name !== '');
}
