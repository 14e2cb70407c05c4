import { spawnSync } from 'node:child_process';
import { describe, expect, test } from 'vitest';
import { type CpioEntry, writeCpio } from './cpio.ts';

const ENTRIES: readonly CpioEntry[] = [
  { kind: 'directory', name: 'dev', mode: 0o755 },
  { kind: 'character-device', name: 'dev/console', mode: 0o600, major: 5, minor: 1 },
  { kind: 'file', name: 'init', mode: 0o755, content: Buffer.from('#!/bin/sh\n') },
  { kind: 'file', name: 'empty', mode: 0o644, content: new Uint8Array() },
  { kind: 'symlink', name: 'bin', target: 'usr/bin' },
];

describe('writeCpio()', () => {
  test('writes headers, names and contents on four-byte boundaries', () => {
    const archive = Buffer.from(writeCpio(ENTRIES));
    const found: [string, number, number, number, string][] = [];
    for (let at = 0; ; ) {
      expect(at % 4).toBe(0);
      expect(archive.toString('latin1', at, at + 6)).toBe('070701');
      const field = (index: number): number =>
        Number.parseInt(archive.toString('latin1', at + 6 + index * 8, at + 14 + index * 8), 16);
      const nameEnd = at + 110 + field(11);
      expect(archive[nameEnd - 1]).toBe(0);
      const name = archive.toString('utf8', at + 110, nameEnd - 1);
      if (name === 'TRAILER!!!') {
        expect(Math.ceil(nameEnd / 4) * 4).toBe(archive.length);
        break;
      }
      const start = Math.ceil(nameEnd / 4) * 4;
      found.push([name, field(1), field(9), field(10), archive.toString('utf8', start, start + field(6))]);
      at = Math.ceil((start + field(6)) / 4) * 4;
    }
    expect(found).toEqual([
      ['dev', 0o40755, 0, 0, ''],
      ['dev/console', 0o20600, 5, 1, ''],
      ['init', 0o100755, 0, 0, '#!/bin/sh\n'],
      ['empty', 0o100644, 0, 0, ''],
      ['bin', 0o120777, 0, 0, 'usr/bin'],
    ]);
  });

  test('is read by cpio', (context) => {
    const { stdout, stderr, error } = spawnSync('cpio', ['-itv', '--quiet'], {
      input: writeCpio(ENTRIES),
      encoding: 'utf8',
    });
    if (error) return context.skip('no cpio');
    expect(stderr).toBe('');
    const lines = stdout.trim().split('\n');
    expect(lines).toHaveLength(ENTRIES.length);
    expect(lines[1]).toMatch(/^crw------- .* 5, +1 .* dev\/console$/);
    expect(lines[4]).toMatch(/bin -> usr\/bin$/);
  });
});
