/**
 * What the two ends of a migration by TLS say to each other before a domain comes, and around it. TLS 1.3 only. Each end shows its certificate, and looks itself
 * whether the other one's is trusted (keys/host-keys.ts): that the other end has the key to it is TLS's to see to.
 *
 *   1. the source sends one line of JSON: a MigrationRequest, or why it does not trust the target
 *   2. the target sends frames (migration-frames.ts): BYTES, its answers; LINE, for the user
 *   3. the source sends the domain as it is (migration-protocol.ts)
 *
 * A target that does not trust the source says so in a LINE, and ends.
 */

import type { SecureContextOptions } from 'node:tls';
import { type HostKeys, KeyError } from './keys/host-keys.ts';

export const TLS_PROTOCOL = 1;
/** From the connection to the end of the request. */
export const REQUEST_LIMIT_MS = 10_000;
export const REQUEST_BYTES_MAX = 4096;
/** A peer that is gone without a word is noticed some time. */
export const KEEP_ALIVE_MS = 15_000;

export interface MigrationRequest {
  readonly protocol: typeof TLS_PROTOCOL;
  readonly paused: boolean;
  readonly preserve: boolean;
}

export interface Refusal {
  readonly refusal: string;
}

export const TLS_OPTIONS = { minVersion: 'TLSv1.3', maxVersion: 'TLSv1.3', rejectUnauthorized: false } as const;

export function contextOptions({ key, certificate }: HostKeys): SecureContextOptions {
  return { key, cert: certificate.toString(), ca: [] };
}

export function requestLine(request: MigrationRequest | Refusal): string {
  return `${JSON.stringify(request)}\n`;
}

/** What a request's line says; a text says what is wrong with it. */
export function parseRequest(line: string): MigrationRequest | Refusal | string {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    return 'what it wants is no JSON';
  }
  if (typeof value !== 'object' || value === null) return 'what it wants is no object';
  const { refusal, protocol, paused, preserve } = { ...value } as Record<string, unknown>;
  if (typeof refusal === 'string') return { refusal };
  if (protocol !== TLS_PROTOCOL)
    return `it speaks version ${JSON.stringify(protocol)} of this, and this Domus ${TLS_PROTOCOL}`;
  if (typeof paused !== 'boolean' || typeof preserve !== 'boolean') return 'what it wants lacks paused or preserve';
  return { protocol, paused, preserve };
}

/** A text of another host in one line of ours. */
export function oneLine(text: string): string {
  return text.replaceAll(/[\x00-\x1f\x7f-\x9f]/g, '?').slice(0, 500);
}

/** Errors of a connection, in a few words; a KeyError as it is. Anything else is thrown. */
export function whatHappened(error: unknown): string {
  if (error instanceof KeyError) return error.message;
  if (!(error instanceof Error && 'code' in error)) throw error;
  const code = String(error.code);
  if (code.startsWith('ERR_SSL_'))
    return `no TLS 1.3 (${code.slice('ERR_SSL_'.length).toLowerCase().replaceAll('_', ' ')})`;
  return error.message;
}
