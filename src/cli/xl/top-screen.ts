/** `xl top` on a terminal: what keys do, and how a screen is put together. Source: xentop(1), "INTERACTIVE COMMANDS". */

import { COLUMNS, type TopOptions } from './top-table.ts';

export interface TopView extends TopOptions {
  readonly delaySeconds: number;
  /** A number that is being typed; null if none is. */
  readonly typed: string | null;
}

const TYPED_MAX = 6;
const REVERSE = '\x1b[7m';
const YELLOW = '\x1b[43m';
const PLAIN = '\x1b[0m';

/** What one key makes of it; null: the user has had enough. `key`: what the terminal sent for it. */
export function pressed(view: TopView, key: string): TopView | null {
  if (view.typed !== null) return typedOn(view, view.typed, key);
  switch (key.toLowerCase()) {
    case 'n':
      return { ...view, networks: !view.networks };
    case 'b':
      return { ...view, vbds: !view.vbds };
    case 'v':
      return { ...view, vcpus: !view.vcpus };
    case 'r':
      return { ...view, repeatHeader: !view.repeatHeader };
    case 's':
      return { ...view, sort: (view.sort + 1) % COLUMNS.length };
    case 'd':
      return { ...view, typed: '' };
    case '\x1b[a':
    case '\x1boa':
      return { ...view, first: Math.max(0, view.first - 1) };
    case '\x1b[b':
    case '\x1bob':
      return { ...view, first: view.first + 1 };
    case 'q':
    case '\x1b':
    case '\x03':
      return null;
    default:
      return view;
  }
}

function typedOn(view: TopView, typed: string, key: string): TopView | null {
  if (key === '\x03') return null;
  if (key === '\x1b') return { ...view, typed: null };
  if (key === '\x7f' || key === '\b') return { ...view, typed: typed.slice(0, -1) };
  if (key === '\r' || key === '\n') {
    const seconds = Number.parseInt(typed, 10);
    return { ...view, typed: null, delaySeconds: seconds > 0 ? seconds : view.delaySeconds };
  }
  return /^[\x20-\x7e]$/.test(key) && typed.length < TYPED_MAX ? { ...view, typed: typed + key } : view;
}

/** Keys out of what a terminal sent: single characters and escape sequences. */
export function keysIn(text: string): string[] {
  return text.match(/\x1b[[O][A-Za-z]|[\s\S]/g) ?? [];
}

/** Everything that is written to show the lines, from the top left of the screen. */
export function screen(
  lines: readonly string[],
  headers: ReadonlySet<string>,
  view: TopView,
  rows: number,
  columns: number,
): string {
  const shown = lines.slice(0, Math.max(0, rows - 1)).map((line) => {
    const cut = line.slice(0, columns);
    return `${headers.has(line) ? `${REVERSE}${cut}${PLAIN}` : cut}\x1b[K`;
  });
  return `\x1b[H${shown.join('\r\n')}\x1b[J\x1b[${rows};1H  ${bottomLine(view)}`;
}

function bottomLine(view: TopView): string {
  if (view.typed !== null) return `Delay(sec): ${view.typed}`;
  const key = (before: string, letter: string, rest: string, isOn: boolean): string => {
    const colour = (text: string): string => (isOn && text !== '' ? `${YELLOW}${text}${PLAIN}` : text);
    return `${colour(before)}${REVERSE}${letter}${PLAIN}${colour(rest)}`;
  };
  return [
    key('', 'D', 'elay', false),
    key('', 'N', 'etworks', view.networks),
    key('v', 'B', 'ds', view.vbds),
    key('', 'V', 'CPUs', view.vcpus),
    key('', 'R', 'epeat header', view.repeatHeader),
    key('', 'S', 'ort order', false),
    key('', 'Q', 'uit', false),
  ].join('  ');
}
