/**
 * The root file system that Debian packages make, as entries of a ramdisk: what `dpkg --unpack` would leave, without root.
 *
 * Maintainer scripts are not run. What a program needs of them to work is done here instead:
 *
 *   /bin, /lib, /lib64, /sbin          links to /usr (usr-merge); what packages have below them goes below /usr
 *   /etc/passwd, group, profile, ...   base-files' and base-passwd's masters, copied as their postinst does
 *   cc, awk, editor, ...               links of update-alternatives, by the `--install` lines in the postinst scripts; the
 *                                      highest priority wins
 *   /var/lib/dpkg                      every package is "install ok unpacked", with its scripts and lists, so that
 *                                      `dpkg --configure -a` in the guest does the rest for who wants it
 *
 * There is no ld.so.cache: the loader finds Debian's folders without one. Manuals, translations and documentation but copyright
 * files are left out, as in Debian's slim container images. All files belong to root.
 * Source: Debian policy 6, 7 and 10; deb-control(5), update-alternatives(1), dpkg(1).
 */

import type { CpioEntry } from './cpio.ts';
import { type DebEntry, type UnpackedDeb, unpackDeb } from './deb.ts';

const MERGED: readonly string[] = ['bin', 'lib', 'lib32', 'lib64', 'libx32', 'sbin'];

/** Copied by postinst scripts if the target is not there. */
const MASTERS: readonly (readonly [target: string, source: string])[] = [
  ['etc/passwd', 'usr/share/base-passwd/passwd.master'],
  ['etc/group', 'usr/share/base-passwd/group.master'],
  ['etc/profile', 'usr/share/base-files/profile'],
  ['etc/nsswitch.conf', 'usr/share/libc-bin/nsswitch.conf'],
  ['root/.profile', 'usr/share/base-files/dot.profile'],
  ['root/.bashrc', 'usr/share/base-files/dot.bashrc'],
];

const UNWANTED = /^usr\/share\/(man|info|locale|lintian|linda|groff|doc-base|bug|doc\/.*(?<!\/copyright))(\/|$)/;

/**
 * Reads packages into one tree.
 *
 * @param debs paths of .deb files
 * @param onPackage hears of each package before it is read
 * @returns the tree by name; parents come before their children
 * @throws DebError if a package is damaged
 */
export async function readPackageRoot(
  debs: readonly string[],
  onPackage: (path: string, index: number) => void = () => {},
): Promise<Map<string, CpioEntry>> {
  const packages: UnpackedDeb[] = [];
  for (const [index, path] of debs.entries()) {
    onPackage(path, index);
    packages.push(await unpackDeb(path, (name) => !UNWANTED.test(name)));
  }
  return packageRoot(packages);
}

/** The tree of packages that have been read. */
export function packageRoot(packages: readonly UnpackedDeb[]): Map<string, CpioEntry> {
  const tree = new Map<string, CpioEntry>();
  for (const name of MERGED) tree.set(name, { kind: 'symlink', name, target: `usr/${name}` });
  for (const { entries } of packages) for (const entry of entries) place(tree, entry);
  for (const [target, source] of MASTERS) {
    const master = tree.get(source);
    if (master?.kind === 'file' && !tree.has(target)) put(tree, { ...master, name: target });
  }
  for (const [name, target] of alternatives(packages, tree)) put(tree, { kind: 'symlink', name, target });
  for (const entry of dpkgDatabase(packages)) put(tree, entry);
  return new Map([...tree].sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0)));
}

/** Where a file is once /bin and its like are links. */
function merged(name: string): string {
  const [first = ''] = name.split('/', 1);
  return MERGED.includes(first) ? `usr/${name}` : name;
}

function place(tree: Map<string, CpioEntry>, entry: DebEntry): void {
  const name = merged(entry.name);
  if (entry.kind === 'directory') {
    if (!tree.has(name)) put(tree, { ...entry, name });
  } else if (entry.kind === 'hard-link') {
    const target = tree.get(merged(entry.target));
    if (target) put(tree, { ...target, name });
  } else if (entry.kind === 'symlink') {
    // A link from /lib to its own place below /usr would point to itself.
    if (merged(resolveLink(entry.name, entry.target)) !== name)
      put(tree, { kind: 'symlink', name, target: movedTarget(entry.name, name, entry.target) });
  } else put(tree, { ...entry, name });
}

