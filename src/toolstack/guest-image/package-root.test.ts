/** What packages become in a ramdisk; whole systems are booted in test/boot. */

import { expect, test } from 'vitest';
import type { CpioEntry } from './cpio.ts';
import type { DebEntry, UnpackedDeb } from './deb.ts';
import { packageRoot } from './package-root.ts';

const bytes = (text: string): Uint8Array => Buffer.from(text);
const file = (name: string, text = name): DebEntry => ({ kind: 'file', name, mode: 0o755, content: bytes(text) });
const folder = (name: string): DebEntry => ({ kind: 'directory', name, mode: 0o755 });
const deb = (control: Record<string, string>, ...entries: DebEntry[]): UnpackedDeb => ({
  control: new Map(Object.entries(control).map(([name, text]) => [name, bytes(text)])),
  entries,
});
const plain = (...entries: DebEntry[]): UnpackedDeb => deb({ control: 'Package: x\nArchitecture: all\n' }, ...entries);
const target = (entry: CpioEntry | undefined): string | undefined =>
  entry?.kind === 'symlink' ? entry.target : undefined;
const text = (entry: CpioEntry | undefined): string | undefined =>
  entry?.kind === 'file' ? Buffer.from(entry.content).toString() : undefined;

test('what is below /bin and /lib goes below /usr, with its links', () => {
  const tree = packageRoot([
    plain(
      folder('bin'),
      file('bin/dash'),
      { kind: 'symlink', name: 'bin/sh', target: 'dash' },
      { kind: 'symlink', name: 'lib/a/libz.so', target: '../b/libz.so.1' },
      { kind: 'symlink', name: 'lib/lsb', target: '../usr/lib/lsb' },
      { kind: 'hard-link', name: 'usr/bin/other', target: 'bin/dash' },
    ),
  ]);
  expect(target(tree.get('bin'))).toBe('usr/bin');
  expect(text(tree.get('usr/bin/dash'))).toBe('bin/dash');
  expect(target(tree.get('usr/bin/sh'))).toBe('dash');
  expect(target(tree.get('usr/lib/a/libz.so'))).toBe('/lib/b/libz.so.1');
  expect(tree.has('usr/lib/lsb')).toBe(false);
  expect(text(tree.get('usr/bin/other'))).toBe('bin/dash');
  expect([...tree.keys()].filter((name) => name.startsWith('bin/'))).toEqual([]);
});

test('parents come before their children, whatever a package has', () => {
  const names = [...packageRoot([plain(file('opt/a/b/c'), file('etc/x'))]).keys()];
  for (const name of names) {
    const parent = name.split('/').slice(0, -1).join('/');
    if (parent !== '') expect(names.indexOf(parent), name).toBeLessThan(names.indexOf(name));
    if (parent !== '') expect(names).toContain(parent);
  }
});

test('the alternative of the highest priority gets the link, with its slaves; one that is not there gets none', () => {
  const script = (path: string, priority: string): string =>
    `set -e\nif [ "$1" = configure ]; then\n  update-alternatives --quiet --install /usr/bin/awk awk ${path} ${priority} \\\n` +
    `    --slave /usr/bin/nawk nawk ${path}\nfi\n`;
  const of = (path: string, priority: string): UnpackedDeb =>
    deb({ control: 'Package: y\n', postinst: script(`/${path}`, priority) }, file(path));
  const tree = packageRoot([of('usr/bin/mawk', '5'), of('usr/bin/gawk', '10'), of('usr/bin/original-awk', '1')]);
  expect(target(tree.get('usr/bin/awk'))).toBe('/usr/bin/gawk');
  expect(target(tree.get('usr/bin/nawk'))).toBe('/usr/bin/gawk');
  const missing = deb({ control: 'Package: y\n', postinst: script('/usr/bin/none', '5') });
  expect(packageRoot([missing]).has('usr/bin/awk')).toBe(false);
});

test('dpkg finds the packages unpacked, with their scripts', () => {
  const tree = packageRoot([
    deb(
      {
        control: 'Package: libx\nArchitecture: amd64\nMulti-Arch: same\nDescription: x\n more\n',
        postinst: '#!/bin/sh\n',
      },
      file('usr/lib/libx.so'),
    ),
  ]);
  expect(text(tree.get('var/lib/dpkg/status'))).toBe(
    'Package: libx\nStatus: install ok unpacked\nArchitecture: amd64\nMulti-Arch: same\nDescription: x\n more\n\n',
  );
  expect(text(tree.get('var/lib/dpkg/info/libx:amd64.list'))).toBe('/.\n/usr/lib/libx.so\n');
  expect(tree.get('var/lib/dpkg/info/libx:amd64.postinst')).toMatchObject({ kind: 'file', mode: 0o755 });
});

test('the masters of base-passwd become /etc/passwd and /etc/group, unless a package has them', () => {
  const master = file('usr/share/base-passwd/passwd.master', 'root');
  expect(text(packageRoot([plain(master)]).get('etc/passwd'))).toBe('root');
  expect(text(packageRoot([plain(master, file('etc/passwd', 'own'))]).get('etc/passwd'))).toBe('own');
});
