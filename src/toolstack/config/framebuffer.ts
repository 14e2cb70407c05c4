/**
 * `vfb = [ "SPEC", ... ]`: a screen, with a keyboard and a pointer, that is shown by VNC. What xl does not know it passes over.
 *
 * Source: xl.cfg(5), "vfb"; tools/xl/xl_parse.c; libxl_vfb.c, libxl__device_vfb_setdefault (read for behaviour).
 */

import { boolJson } from './disk.ts';

/** What was said; null is "nothing". */
export interface VfbConfig {
  readonly devid: number;
  readonly vnc: boolean | null;
  readonly listen: string | null;
  readonly password: string | null;
  readonly display: number;
  readonly findUnused: boolean | null;
  readonly keymap: string | null;
  readonly sdl: boolean | null;
}

export function parseVfb(spec: string, devid: number): VfbConfig {
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
  return {
    devid,
    vnc: flag('vnc'),
    listen: values.get('vnclisten') ?? null,
    password: values.get('vncpasswd') ?? null,
    display: display > 0 ? display : 0,
    findUnused: flag('vncunused'),
    keymap: values.get('keymap') ?? null,
    sdl: flag('sdl'),
  };
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
    },
    sdl: { enable: boolJson(vfb.sdl) },
    keymap: vfb.keymap ?? undefined,
  };
}
