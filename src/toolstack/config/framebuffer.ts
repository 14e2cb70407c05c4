/**
 * `vfb = [ "SPEC", ... ]`: a screen, with a keyboard and a pointer, that is shown by VNC. What xl does not know it passes over.
 *
 * `vncwebsocket` is Domus's own.
 *
 * Source: xl.cfg(5), "vfb"; tools/xl/xl_parse.c; libxl_vfb.c, libxl__device_vfb_setdefault (read for behaviour).
 */

import { boolJson } from './disk.ts';
import { ConfigError } from './xl-cfg.ts';

/** What was said; null is "nothing". */
export interface VfbConfig {
  readonly devid: number;
  readonly vnc: boolean | null;
  /** As written: `ADDRESS[:DISPLAY]` (`vncPlace`). */
  readonly listen: string | null;
  readonly password: string | null;
  readonly display: number;
  readonly findUnused: boolean | null;
  /** Browsers are served, too. Domus's own. */
  readonly websocket: boolean;
  readonly keymap: string | null;
  readonly sdl: boolean | null;
}

/** Source: RFC 6143: display N is port 5900 + N. */
export const FIRST_VNC_PORT = 5900;
export const VNC_DISPLAY_MAX = 65535 - FIRST_VNC_PORT;

/** @throws ConfigError */
export function parseVfb(source: string, spec: string, devid: number): VfbConfig {
  const values = new Map<string, string>();
  for (const part of spec.split(',')) {
    const equals = part.indexOf('=');
    // As in xl: what follows a word without a value is not looked at.
    if (equals < 0) break;
    values.set(part.slice(0, equals).trim(), part.slice(equals + 1));
  }
  const flag = (name: string): boolean | null => {
    const text = values.get(name);
    return text === undefined ? null : Number.parseInt(text, 10) > 0;
  };
  const display = Number.parseInt(values.get('vncdisplay') ?? '', 10);
  const vfb: VfbConfig = {
    devid,
    vnc: flag('vnc'),
    listen: values.get('vnclisten') ?? null,
    password: values.get('vncpasswd') ?? null,
    display: display > 0 ? display : 0,
    findUnused: flag('vncunused'),
    websocket: flag('vncwebsocket') ?? false,
    keymap: values.get('keymap') ?? null,
    sdl: flag('sdl'),
  };
  const place = vncPlace(vfb);
  if (place === null)
    throw new ConfigError(`${source}: vfb: vnclisten=${vfb.listen}: expected ADDRESS or ADDRESS:DISPLAY`);
  if (place.display > VNC_DISPLAY_MAX)
    throw new ConfigError(
      `${source}: vfb: VNC display ${place.display}: expected 0 to ${VNC_DISPLAY_MAX} (its port is ${FIRST_VNC_PORT} and that)`,
    );
  return vfb;
}

export interface VncPlace {
  readonly address: string;
  readonly display: number;
}

/**
 * Where the server is to listen; null when `vnclisten` is nothing of the kind. A display in there counts rather than `vncdisplay`, as with
 * libxl. An IPv6 address stands in brackets where a display follows.
 */
export function vncPlace({ listen, display }: Pick<VfbConfig, 'listen' | 'display'>): VncPlace | null {
  const text = listen || '127.0.0.1';
  const match = /^\[([^[\]]+)\](?::(\d+))?$/.exec(text) ?? /^([^:]*)(?::(\d+))?$/.exec(text);
  if (match !== null) return { address: match[1] || '127.0.0.1', display: Number(match[2] ?? display) };
  return /^[0-9a-f:.]*:[0-9a-f:.]*:[0-9a-f:.]*(%.+)?$/i.test(text) ? { address: text, display } : null;
}

/** Members of libxl's JSON, in the order of libxl_types.idl; undefined where they are at their default. */
export function vfbJson(vfb: VfbConfig): Record<string, unknown> {
  return {
    devid: vfb.devid,
    vnc: {
      enable: boolJson(vfb.vnc),
      listen: vfb.listen ?? undefined,
      passwd: vfb.password ?? undefined,
      display: vfb.display || undefined,
      findunused: boolJson(vfb.findUnused),
      websocket: vfb.websocket ? boolJson(true) : undefined,
    },
    sdl: { enable: boolJson(vfb.sdl) },
    keymap: vfb.keymap ?? undefined,
  };
}
