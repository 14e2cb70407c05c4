/** What a boot loader's configuration offers, whichever boot loader it is for. */

export interface BootEntry {
  readonly title: string;
  /** Of menuentry's --id; empty if it has none. */
  readonly id: string;
  /** Titles of the submenus that it is in, outermost first. */
  readonly submenus: readonly string[];
  /** Paths on the file system; undefined for entries that boot something else. */
  readonly kernel: string | undefined;
  /** Loaded one behind the other. */
  readonly ramdisks: readonly string[];
  readonly args: string;
}

export interface BootMenu {
  /** In their order, those of submenus in the place of their submenu, as pygrub counts them. */
  readonly entries: readonly BootEntry[];
  /** Which entry is booted if the user does not say: a number, a title, an id, or a path such as "1>2". */
  readonly defaultEntry: string;
}

/** Takes the device off a path such as "(hd0,1)/vmlinuz" or "($root)/vmlinuz". */
export function withoutDevice(path: string): string {
  return path.startsWith('(') && path.includes(')') ? path.slice(path.indexOf(')') + 1) : path;
}

/**
 * The index of the entry that is booted.
 *
 * @param wanted what the user asks for: a number, or else a title; what is not there gives way to the default, as in pygrub
 */
export function chooseEntry({ entries, defaultEntry }: BootMenu, wanted: string | undefined): number {
  if (wanted !== undefined) {
    const index = /^\d+$/.test(wanted) ? Number(wanted) : entries.findIndex(({ title }) => title === wanted);
    if (index >= 0 && index < entries.length) return index;
  }
  const fallback = (index: number): number => (index >= 0 && index < entries.length ? index : 0);
  if (/^\d+$/.test(defaultEntry)) return fallback(Number(defaultEntry));
  const whole = entries.findIndex(({ title, id }) => title === defaultEntry || id === defaultEntry);
  if (whole >= 0) return whole;
  // "submenu>entry", by titles or ids; of numbers, the last counts within the submenu that the first names.
  const leaf = defaultEntry.split('>').at(-1) ?? '';
  if (!/^\d+$/.test(leaf)) return fallback(entries.findIndex(({ title, id }) => title === leaf || id === leaf));
  const submenuEntries = topLevel(entries)[Number(defaultEntry.split('>')[0])] ?? [];
  return fallback(submenuEntries[Number(leaf)] ?? -1);
}

/** Indexes of the entries below each item of the first menu. */
function topLevel(entries: readonly BootEntry[]): number[][] {
  const items: number[][] = [];
  let last: string | undefined;
  for (const [index, { submenus }] of entries.entries()) {
    const submenu = submenus[0];
    if (submenu !== undefined && submenu === last) items.at(-1)!.push(index);
    else items.push([index]);
    last = submenu;
  }
  return items;
}
