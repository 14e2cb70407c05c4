import { expect, test } from 'vitest';
import { announcement } from './announcement.ts';
import { Frame } from './frame.ts';
import { isFrom } from './mac-filter.ts';

const OWN = Uint8Array.of(0x00, 0x16, 0x3e, 1, 2, 3);
const OTHER = Uint8Array.of(0x00, 0x16, 0x3e, 0xde, 0xad, 1);
const ARP = [0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2];
const VLAN = [0x81, 0x00, 0, 7];
const PROVIDER = [0x88, 0xa8, 0, 7];

const frame = (source: Uint8Array, ...rest: (number | Uint8Array)[]): Frame => {
  const bytes = Uint8Array.from(
    [...new Uint8Array(6).fill(0xff), ...source, ...rest.flatMap((part) => [part].flat())].flatMap((part) =>
      typeof part === 'number' ? [part] : [...part],
    ),
  );
  return new Frame().set(bytes, bytes.length);
};

test.each<[string, Frame, boolean]>([
  ['its own address', frame(OWN, 0x08, 0x00, 0x45), true],
  ['another', frame(OTHER, 0x08, 0x00, 0x45), false],
  ['its own ARP', frame(OWN, ...ARP, OWN), true],
  ['ARP for another', frame(OWN, ...ARP, OTHER), false],
  ['ARP for another behind a tag', frame(OWN, ...VLAN, ...ARP, OTHER), false],
  ['ARP for another behind two', frame(OWN, ...PROVIDER, ...VLAN, ...ARP, OTHER), false],
  ['its own ARP behind two', frame(OWN, ...PROVIDER, ...VLAN, ...ARP, OWN), true],
  ['ARP that ends too early', frame(OWN, ...ARP, OWN.subarray(0, 5)), false],
  ['RARP for another', frame(OWN, 0x80, 0x35, ...ARP.slice(2), OTHER), false],
  ['a tag and no more', frame(OWN, ...VLAN), true],
  ['the announcement of a domain that has moved', announcement(OWN), true],
])('the sender of %s', (_, from, expected) => {
  expect(isFrom(from, OWN)).toBe(expected);
});