/** The path, without leading slash, that a link's target means. */
function resolveLink(name: string, target: string): string {
  const words = target.startsWith('/') ? [] : name.split('/').slice(0, -1);
  for (const word of target.split('/')) {
    if (word === '..') words.pop();
    else if (word !== '' && word !== '.') words.push(word);
  }
  return words.join('/');
}

/** A relative target of a link that usr-merge has moved one folder down. */
function movedTarget(from: string, to: string, target: string): string {
  return from === to || target.startsWith('/') || !target.startsWith('..') ? target : `/${resolveLink(from, target)}`;
}

function put(tree: Map<string, CpioEntry>, entry: CpioEntry): void {
  const words = entry.name.split('/');
  for (let i = 1; i < words.length; i++) {
    const parent = words.slice(0, i).join('/');
    if (!tree.has(parent)) tree.set(parent, { kind: 'directory', name: parent, mode: 0o755 });
  }
  tree.set(entry.name, entry);
}

/** Links that update-alternatives would make: name and absolute target, for targets that are there. */
function alternatives(packages: readonly UnpackedDeb[], tree: ReadonlyMap<string, CpioEntry>): Map<string, string> {
  const links = new Map<string, string>();
  const priorities = new Map<string, number>();
  const add = (link: string, target: string, priority: number): void => {
    const name = merged(link.slice(1));
    const isThere = tree.has(merged(target.slice(1)));
    if (!isThere || tree.has(name) || (priorities.get(name) ?? Number.NEGATIVE_INFINITY) >= priority) return;
    links.set(name, target);
    priorities.set(name, priority);
  };
  for (const { control } of packages) {
    const script = control.get('postinst');
    if (script === undefined) continue;
    const text = Buffer.from(script).toString('utf8').replaceAll('\\\n', ' ');
    // --install LINK NAME PATH PRIORITY [--slave LINK NAME PATH]...
    for (const line of text.match(/^.*update-alternatives\b.*$/gm) ?? []) {
      const install = /--install\s+(\/\S+)\s+\S+\s+(\/\S+)\s+(-?\d+)/.exec(line);
      if (!install) continue;
      const priority = Number(install[3]);
      add(install[1]!, install[2]!, priority);
      for (const slave of line.matchAll(/--slave\s+(\/\S+)\s+\S+\s+(\/\S+)/g)) add(slave[1]!, slave[2]!, priority);
    }
  }
  return links;
}

/** What dpkg knows of packages that are unpacked but not configured. */
function dpkgDatabase(packages: readonly UnpackedDeb[]): CpioEntry[] {
  const file = (name: string, content: Uint8Array, mode = 0o644): CpioEntry => ({
    kind: 'file',
    name: `var/lib/dpkg/${name}`,
    mode,
    content,
  });
  const entries: CpioEntry[] = [file('info/format', Buffer.from('1\n')), file('available', Buffer.from(''))];
  let status = '';
  for (const { control, entries: members } of packages) {
    const stanza = Buffer.from(control.get('control') ?? '').toString('utf8');
    const field = (name: string): string => new RegExp(`^${name}:[ \\t]*(\\S+)`, 'im').exec(stanza)?.[1] ?? '';
    const isShared = field('Multi-Arch') === 'same';
    const key = `${field('Package')}${isShared ? `:${field('Architecture')}` : ''}`;
    status += `${stanza.trim().replace(/^(Package:.*)$/m, '$1\nStatus: install ok unpacked')}\n\n`;
    const list = ['/.', ...members.map((member) => `/${member.name}`)].join('\n');
    entries.push(file(`info/${key}.list`, Buffer.from(`${list}\n`)));
    for (const [name, content] of control) {
      if (name === 'control') continue;
      const isScript = /^(pre|post)(inst|rm)$|^config$/.test(name);
      entries.push(file(`info/${key}.${name}`, content, isScript ? 0o755 : 0o644));
    }
  }
  entries.push(file('status', Buffer.from(status)));
  return entries;
}
