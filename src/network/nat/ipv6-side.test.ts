import { describe, expect, test } from 'vitest';
import { pseudoSum6, sumBytes } from '../checksum.ts';
import { CHECKSUM_COMPLETE, CHECKSUM_PARTIAL, GSO_TCPV6 } from '../frame.ts';
import { GATEWAY_MAC, GUEST_MAC } from '../testing.ts';
import { formatIpv6, parseIpv6 } from './ipv6.ts';
import { type GotFrame, makeNat } from './testing.ts';

const GATEWAY = 'fd00:a:0:2::2';
const DNS = 'fd00:a:0:2::3';
const GUEST = 'fd00:a:0:2:216:3eff:fe01:203';
const LINK_LOCAL = 'fe80::216:3eff:fe01:203';
const OUTSIDE = '2001:db8::7';
const [TCP, UDP, ICMP, FRAGMENT] = [6, 17, 58, 44];
const [SYN, RST, ACK] = [2, 4, 16];

interface Ends {
  readonly source?: string;
  readonly destination?: string;
  readonly hopLimit?: number;
}

const address = (text: string): Uint8Array => {
  const bytes = parseIpv6(text);
  if (bytes === null) throw new Error(text);
  return bytes;
};

function packet(nextHeader: number, payload: ArrayLike<number>, ends: Ends = {}): Uint8Array {
  const { source = GUEST, destination = GATEWAY, hopLimit = 64 } = ends;
  const to = address(destination);
  const bytes = new Uint8Array(54 + payload.length);
  bytes.set(to[0] === 0xff ? [0x33, 0x33, ...to.slice(12)] : GATEWAY_MAC);
  bytes.set(GUEST_MAC, 6);
  bytes.set([0x86, 0xdd, 0x60, 0, 0, 0, payload.length >> 8, payload.length & 255, nextHeader, hopLimit], 12);
  bytes.set(address(source), 22);
  bytes.set(to, 38);
  bytes.set(payload, 54);
  return bytes;
}

const udp = (port: number, text: string): number[] => [
  0x9c,
  0x40,
  port >> 8,
  port & 255,
  0,
  8 + text.length,
  0,
  0,
  ...Buffer.from(text),
];
const tcp = (port: number, flags: number): number[] => [
  ...[0x9c, 0x40, port >> 8, port & 255, 0, 0, 0, 9, 0, 0, 0, 77, 0x60, flags, 0x40, 0, 0, 0, 0, 0],
  ...[2, 4, 0xff, 0xff],
];

/** What came: its ends, and what is in it. Checks lengths and sums as far as they are there. */
function read({ bytes, checksum }: GotFrame) {
  const view = new DataView(bytes.buffer);
  expect(view.getUint32(12)).toBe(0x86dd6000);
  expect(view.getUint16(18)).toBe(bytes.length - 54);
  const next = bytes[20];
  const at = { [TCP]: 16, [UDP]: 6, [ICMP]: 2 }[next];
  const pseudo = pseudoSum6(bytes, 14, next, bytes.length - 54);
  if (at !== undefined && checksum === CHECKSUM_PARTIAL) expect(view.getUint16(54 + at)).toBe(pseudo);
  if (at !== undefined && checksum === CHECKSUM_COMPLETE)
    expect((pseudo + sumBytes(bytes, 54, bytes.length - 54)) % 0xffff).toBe(0);
  const [source, destination] = [formatIpv6(bytes, 22), formatIpv6(bytes, 38)];
  return { source, destination, next, hopLimit: bytes[21], to: [...bytes.slice(0, 6)], payload: bytes.slice(54) };
}

/** Type and code of an ICMPv6 error, and of what its packet was. */
function error(frame: GotFrame): { source: string; type: number; code: number; value: number; of: string } {
  const { source, next, payload } = read(frame);
  expect(next).toBe(ICMP);
  return {
    ...{ source, type: payload[0], code: payload[1] },
    value: new DataView(payload.buffer).getUint32(4),
    of: formatIpv6(payload, 8 + 24),
  };
}

