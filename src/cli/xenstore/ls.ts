/**
 * xenstore-ls: the tree below a node, one line a node; with -f full paths, with -p permissions.
 *
 * A line is cut to the width of the terminal, or to 80 columns where there is none, but never with -f.
 */
import { XenstoreError } from '../../xenstore/client.ts';
import { type Command, type Context, errorText, Failure, orNull } from './command.ts';
import { escapeValue } from './value.ts';

/** What a value that is cut takes besides its beginning. */
const CUT_BYTES = ' = "..."'.length;
const WIDTH = 80;
/** Permissions stand behind this column where there is room. */
const PERMISSIONS_COLUMN = 60;

interface Layout {
  readonly widthMax: number;
  readonly permissionsColumn: number;
}

export const ls: Command = {
  name: 'ls',
  usage: '[-h] [-f] [-p] [-s] [path]',
  letters: 'fp',
  usesTransaction: () => false,
  accepts: () => true,

  async run(paths, context) {
    const { options, columns } = context;
    const layout: Layout = options.has('f')
      ? { widthMax: Infinity, permissionsColumn: 0 }
      : { widthMax: columns === null ? WIDTH : columns - 2, permissionsColumn: PERMISSIONS_COLUMN };
    for (const path of paths.length > 0 ? paths : ['/']) await showBelow(path, 0, layout, context);
    return true;
  },
};

async function showBelow(path: string, depth: number, layout: Layout, context: Context): Promise<void> {
  const names = await namesBelow(path, depth, context);
  for (const name of names) {
    const child = `${path}${path.endsWith('/') ? '' : '/'}${name}`;
    context.out(`${await line(child, name, depth, layout, context)}\n`);
    await showBelow(child, depth + 1, layout, context);
  }
}

async function namesBelow(path: string, depth: number, { client }: Context): Promise<readonly string[]> {
  try {
    const names = await client.directory(path);
    if (names !== null) return names;
    // One that is gone since its parent was listed is no error.
    if (depth > 0) return [];
    throw new XenstoreError('ENOENT', path);
  } catch (error) {
    throw new Failure(`xs_directory (${path}): ${errorText(error)}`);
  }
}

async function line(path: string, name: string, depth: number, layout: Layout, context: Context): Promise<string> {
  const { client, options, warn } = context;
  const { widthMax } = layout;
  const full = options.has('f');
  let text = full ? path : ' '.repeat(depth) + cut(name, widthMax - CUT_BYTES - depth);
  // With -f the path does not count.
  let width = full ? 0 : text.length;
  const value = await orNull(client.readBytes(path));
  if (value === null) {
    text += ':\n';
  } else if (widthMax < width + value.length + CUT_BYTES) {
    text += ` = "${cut(escapeValue(value), widthMax - CUT_BYTES - width)}\\..."`;
  } else {
    const shown = ` = "${escapeValue(value)}"`;
    text += shown;
    width += shown.length;
    if (options.has('p')) {
      text += ' ';
      for (width++; width < Math.min(layout.permissionsColumn, widthMax); width++) text += width % 2 === 1 ? '.' : ' ';
    }
  }
  if (!options.has('p')) return text;
  const permissions = await orNull(client.getPermissions(path));
  if (permissions !== null) return `${text}  (${permissions.join(',')})`;
  warn(`\ncould not access permissions for ${name}`);
  return text;
}

/** As printf's precision: a negative one does not cut. */
function cut(text: string, lengthMax: number): string {
  return lengthMax < 0 ? text : text.slice(0, lengthMax);
}
