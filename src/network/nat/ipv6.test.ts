import { expect, test } from 'vitest';
import { formatIpv6, IPV6_FIRST, isIpv6Forbidden, parseIpv6 } from './ipv6.ts';
import { Ipv6Addresses } from './ipv6-addresses.ts';

/** As the URL standard has it, which is RFC 5952. */
const canonical = (text: string): string => new URL(`http://[${text}]`).hostname.slice(1, -1);

test('addresses are written and read as the URL standard does', () => {
  for (let round = 0; round < 2000; round++) {
    const bytes = new Uint8Array(16);
    for (let i = 0; i < 16; i++) bytes[i] = Math.random() < 0.6 ? 0 : Math.random() * 256;
    const groups = Array.from({ length: 8 }, (_, i) => ((bytes[2 * i] << 8) | bytes[2 * i + 1]).toString(16)).join(':');
    const text = formatIpv6(bytes, 0);
    expect(text).toBe(canonical(groups));
    expect(parseIpv6(text)).toEqual(bytes);
    expect(parseIpv6(groups)).toEqual(bytes);
  }
});

test('what is no address is none', () => {
  for (const text of [
    '',
    ':',
    ':::',
    '1',
    '1::2::3',
    '1:2:3:4:5:6:7:8:9',
    '1:2:3:4:5:6:7',
    '::ffff:1.2.3.4',
    'fe80::1%lo',
  ])
    expect(parseIpv6(text), text).toBeNull();
  for (const text of ['g::', '12345::', '1:2:3:4:5:6:7:8::', '1::2:3:4:5:6:7:8', '::1:', ':1::'])
    expect(parseIpv6(text), text).toBeNull();
});

test('the host is not asked for groups, its loopback, addresses of a link, or of IPv4', () => {
  const isForbidden = (text: string): boolean => isIpv6Forbidden(parseIpv6(text) ?? new Uint8Array(0), 0);
  for (const text of [
    '::',
    '::1',
    '::7f00:1',
    '::ffff:7f00:1',
    '::ffff:a00:1',
    'ff02::1',
    'ff0e::1',
    'fe80::1',
    'febf::1',
  ])
    expect(isForbidden(text), text).toBe(true);
  for (const text of ['2001:db8::1', 'fd00:a:0:2::2', '64:ff9b::7f00:1', 'fec0::1', '::1:0:0:0'])
    expect(isForbidden(text), text).toBe(false);
});

test('an address keeps its number as long as it is in use, however many others come', () => {
  const addresses = new Ipv6Addresses(0x0a000202, 0x0a000203);
  expect([addresses.format(addresses.gateway), addresses.format(addresses.dns)]).toEqual([
    'fd00:a:0:2::2',
    'fd00:a:0:2::3',
  ]);
  const kept = addresses.parse('2001:db8::7');
  addresses.inUse = () => new Set([kept]);
  const bytes = parseIpv6('2001:db8:1::') ?? new Uint8Array(0);
  const numbers = new Set<number>();
  for (let n = 0; n < 50_000; n++) {
    new DataView(bytes.buffer).setUint32(8, n);
    const number = addresses.find(bytes, 0);
    numbers.add(number);
    expect(addresses.find(bytes, 0)).toBe(number);
  }
  expect(numbers.has(kept)).toBe(false);
  expect([addresses.parse('2001:db8::7'), addresses.format(kept)]).toEqual([kept, '2001:db8::7']);
  expect([addresses.parse('fd00:a:0:2::2'), addresses.parse('fd00:a:0:2::3')]).toEqual([IPV6_FIRST, IPV6_FIRST + 1]);
  expect(Math.max(...numbers)).toBeLessThan(IPV6_FIRST + 8192);
});