describe('neighbour discovery', () => {
  test('who asks for a router is told the network, name server and search domain', () => {
    const { send } = makeNat();
    const ask = packet(ICMP, [133, 0, 0, 0, 0, 0, 0, 0], { source: LINK_LOCAL, destination: 'ff02::2', hopLimit: 255 });
    const [frame, ...more] = send(ask);
    expect(more).toEqual([]);
    const { source, destination, hopLimit, to, payload } = read(frame);
    expect([source, destination, hopLimit]).toEqual(['fe80::2', 'ff02::1', 255]);
    expect(to).toEqual([0x33, 0x33, 0, 0, 0, 1]);
    expect([...payload.slice(0, 8)].filter((_, i) => i !== 2 && i !== 3)).toEqual([
      134,
      0,
      64,
      0,
      9000 >> 8,
      9000 & 255,
    ]);
    const options = new Map<number, Uint8Array>();
    for (let at = 16; at < payload.length; at += payload[at + 1] * 8)
      options.set(payload[at], payload.slice(at, at + payload[at + 1] * 8));
    expect([...options.keys()]).toEqual([1, 5, 3, 25, 31]);
    expect([...(options.get(1) ?? [])]).toEqual([1, 1, ...GATEWAY_MAC]);
    expect(options.get(3)?.[2]).toBe(64);
    expect(options.get(3)?.[3]).toBe(0xc0);
    expect(formatIpv6(options.get(3) ?? new Uint8Array(32), 16)).toBe('fd00:a:0:2::');
    expect(formatIpv6(options.get(25) ?? new Uint8Array(24), 8)).toBe(DNS);
    expect(String.fromCharCode(...(options.get(31) ?? [])).slice(8)).toMatch(/^\x07example\x03org\0+$/);
  });

  test('a guest that has said something is told again, before its router is none any more', () => {
    const { send, host, cable } = makeNat();
    host.advance(700_000);
    expect(cable.got).toEqual([]);
    send(packet(ICMP, [128, 0, 0, 0, 0, 1, 0, 1]));
    host.advance(1_300_000);
    expect(cable.got.map((frame) => read(frame).payload[0])).toEqual([134, 134, 134]);
  });

  const solicit = (target: string, ends: Ends = {}): Uint8Array =>
    packet(ICMP, [135, 0, 0, 0, 0, 0, 0, 0, ...address(target), 1, 1, ...GUEST_MAC], {
      ...{ source: LINK_LOCAL, destination: `ff02::1:ff00:${target.slice(-1)}`, hopLimit: 255 },
      ...ends,
    });

  test('gateway and name server answer for themselves, and for nobody else', () => {
    const { send } = makeNat();
    for (const [target, flags] of [
      [GATEWAY, 0xe0],
      ['fe80::2', 0xe0],
      [DNS, 0x60],
    ] as const) {
      const [frame] = send(solicit(target));
      const { source, destination, hopLimit, to, payload } = read(frame);
      expect([source, destination, hopLimit]).toEqual([target, LINK_LOCAL, 255]);
      expect(to).toEqual([...GUEST_MAC]);
      expect([payload[0], payload[4]]).toEqual([136, flags]);
      expect(formatIpv6(payload, 8)).toBe(target);
      expect([...payload.slice(24)]).toEqual([2, 1, ...GATEWAY_MAC]);
    }
    expect(send(solicit(GUEST), solicit('fd00:a:0:2::4'), solicit(GATEWAY, { hopLimit: 254 }))).toEqual([]);
    expect(send(packet(ICMP, [135, 0, 0, 0, 0, 0, 0, 0], { hopLimit: 255 }))).toEqual([]);
  });

  test('who wants an address of ours for itself is told by a message to all', () => {
    const { send } = makeNat();
    const { destination, to, payload } = read(send(solicit(GATEWAY, { source: '::' }))[0]);
    expect([destination, to]).toEqual(['ff02::1', [0x33, 0x33, 0, 0, 0, 1]]);
    expect(payload[4] & 0x40).toBe(0);
  });
});

