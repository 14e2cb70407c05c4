/**
 * `channel = [ "SPEC", ... ]`: a byte stream between a program in the guest and one on the host, such as a guest agent's.
 *
 * Source: xl.cfg(5), "channel"; tools/xl/xl_parse.c; libxl_console.c, libxl__init_console_from_channel (read for behaviour).
 */

import { ConfigError } from './xl-cfg.ts';

export interface ChannelConfig {
  /** Number of its console: the first channel is console 1. */
  readonly devid: number;
  readonly name: string;
  /** As given; null is Dom0. */
  readonly backendDomain: string | null;
  /** 'socket': the host's end is a unix socket that is made at `path`. */
  readonly connection: { readonly kind: 'pty' } | { readonly kind: 'socket'; readonly path: string };
}

/** Throws ConfigError with xl's words. `index` counts the channels of a config from 0. */
export function parseChannel(spec: string, index: number, warn: (line: string) => void): ChannelConfig {
  const values = new Map<string, string>();
  for (const part of spec.split(',').filter((word) => word !== '')) {
    const equals = part.indexOf('=');
    if (equals < 0) throw new ConfigError(`failed to parse channel configuration: ${part}`);
    const key = part.slice(0, equals).trim();
    if (['backend', 'name', 'path', 'connection'].includes(key)) values.set(key, part.slice(equals + 1).trim());
    else warn(`unknown channel parameter '${key}', ignoring`);
  }
  const kind = values.get('connection');
  if (kind === undefined) throw new ConfigError("channel has unknown 'connection'");
  if (kind !== 'pty' && kind !== 'socket') throw new ConfigError(`unknown channel connection '${kind}'`);
  const path = values.get('path');
  if (kind === 'socket' && path === undefined) throw new ConfigError("channel connection 'socket' requires path=..");
  const devid = index + 1;
  const name = values.get('name');
  if (name === undefined) throw new ConfigError(`channel ${devid} has no name`);
  return {
    devid,
    name,
    backendDomain: values.get('backend') ?? null,
    connection: kind === 'pty' ? { kind } : { kind, path: path ?? '' },
  };
}

/** Members of libxl's JSON, in the order of libxl_types.idl. */
export function channelJson({ name, backendDomain, connection }: ChannelConfig): Record<string, unknown> {
  return {
    backend_domname: backendDomain ?? undefined,
    name,
    ...(connection.kind === 'pty' ? { 'connection.pty': {} } : { 'connection.socket': { path: connection.path } }),
  };
}
