import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { readDomainConfig } from '../toolstack/config/domain-config.ts';
import { forgetRecord, nextConfigOf, readRecord, recordOf, writeRecord } from './domain-record.ts';
import { formatProcessId, parseProcessId, processLives, thisProcess } from './process-id.ts';
import { domainFolder } from './state-dir.ts';

let root = '';
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'domus-record-'));
  mkdirSync(domainFolder(root, 1), { recursive: true });
});
afterEach(() => rmSync(root, { recursive: true }));

const CFG = `name="a"\nkernel="k"\nmemory=64\ndisk=["/img,raw,xvda,w"]\nvif=["mac=00:16:3e:01:02:03,bridge=b"]\nvfb=["vnc=1"]\n`;

test('a record comes back as it was written, bytes too', () => {
  const config = readDomainConfig('c', CFG, { warn: () => {} });
  const record = recordOf({ config, configText: CFG, quiet: true, preserve: false });
  writeRecord(root, 1, record);
  expect(readRecord(root, 1)).toEqual({ version: 1, ...record });
  expect(readRecord(root, 1)?.config.uuid).toBeInstanceOf(Uint8Array);
  expect(record.environment['DOMUS_STATE_DIR']).toBe(process.env['DOMUS_STATE_DIR']);
});

test('there is none where none was written, where it was forgotten, and where it is another version`s', () => {
  expect(readRecord(root, 1)).toBeNull();
  expect(readRecord(root, 2)).toBeNull();
  const config = readDomainConfig('c', CFG, { warn: () => {} });
  writeRecord(root, 1, recordOf({ config, configText: CFG, quiet: false, preserve: false }));
  forgetRecord(root, 1);
  forgetRecord(root, 1);
  expect(readRecord(root, 1)).toBeNull();
  for (const text of ['', '{', '[]', 'null', '{"version":2}']) {
    writeFileSync(join(domainFolder(root, 1), 'record.json'), text);
    expect(readRecord(root, 1), text).toBeNull();
  }
});

test('a domain is started again with the devices that it has, or with what it has been given to be started with', () => {
  const config = readDomainConfig('c', CFG, { warn: () => {} });
  const record = recordOf({ config, configText: CFG, quiet: true, preserve: false });
  expect(nextConfigOf(record, null)).toEqual({ config, text: CFG });
  const none = nextConfigOf(record, { disks: [], vifs: [] });
  expect(none.config).toEqual({ ...config, disks: [], vifs: [] });
  writeRecord(root, 1, { ...record, next: none });
  expect(nextConfigOf(readRecord(root, 1)!, null)).toEqual(none);
  const updated = { config, text: CFG };
  expect(nextConfigOf({ ...record, next: updated }, { disks: [], vifs: [] })).toBe(updated);
});

test('a process is told from another one of the same number', () => {
  const me = thisProcess();
  expect(parseProcessId(formatProcessId(me))).toEqual(me);
  expect(processLives(me)).toBe(true);
  if (process.platform === 'linux') expect(processLives({ ...me, startTime: '1' })).toBe(false);
  // No system has that many.
  expect(processLives({ pid: 2 ** 30, startTime: '' })).toBe(false);
  for (const text of ['', '0 1', '1 1', '-7 1', '12', 'x 1', '7 1 2']) expect(parseProcessId(text), text).toBeNull();
});