describe('ICMPv6', () => {
  const echo = [128, 0, 0, 0, 0x12, 0x34, 0, 1, 9, 8, 7];

  test('gateway and name server answer echo requests, of the link too', () => {
    const { send } = makeNat();
    for (const ends of [{}, { destination: DNS }, { source: LINK_LOCAL, destination: 'fe80::2' }]) {
      const { source, destination, payload } = read(send(packet(ICMP, echo, ends))[0]);
      expect([source, destination]).toEqual([ends.destination ?? GATEWAY, ends.source ?? GUEST]);
      expect([...payload.slice(0, 2), ...payload.slice(4)]).toEqual([129, 0, ...echo.slice(4)]);
    }
  });

  test('says what goes nowhere', () => {
    const { send } = makeNat({ loopback: false });
    const told = (frame: Uint8Array) => error(send(frame)[0]);
    const from = { source: GATEWAY, value: 0 };
    expect(told(packet(ICMP, echo, { destination: OUTSIDE }))).toEqual({ ...from, type: 1, code: 1, of: OUTSIDE });
    expect(told(packet(UDP, udp(9, ''), { destination: OUTSIDE, hopLimit: 1 }))).toMatchObject({ type: 3, code: 0 });
    expect(told(packet(UDP, udp(54, ''), { destination: DNS }))).toMatchObject({ type: 1, code: 4 });
    expect(told(packet(UDP, udp(9, '')))).toMatchObject({ type: 1, code: 4, of: GATEWAY });
    // The next header that nobody knows, in the packet itself or in an extension.
    expect(told(packet(132, [0, 0, 0, 0], { destination: OUTSIDE }))).toMatchObject({ type: 4, code: 1, value: 6 });
    const extended = packet(60, [132, 0, 0, 0, 0, 0, 0, 0, 1, 2], { destination: OUTSIDE });
    expect(told(extended)).toMatchObject({ type: 4, code: 1, value: 40 });
    for (const destination of ['::1', '::ffff:7f00:1', '::7f00:1', 'fe80::9', 'fd00:a:0:2::9'])
      expect(told(packet(TCP, tcp(80, SYN), { destination })), destination).toMatchObject({ type: 1, code: 3 });
  });

  test('says nothing of what went to a group, came from elsewhere, or from nobody, and no more than a hundred a second', () => {
    const { send } = makeNat();
    expect(send(packet(UDP, udp(5353, 'x'), { destination: 'ff02::fb' }))).toEqual([]);
    expect(send(packet(UDP, udp(9, 'x'), { source: OUTSIDE }), packet(UDP, udp(9, 'x'), { source: GATEWAY }))).toEqual(
      [],
    );
    expect(send(packet(UDP, udp(9, 'x'), { source: '::' }), packet(ICMP, echo, { source: '::' }))).toEqual([]);
    expect(send(packet(ICMP, [1, 0, 0, 0, 0, 0, 0, 0]), packet(59, []))).toEqual([]);
    const flood = Array.from({ length: 300 }, () => packet(ICMP, echo, { destination: OUTSIDE }));
    expect(send(...flood)).toHaveLength(100);
  });
});

describe('TCP', () => {
  test('the gateway is the loopback of the host, and a connection carries bytes', () => {
    const { send, host, cable } = makeNat();
    expect(send(packet(TCP, tcp(80, SYN)))).toEqual([]);
    const [stream] = host.streams;
    expect([stream.address, stream.port]).toEqual(['::1', 80]);
    stream.events?.connected();
    const opened = read(cable.got.splice(0)[0]);
    expect([opened.source, opened.destination, opened.payload[13]]).toEqual([GATEWAY, GUEST, SYN | ACK]);
    // The largest segment of its own; the guest's is cut down to what the Ethernet carries.
    expect([...opened.payload.slice(20, 24)]).toEqual([2, 4, 1440 >> 8, 1440 & 255]);
    const iss = new DataView(opened.payload.buffer).getUint32(4);
    const acknowledge = tcp(80, ACK);
    acknowledge.splice(4, 8, 0, 0, 0, 10, ...[24, 16, 8, 0].map((shift) => ((iss + 1) >>> shift) & 255));
    send(packet(TCP, [...acknowledge, 1, 2, 3]));
    expect([...stream.receivedBytes]).toEqual([1, 2, 3]);
    cable.got.splice(0);
    stream.say(new Uint8Array(10_000).fill(7));
    const [data] = cable.got;
    expect([data.gsoType, data.gsoSize, data.bytes.length]).toEqual([GSO_TCPV6, 1440, 54 + 20 + 10_000]);
    expect(read(data).payload[2]).toBe(0x9c);
  });

  test('others are asked for by their address; the name server only for names; the gateway may be shut', () => {
    const { send, host } = makeNat();
    send(packet(TCP, tcp(443, SYN), { destination: OUTSIDE }), packet(TCP, tcp(53, SYN), { destination: DNS }));
    expect(host.streams.map(({ address }) => address)).toEqual([OUTSIDE, '192.0.2.53']);
    host.streams[0].fail('unreachable');
    expect(error(send(packet(TCP, tcp(80, SYN), { destination: DNS }))[0])).toMatchObject({ of: OUTSIDE, code: 3 });
    const shut = makeNat({ loopback: false });
    const refused = read(shut.send(packet(TCP, tcp(80, SYN)))[0]);
    expect([refused.source, refused.payload[13]]).toEqual([GATEWAY, RST | ACK]);
    expect(shut.host.streams).toEqual([]);
  });

  test('two connections that differ in their families only are two', () => {
    const { send, host, nat } = makeNat();
    send(packet(TCP, tcp(80, SYN)), packet(TCP, tcp(80, SYN), { source: 'fd00:a:0:2::77' }), packet(TCP, tcp(80, SYN)));
    expect([nat.flows.tcp, host.streams.length]).toEqual([2, 2]);
  });
});

