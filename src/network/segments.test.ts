import { expect, test } from 'vitest';
import { sumBytes } from './checksum.ts';
import { CHECKSUM_COMPLETE, CHECKSUM_PARTIAL, Frame, GSO_TCPV4, GSO_TCPV6 } from './frame.ts';
import { countSegments, softenFrame } from './segments.ts';
import { tcpFrame, udpFrame } from './testing.ts';

const payload = Uint8Array.from({ length: 4000 }, (_, i) => (i * 13) & 0xff);

function soften(frame: Frame): Uint8Array[] {
  const out: Uint8Array[] = [];
  softenFrame(frame, new Frame(), (f) => {
    expect(f.checksum).toBe(CHECKSUM_COMPLETE);
    out.push(f.head.slice(0, f.headLength));
  });
  return out;
}

/** True: the TCP or UDP checksum is right. */
function isGood(b: Uint8Array, protocol: number): boolean {
  const pseudo = sumBytes(b, 26, 8) + protocol + b.length - 34;
  return (sumBytes(b, 34, b.length - 34) + pseudo) % 0xffff === 0;
}

test('a GSO frame becomes segments with running sequence numbers, FIN and PSH on the last, and all checksums', () => {
  const bytes = tcpFrame({ payload, sequence: 0xfffffff0, flags: 0x19, options: [1, 1, 1, 0] });
  const frame = new Frame().set(bytes.slice(0, 58), 58).setTail(bytes, 58, 4000);
  frame.checksum = CHECKSUM_PARTIAL;
  frame.gsoType = GSO_TCPV4;
  frame.gsoSize = 1448;
  expect(countSegments(frame)).toBe(3);
  const out = soften(frame);
  expect(out.map((b) => b.length - 58)).toEqual([1448, 1448, 1104]);
  expect(out.map((b) => new DataView(b.buffer).getUint32(38))).toEqual([0xfffffff0, 1432, 2880]);
  expect(out.map((b) => b[47])).toEqual([0x10, 0x10, 0x19]);
  expect(out.map((b) => new DataView(b.buffer).getUint16(18))).toEqual([0, 1, 2]);
  for (const b of out) {
    expect(sumBytes(b, 14, 20)).toBe(0xffff);
    expect(isGood(b, 6)).toBe(true);
  }
  expect(Buffer.concat(out.map((b) => b.subarray(58)))).toEqual(Buffer.from(payload));
});

test('IPv6 segments get their lengths and checksums', () => {
  const tcp = tcpFrame({ payload }).slice(34);
  const bytes = new Uint8Array(54 + tcp.length);
  bytes[12] = 0x86;
  bytes[13] = 0xdd;
  bytes[14] = 0x60;
  new DataView(bytes.buffer).setUint16(18, tcp.length);
  bytes[20] = 6;
  for (let i = 0; i < 32; i++) bytes[22 + i] = i * 5;
  bytes.set(tcp, 54);
  const frame = new Frame().set(bytes, bytes.length);
  frame.checksum = CHECKSUM_PARTIAL;
  frame.gsoType = GSO_TCPV6;
  frame.gsoSize = 1440;
  const out = soften(frame);
  expect(out.map((b) => new DataView(b.buffer).getUint16(18))).toEqual([1460, 1460, 1140]);
  for (const b of out) {
    const pseudo = sumBytes(b, 22, 32) + 6 + b.length - 54;
    expect((sumBytes(b, 54, b.length - 54) + pseudo) % 0xffff).toBe(0);
  }
});

test('a partial UDP checksum is completed, and never 0', () => {
  const bytes = udpFrame(1000, 53, payload.slice(0, 301));
  const frame = new Frame().set(bytes, bytes.length);
  frame.checksum = CHECKSUM_PARTIAL;
  const [out] = soften(frame);
  expect(isGood(out, 17)).toBe(true);
  expect(out[40] | out[41]).not.toBe(0);
});

test.each([
  ['a length beyond the frame', (b: Uint8Array) => (b[16] = 0xff)],
  ['a header length beyond the packet', (b: Uint8Array) => (b[46] = 0xf0)],
  ['a header length below 20', (b: Uint8Array) => (b[46] = 0x10)],
  ['another protocol', (b: Uint8Array) => (b[23] = 47)],
  ['a fragment', (b: Uint8Array) => (b[20] = 0x20)],
  ['an IP header length below 20', (b: Uint8Array) => (b[14] = 0x44)],
])('what is not what it claims to be goes on as it is: %s', (_name, spoil) => {
  const bytes = tcpFrame({ payload: payload.slice(0, 20) });
  spoil(bytes);
  const frame = new Frame().set(bytes, bytes.length);
  frame.checksum = CHECKSUM_PARTIAL;
  frame.gsoType = GSO_TCPV4;
  frame.gsoSize = 8;
  expect(countSegments(frame)).toBe(1);
  expect(soften(frame)).toEqual([bytes]);
});
