import { expect, test } from 'vitest';
import { completeConfig } from '../saved/saved-config.ts';
import { configJson, readDomainConfig, readStated } from './domain-config.ts';
import { domainLimits } from './domain-limits.ts';

const HEAD = 'name="a"\nkernel="/k"\n';
const read = (text: string) => readDomainConfig('f.cfg', HEAD + text, { warn: () => {} });
const limits = (text: string) => domainLimits(read(text).limits);

test("limits are Xen's and libxl's where the config says nothing", () => {
  const defaults = { grantFrames: 64, maptrackFrames: 1024, grantVersion: 2, port: 1023 };
  expect(limits('')).toEqual(defaults);
  expect(limits('max_event_channels=0')).toEqual(defaults);
});

test('limits are what the config says; -1 event channels are all that there are', () => {
  expect(
    limits('max_grant_frames=0x10\nmax_maptrack_frames="0"\nmax_grant_version=1\nmax_event_channels=4096'),
  ).toEqual({ grantFrames: 16, maptrackFrames: 0, grantVersion: 1, port: 4096 });
  expect(limits('max_event_channels="-1"').port).toBe(0xffffffff);
});

test('what cannot be is refused by line', () => {
  const cases: readonly (readonly [string, string])[] = [
    ['max_grant_frames=0', "f.cfg:3: parameter `max_grant_frames' is 0, but lies between 1 and 64"],
    ['max_grant_frames=65', 'is 65, but'],
    ['max_grant_frames="many"', 'is no number, but'],
    ['max_grant_frames=["1"]', 'is no number, but'],
    ['max_maptrack_frames="-1"', 'is -1, but lies between 0 and 1024'],
    ['max_maptrack_frames=1025', 'is 1025, but'],
    ['max_grant_version=0', 'is 0, but lies between 1 and 2'],
    ['max_grant_version=3', 'is 3, but'],
    ['max_event_channels=1', "`max_event_channels' is 1, but a domain needs at least 2"],
  ];
  for (const [text, message] of cases) expect(() => read(text), text).toThrow(message);
});

test('only what was stated is in the JSON, where libxl has it', () => {
  const json = (text: string): object =>
    JSON.parse(configJson(readStated('f.cfg', HEAD + text, { warn: () => {} }))).b_info;
  expect(Object.keys(json('')).join()).not.toMatch(/grant|maptrack|event/);
  const all = json('max_event_channels=9\nmax_grant_version=1\nmax_maptrack_frames=2\nmax_grant_frames=3');
  expect(all).toMatchObject({ max_grant_frames: 3, max_maptrack_frames: 2, max_grant_version: 1, event_channels: 9 });
  expect(Object.keys(all).join()).toContain('max_grant_frames,max_maptrack_frames,max_grant_version,');
  expect(Object.keys(all).join()).toContain('claim_mode,event_channels,kernel');
});

test("a saved config names the limits of grants, which may have been xl.conf's", () => {
  const config = read('');
  const limited = { ...config, limits: { ...config.limits, maxGrantFrames: 7, maxGrantVersion: 1 } };
  const text = completeConfig(`${HEAD}max_grant_frames=7`, limited, 'a', (file) => file);
  expect(readDomainConfig('s', text, { warn: () => {} }).limits).toEqual(limited.limits);
  expect(completeConfig(HEAD, config, 'a', (file) => file)).not.toContain('max_');
});