describe('UDP', () => {
  test('answers come from whom the guest wrote to, the loopback as the gateway', () => {
    const { send, host, cable } = makeNat();
    send(packet(UDP, udp(7, 'hello'), { destination: OUTSIDE }), packet(UDP, udp(7, 'you')));
    const [socket, ...more] = host.datagrams;
    expect(more).toEqual([]);
    expect(socket.sent.map(({ bytes, address, port }) => [Buffer.from(bytes).toString(), address, port])).toEqual([
      ['hello', OUTSIDE, 7],
      ['you', '::1', 7],
    ]);
    for (const from of [OUTSIDE, '::1', '2001:db8::8', '::ffff:192.0.2.1', 'fe80::1%eth0'])
      socket.receive(Buffer.from('re'), from, 7);
    const answers = cable.got.splice(0).map(read);
    expect(answers.map(({ source }) => source)).toEqual([OUTSIDE, GATEWAY, '2001:db8::8']);
    expect([...answers[0].payload.slice(0, 6), ...answers[0].payload.slice(8)]).toEqual([
      ...[0, 7, 0x9c, 0x40, 0, 10],
      ...Buffer.from('re'),
    ]);
  });

  test('names are asked for at the name server of the host', () => {
    const { send, host, cable } = makeNat();
    send(packet(UDP, udp(53, 'idflagsqueries'), { destination: DNS }));
    expect(host.datagrams[0].sent[0]).toMatchObject({ address: '192.0.2.53', port: 53 });
    host.datagrams[0].receive(Buffer.from('idanswers and more'), '192.0.2.53', 53);
    const { source, destination, payload } = read(cable.got[0]);
    expect([source, destination, Buffer.from(payload.slice(8)).toString()]).toEqual([DNS, GUEST, 'idanswers and more']);
  });

  const piece = (next: number, offset: number, more: boolean, id: number, bytes: ArrayLike<number>): number[] => [
    ...[next, 0, (offset >> 8) & 255, (offset & 255) | (more ? 1 : 0), 0, 0, 0, id],
    ...Array.from(bytes),
  ];

  test('fragments are put together, in any order, and overlaps are none', () => {
    const { send, host } = makeNat();
    const whole = udp(7, 'x'.repeat(40));
    const [a, b] = [whole.slice(0, 24), whole.slice(24)];
    send(packet(FRAGMENT, piece(UDP, 24, false, 1, b)), packet(FRAGMENT, piece(UDP, 0, true, 1, a)));
    send(packet(FRAGMENT, piece(UDP, 0, true, 2, a)), packet(FRAGMENT, piece(UDP, 16, false, 2, b)));
    // One piece that says that it is one; a fragment in a fragment.
    send(packet(FRAGMENT, piece(UDP, 0, false, 3, udp(7, 'one'))));
    send(packet(FRAGMENT, piece(FRAGMENT, 0, false, 4, piece(UDP, 0, false, 4, udp(7, 'two')))));
    expect(host.datagrams[0].sent.map(({ bytes }) => Buffer.from(bytes).toString())).toEqual(['x'.repeat(40), 'one']);
  });

  test('a large datagram reaches the guest in fragments', () => {
    const { send, host, cable } = makeNat();
    send(packet(UDP, udp(7, 'q')));
    const sent = Uint8Array.from({ length: 4000 }, (_, i) => i * 7);
    host.datagrams[0].receive(sent, '::1', 7);
    const frames = cable.got.splice(0);
    const datagram = new Uint8Array(4008);
    for (const [i, frame] of frames.entries()) {
      const { next, payload } = read(frame);
      expect([next, payload[0], frame.bytes.length <= 1514]).toEqual([FRAGMENT, UDP, true]);
      const field = (payload[2] << 8) | payload[3];
      expect(field & 1).toBe(i < frames.length - 1 ? 1 : 0);
      datagram.set(payload.slice(8), field & 0xfff8);
    }
    expect([...datagram.slice(8)]).toEqual([...sent]);
    const ends = frames[0].bytes.slice(22, 54);
    const sum = sumBytes(ends, 0, 32) + UDP + 4008 + sumBytes(datagram, 0, 4008);
    expect(sum % 0xffff).toBe(0);
  });
});

