/** The part of apt.ts that needs no apt: sources. Downloads are tried by the boot tests, which build real guests. */

import { describe, expect, test } from 'vitest';
import { AptError, parseSources, privateSources } from './apt.ts';

const DEB822 = `Types: deb deb-src
# a comment
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Types: deb-src
URIs: http://src.example/debian
Suites: bookworm
Components: main

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://other.example/node
Suites: nodistro
Components: main
`;

const ONE_LINE = `# deb http://no.example/debian bookworm main
deb-src http://no.example/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main non-free # all
deb http://other.example/docker bookworm stable
`;

describe('parseSources()', () => {
  test('reads deb822, without source-only and disabled entries', () => {
    const entries = parseSources(DEB822, 'deb822');
    expect(entries.map((entry) => entry.uris[0])).toEqual([
      'http://mirror.example/debian',
      'http://mirror.example/debian-security',
      'http://other.example/node',
    ]);
    expect(entries[0]?.suites).toEqual(['bookworm', 'bookworm-updates']);
    expect(entries[1]?.fields).toEqual([['Signed-By', '\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc']]);
  });

  test('reads one-line entries with options', () => {
    expect(parseSources(ONE_LINE, 'one-line')).toEqual([
      {
        uris: ['http://mirror.example/debian'],
        suites: ['bookworm'],
        components: ['main', 'non-free'],
        fields: [['signed-by', '/k.gpg']],
      },
      { uris: ['http://other.example/docker'], suites: ['bookworm'], components: ['stable'], fields: [] },
    ]);
  });
});

describe('privateSources()', () => {
  test('keeps the distribution itself and drops third parties', () => {
    const text =
      privateSources([...parseSources(DEB822, 'deb822'), ...parseSources(ONE_LINE, 'one-line')], 'bookworm') ?? '';
    expect(text).not.toContain('other.example');
    expect(parseSources(text, 'deb822').map((entry) => entry.uris[0])).toEqual([
      'http://mirror.example/debian',
      'http://mirror.example/debian-security',
      'http://mirror.example/debian',
    ]);
    expect(text).toContain('Architectures: amd64');
  });

  test('derives another suite from the release’s own mirror and key', () => {
    const text = privateSources(parseSources(DEB822, 'deb822'), 'bookworm', 'bookworm-backports') ?? '';
    expect(parseSources(text, 'deb822').at(-1)).toEqual({
      uris: ['http://mirror.example/debian'],
      suites: ['bookworm-backports'],
      components: ['main'],
      fields: [['Signed-By', '/usr/share/keyrings/debian-archive-keyring.gpg']],
    });
  });

  test('names further architectures', () => {
    const text = privateSources(parseSources(ONE_LINE, 'one-line'), 'bookworm', undefined, ['i386']) ?? '';
    expect(text).toContain('Architectures: amd64 i386');
  });

  test('adds no second entry for a suite that the system has', () => {
    const text = privateSources(parseSources(DEB822, 'deb822'), 'bookworm', 'bookworm-updates') ?? '';
    expect(text.match(/bookworm-updates/g)).toHaveLength(1);
  });

  test('leaves a system of another distribution to its own sources, but cannot derive a suite there', () => {
    const entries = parseSources('deb http://mirror.example/x noble universe', 'one-line');
    expect(privateSources(entries, 'noble')).toBeUndefined();
    expect(() => privateSources(entries, 'noble', 'bookworm-backports')).toThrow(AptError);
  });
});