describe('hostile frames', () => {
  test('options and extension headers are passed over; those that do not end, or too many, are thrown away', () => {
    const { send, host } = makeNat();
    const options = (next: number): number[] => [next, 0, 1, 4, 0, 0, 0, 0];
    const nested = (count: number): Uint8Array =>
      packet(60, [
        ...Array.from({ length: count }, (_, i) => options(i === count - 1 ? UDP : 60)).flat(),
        ...udp(7, 'x'),
      ]);
    send(nested(1), nested(8));
    expect(host.datagrams[0].sent).toHaveLength(2);
    send(nested(9), packet(60, [UDP, 255, 0, 0, 0, 0, 0, 0]), packet(0, [UDP]));
    expect(host.datagrams[0].sent).toHaveLength(2);
  });

  test('cut, long and random ones do no harm', () => {
    const { send, host, nat } = makeNat();
    const seeds = [
      packet(UDP, udp(7, 'hello')),
      packet(TCP, tcp(80, SYN)),
      packet(FRAGMENT, [UDP, 0, 0, 1, 0, 0, 0, 1, ...udp(7, 'xxxxxxxx')]),
      packet(ICMP, [135, 0, 0, 0, 0, 0, 0, 0, ...address(GATEWAY)], { hopLimit: 255 }),
      packet(60, [FRAGMENT, 0, 0, 0, 0, 0, 0, 0, UDP, 0, 0, 8, 0, 0, 0, 1, ...udp(7, '')]),
    ];
    for (let round = 0; round < 20_000; round++) {
      const frame = seeds[round % seeds.length].slice(
        0,
        Math.random() < 0.2 ? 14 + Math.floor(Math.random() * 60) : undefined,
      );
      for (let n = Math.floor(Math.random() * 4); n > 0; n--)
        frame[12 + Math.floor(Math.random() * (frame.length - 12))] = Math.random() * 256;
      send(frame);
    }
    expect(host.streams.some(({ address }) => /^(::|fe80|ff)/.test(address) && address !== '::1')).toBe(false);
    expect(nat.flows.udp).toBeLessThanOrEqual(512);
    expect(nat.flows.tcp).toBeLessThanOrEqual(1024);
  });

  test('a guest that writes to any number of addresses, from any number, goes on', () => {
    const { send, host, nat } = makeNat();
    for (let n = 0; n < 30_000; n++) {
      const hex = n.toString(16);
      send(packet(UDP, udp(7, 'x'), { source: `fd00:a:0:2::1:${hex}`, destination: `2001:db8:${hex}::1` }));
    }
    expect(nat.flows.udp).toBe(512);
    const asked = host.datagrams.map(({ sent }) => sent[0].address);
    expect(asked).toEqual(
      Array.from({ length: 30_000 }, (_, n) => `2001:db8:${n === 0 ? ':' : `${n.toString(16)}::`}1`),
    );
  });
});
