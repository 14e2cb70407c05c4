import { describe, expect, test } from 'vitest';
import { sumBytes } from '../checksum.ts';
import { CHECKSUM_PARTIAL, Frame } from '../frame.ts';
import { GATEWAY_MAC, GUEST_MAC, ipv4Frame, tcpFrame, udpFrame } from '../testing.ts';
import { parseForward } from './forwards.ts';
import { formatIpv4, parseIpv4 } from './ipv4.ts';
import { natAddresses } from './nat.ts';
import { type GotFrame, GUEST_IP, makeNat } from './testing.ts';

const GATEWAY = 0x0a000202;
const DNS = 0x0a000203;
const OUTSIDE = parseIpv4('198.51.100.7');
const bytesOf = (length: number): Uint8Array => Uint8Array.from({ length }, (_, i) => (i * 11 + 5) & 255);
const view = (frame: GotFrame): DataView => new DataView(frame.bytes.buffer);
const sourceOf = (frame: GotFrame): number => view(frame).getUint32(26);

/** The UDP payload of a whole packet; checks what surrounds it. */
function udpPayload(frame: GotFrame): Uint8Array {
  expect(sumBytes(frame.bytes, 14, 20)).toBe(0xffff);
  expect(frame.bytes[23]).toBe(17);
  expect(view(frame).getUint16(38)).toBe(frame.bytes.length - 34);
  return frame.bytes.slice(42);
}

function arp(target: number): Uint8Array {
  const bytes = new Uint8Array(42);
  const v = new DataView(bytes.buffer);
  bytes.fill(0xff, 0, 6);
  bytes.set(GUEST_MAC, 6);
  v.setUint16(12, 0x0806);
  v.setUint16(14, 1);
  v.setUint16(16, 0x0800);
  bytes[18] = 6;
  bytes[19] = 4;
  v.setUint16(20, 1);
  bytes.set(GUEST_MAC, 22);
  v.setUint32(28, GUEST_IP);
  v.setUint32(38, target);
  return bytes;
}

describe('ARP', () => {
  test.each([GATEWAY, DNS])('answers for gateway and name server', (target) => {
    const { send } = makeNat();
    const [reply] = send(arp(target));
    expect(reply.bytes.slice(0, 6)).toEqual(GUEST_MAC);
    expect(view(reply).getUint16(20)).toBe(2);
    expect(reply.bytes.slice(22, 28)).toEqual(GATEWAY_MAC);
    expect(view(reply).getUint32(28)).toBe(target);
    expect(view(reply).getUint32(38)).toBe(GUEST_IP);
  });

  test('answers for nobody else, and not to what is too short', () => {
    const { send } = makeNat();
    expect(send(arp(GUEST_IP), arp(OUTSIDE), arp(GATEWAY).slice(0, 41))).toEqual([]);
  });
});

describe('DHCP', () => {
  const message = (type: number, options: number[] = [], change: (b: Uint8Array) => void = () => {}): Uint8Array => {
    const b = new Uint8Array(300);
    b.set([1, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef]);
    b.set(GUEST_MAC, 28);
    b.set([0x63, 0x82, 0x53, 0x63, 53, 1, type, ...options, 255], 236);
    change(b);
    const frame = udpFrame(68, 67, b, 0, 0xffffffff);
    frame.fill(0xff, 0, 6);
    return frame;
  };
  const options = (payload: Uint8Array): Map<number, number[]> => {
    const found = new Map<number, number[]>();
    for (let at = 240; payload[at] !== 255; at += 2 + payload[at + 1])
      found.set(payload[at], [...payload.slice(at + 2, at + 2 + payload[at + 1])]);
    return found;
  };

  test('offers the guest’s address, router, name server and search domain, and acknowledges', () => {
    const { send } = makeNat();
    for (const [type, answer] of [
      [1, 2],
      [3, 5],
    ]) {
      const [reply] = send(message(type, type === 3 ? [50, 4, 10, 0, 2, 15] : []));
      const payload = udpPayload(reply);
      expect([...payload.slice(4, 8)]).toEqual([0xde, 0xad, 0xbe, 0xef]);
      expect([...payload.slice(16, 20)]).toEqual([10, 0, 2, 15]);
      const o = options(payload);
      expect(o.get(53)).toEqual([answer]);
      expect(o.get(1)).toEqual([255, 255, 255, 0]);
      expect(o.get(3)).toEqual([10, 0, 2, 2]);
      expect(o.get(6)).toEqual([10, 0, 2, 3]);
      expect(o.get(54)).toEqual([10, 0, 2, 2]);
      expect(String.fromCharCode(...(o.get(119) ?? []))).toBe('\x07example\x03org\0');
    }
  });

  test('refuses another address by a broadcast', () => {
    const { send } = makeNat();
    const [reply] = send(message(3, [50, 4, 192, 168, 1, 1]));
    expect(options(udpPayload(reply)).get(53)).toEqual([6]);
    expect([...reply.bytes.slice(0, 6)]).toEqual([255, 255, 255, 255, 255, 255]);
    expect(view(reply).getUint32(30)).toBe(0xffffffff);
  });

  test('keeps silent when another server is meant, and to releases', () => {
    const { send } = makeNat();
    expect(send(message(3, [54, 4, 1, 2, 3, 4]), message(7), message(4))).toEqual([]);
  });

  test('options that reach beyond the message are none', () => {
    const { send } = makeNat();
    const cut = message(1, [], (b) => b.set([12, 200], 297));
    expect(send(cut)).toHaveLength(1);
    expect(send(message(1, [], (b) => b.set([53, 9], 240)))).toEqual([]);
    expect(send(message(1).slice(0, 14 + 20 + 8 + 100))).toEqual([]);
  });
});

describe('ICMP', () => {
  const echo = (to: number, data: Uint8Array, ttl = 64): Uint8Array => {
    const icmp = Uint8Array.of(8, 0, 0, 0, 0x12, 0x34, 0, 7, ...data);
    const sum = sumBytes(icmp, 0, icmp.length) ^ 0xffff;
    icmp[2] = sum >> 8;
    icmp[3] = sum;
    const frame = ipv4Frame(1, icmp, GUEST_IP, to);
    if (ttl !== 64) {
      frame[22] = ttl;
      const header = sumBytes(frame, 14, 20) - new DataView(frame.buffer).getUint16(24);
      const fixed = (((header % 0xffff) + 0xffff) % 0xffff) ^ 0xffff;
      frame[24] = fixed >> 8;
      frame[25] = fixed;
    }
    return frame;
  };

  test('the gateway answers for itself', () => {
    const { send } = makeNat();
    const [reply] = send(echo(GATEWAY, bytesOf(56)));
    expect(sourceOf(reply)).toBe(GATEWAY);
    expect([...reply.bytes.slice(34, 36)]).toEqual([0, 0]);
    expect(reply.bytes.slice(38)).toEqual(Uint8Array.of(0x12, 0x34, 0, 7, ...bytesOf(56)));
    expect(sumBytes(reply.bytes, 34, reply.bytes.length - 34)).toBe(0xffff);
  });

  test('without ping sockets an outside host is administratively prohibited', () => {
    const { send } = makeNat();
    const [reply] = send(echo(OUTSIDE, bytesOf(8)));
    expect([...reply.bytes.slice(34, 36)]).toEqual([3, 13]);
    expect(new DataView(reply.bytes.buffer).getUint32(42 + 16)).toBe(OUTSIDE);
  });

  test('with them the answer comes from that host', () => {
    const { host, cable, send } = makeNat();
    let answer: (bytes: Uint8Array) => void = () => {};
    host.ping = (address, bytes, done) => {
      expect(address).toBe('198.51.100.7');
      expect(bytes).toEqual(bytesOf(9));
      answer = done;
    };
    expect(send(echo(OUTSIDE, bytesOf(9)))).toEqual([]);
    answer(bytesOf(9));
    answer(bytesOf(9));
    const [reply] = cable.got;
    expect(cable.got).toHaveLength(1);
    expect(sourceOf(reply)).toBe(OUTSIDE);
    expect(reply.bytes.slice(38)).toEqual(Uint8Array.of(0x12, 0x34, 0, 7, ...bytesOf(9)));
  });

  test('a packet at the end of its life is told so, and errors are limited', () => {
    const { send } = makeNat();
    const [reply] = send(echo(OUTSIDE, bytesOf(8), 1));
    expect([...reply.bytes.slice(34, 36)]).toEqual([11, 0]);
    const replies = send(...Array.from({ length: 1000 }, () => ipv4Frame(47, bytesOf(20), GUEST_IP, OUTSIDE)));
    expect(replies.length).toBeLessThanOrEqual(100);
    expect([...replies[0].bytes.slice(34, 36)]).toEqual([3, 2]);
  });
});

describe('UDP', () => {
  test('goes out by a socket for each of the guest’s ports, and answers come from where they are from', () => {
    const { host, cable, send } = makeNat();
    send(udpFrame(5000, 123, bytesOf(48), GUEST_IP, OUTSIDE), udpFrame(5000, 124, bytesOf(3), GUEST_IP, OUTSIDE));
    expect(host.datagrams).toHaveLength(1);
    const [socket] = host.datagrams;
    expect(socket.sent).toEqual([
      { bytes: bytesOf(48), address: '198.51.100.7', port: 123 },
      { bytes: bytesOf(3), address: '198.51.100.7', port: 124 },
    ]);
    socket.receive(bytesOf(100), '203.0.113.9', 999);
    const [reply] = cable.got;
    expect(formatIpv4(sourceOf(reply))).toBe('203.0.113.9');
    expect([view(reply).getUint16(34), view(reply).getUint16(36)]).toEqual([999, 5000]);
    expect(udpPayload(reply)).toEqual(bytesOf(100));
    expect(reply.checksum).toBe(CHECKSUM_PARTIAL);
  });

  test('the gateway is the host’s loopback, unless that is off', () => {
    const on = makeNat();
    on.send(udpFrame(5000, 9, bytesOf(1), GUEST_IP, GATEWAY));
    expect(on.host.datagrams[0].sent[0].address).toBe('127.0.0.1');
    on.host.datagrams[0].receive(bytesOf(1), '127.0.0.1', 9);
    expect(sourceOf(on.cable.got[0])).toBe(GATEWAY);
    const off = makeNat({ loopback: false });
    const [reply] = off.send(udpFrame(5000, 9, bytesOf(1), GUEST_IP, GATEWAY));
    expect([...reply.bytes.slice(34, 36)]).toEqual([3, 3]);
    expect(off.host.datagrams).toHaveLength(0);
  });

  test('large answers come in fragments that make up the datagram', () => {
    const { host, cable, send } = makeNat();
    send(udpFrame(5000, 9, bytesOf(1), GUEST_IP, OUTSIDE));
    host.datagrams[0].receive(bytesOf(5000), '198.51.100.7', 9);
    const whole = new Uint8Array(5008);
    let more = true;
    for (const { bytes } of cable.got) {
      const field = new DataView(bytes.buffer).getUint16(20);
      whole.set(bytes.subarray(34), (field & 0x1fff) * 8);
      more = (field & 0x2000) !== 0;
      expect(bytes.length).toBeLessThanOrEqual(1514);
    }
    expect(more).toBe(false);
    expect(whole.slice(8)).toEqual(bytesOf(5000));
    const pseudo = sumBytes(cable.got[0].bytes, 26, 8) + 17 + 5008;
    expect((sumBytes(whole, 0, 5008) + pseudo) % 0xffff).toBe(0);
  });

  /** A datagram to the outside in fragments of `size` bytes. */
  const fragments = (payload: Uint8Array, size: number): Uint8Array[] => {
    const datagram = udpFrame(5000, 9, payload, GUEST_IP, OUTSIDE).slice(34);
    const out: Uint8Array[] = [];
    for (let at = 0; at < datagram.length; at += size) {
      const field = (at >> 3) | (at + size < datagram.length ? 0x2000 : 0);
      out.push(ipv4Frame(17, datagram.slice(at, at + size), GUEST_IP, OUTSIDE, field, 77));
    }
    return out;
  };

  test('fragments are put together in any order', () => {
    const { host, send } = makeNat();
    send(...fragments(bytesOf(60_000), 1480).reverse());
    expect(host.datagrams[0].sent[0].bytes).toEqual(bytesOf(60_000));
  });

  test.each([
    ['a fragment twice', (f: Uint8Array[]) => [f[0], f[0], f[1], f[2]]],
    [
      'an overlap',
      (f: Uint8Array[]) => [f[0], ipv4Frame(17, bytesOf(16), GUEST_IP, OUTSIDE, 0x2000 | 1, 77), f[1], f[2]],
    ],
    ['an end before the end', (f: Uint8Array[]) => [ipv4Frame(17, bytesOf(8), GUEST_IP, OUTSIDE, 2, 77), ...f]],
    [
      'a length that is no multiple of 8',
      (f: Uint8Array[]) => [ipv4Frame(17, bytesOf(9), GUEST_IP, OUTSIDE, 0x2000, 77), ...f],
    ],
    ['more than a packet holds', () => [ipv4Frame(17, bytesOf(1000), GUEST_IP, OUTSIDE, 0x1fff, 77)]],
  ])('what overlaps or disagrees is thrown away: %s', (_name, spoil) => {
    const { host, send } = makeNat();
    expect(send(...spoil(fragments(bytesOf(3000), 1480)))).toEqual([]);
    expect(host.datagrams).toHaveLength(0);
    // Not for good: the next packet with this identification is another.
    host.now += 20_000;
    send(...fragments(bytesOf(3000), 1480));
    expect(host.datagrams[0].sent[0].bytes).toEqual(bytesOf(3000));
  });

  test('a flood of first fragments holds a bounded number of packets', () => {
    const { host, send } = makeNat();
    for (let id = 0; id < 5000; id++) send(ipv4Frame(17, bytesOf(1480), GUEST_IP, OUTSIDE, 0x2000, id & 0xffff));
    send(...fragments(bytesOf(3000), 1480));
    expect(host.datagrams[0].sent[0].bytes).toEqual(bytesOf(3000));
  });

  test('sockets go after a minute without use, and their number is bounded', () => {
    const { host, nat, send } = makeNat();
    for (let port = 1; port <= 2000; port++) send(udpFrame(port, 9, bytesOf(1), GUEST_IP, OUTSIDE));
    expect(nat.flows.udp).toBe(512);
    expect(host.datagrams.filter((d) => !d.closed)).toHaveLength(512);
    host.advance(75_000);
    expect(nat.flows.udp).toBe(0);
    expect(host.datagrams.every((d) => d.closed)).toBe(true);
    expect(host.timers).toHaveLength(0);
  });
});

describe('DNS', () => {
  const query = (id: number, port = 4000): Uint8Array =>
    udpFrame(port, 53, Uint8Array.of(id >> 8, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1), GUEST_IP, DNS);
  const answer = (id: number): Uint8Array => Uint8Array.of(id >> 8, id, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0, 9);

  test('a query goes to the host’s name server, and its answer comes from ours', () => {
    const { host, cable, send } = makeNat();
    send(query(0x1234));
    const [socket] = host.datagrams;
    expect(socket.sent[0]).toMatchObject({ address: '192.0.2.53', port: 53 });
    socket.receive(answer(0x1234), '192.0.2.53', 53);
    expect(sourceOf(cable.got[0])).toBe(DNS);
    expect(udpPayload(cable.got[0])).toEqual(answer(0x1234));
    expect(socket.closed).toBe(true);
  });

  test('answers from elsewhere, or to what nobody asked, are not believed', () => {
    const { host, cable, send } = makeNat();
    send(query(1));
    const [socket] = host.datagrams;
    socket.receive(answer(1), '192.0.2.54', 53);
    socket.receive(answer(1), '192.0.2.53', 54);
    socket.receive(answer(2), '192.0.2.53', 53);
    expect(cable.got).toEqual([]);
  });

  test('asked again, the next server is tried; the first may answer yet', () => {
    const { host, cable, send } = makeNat();
    host.servers = ['192.0.2.53', '192.0.2.54'];
    send(query(1), query(1));
    expect(host.datagrams.map((d) => d.sent[0].address)).toEqual(['192.0.2.53', '192.0.2.54']);
    host.datagrams[0].receive(answer(1), '192.0.2.53', 53);
    expect(cable.got).toHaveLength(1);
    expect(host.datagrams.every((d) => d.closed)).toBe(true);
  });

  test('a flood of queries holds a bounded number of sockets, and all time out', () => {
    const { host, send } = makeNat();
    for (let id = 0; id < 1000; id++) send(query(id));
    expect(host.datagrams.filter((d) => !d.closed)).toHaveLength(128);
    host.advance(11_000);
    expect(host.datagrams.every((d) => d.closed)).toBe(true);
    expect(host.timers).toHaveLength(0);
  });

  test('by TCP it is a connection to the host’s name server, and no other port is there', () => {
    const { host, send } = makeNat();
    send(tcpFrame({ payload: bytesOf(0), flags: 2, destination: DNS, destinationPort: 53 }));
    expect(host.streams[0]).toMatchObject({ address: '192.0.2.53', port: 53 });
    const [reply] = send(tcpFrame({ payload: bytesOf(0), flags: 2, destination: DNS, destinationPort: 80 }));
    expect([...reply.bytes.slice(34, 36)]).toEqual([3, 13]);
  });
});

describe('forwards', () => {
  test('are written as QEMU writes them', () => {
    expect(parseForward('tcp:127.0.0.1:8022-:22', GUEST_IP)).toEqual({
      protocol: 'tcp',
      address: '127.0.0.1',
      port: 8022,
      guestPort: 22,
    });
    expect(parseForward('udp::53-10.0.2.15:5353', GUEST_IP)).toMatchObject({ address: '127.0.0.1', guestPort: 5353 });
    expect(parseForward('tcp::80-10.0.2.16:80', GUEST_IP)).toContain("not the guest's address 10.0.2.15");
    expect(parseForward('tcp::0-:80', GUEST_IP)).toContain('not in 1..65535');
    expect(parseForward('tcp:nohost:1-:80', GUEST_IP)).toContain('not an IPv4 address');
    expect(parseForward('80', GUEST_IP)).toContain('expected tcp|udp');
  });

  test('a datagram from outside reaches the guest as one from the gateway, and the answer goes back', () => {
    const { host, cable, send } = makeNat({
      forwards: [{ protocol: 'udp', address: '127.0.0.1', port: 8053, guestPort: 53 }],
    });
    const [socket] = host.datagrams;
    expect(socket.bound).toMatchObject({ address: '127.0.0.1', port: 8053 });
    socket.receive(bytesOf(7), '127.0.0.1', 5555);
    socket.receive(bytesOf(8), '198.51.100.7', 5555);
    const [one, two] = cable.got.splice(0);
    expect([sourceOf(one), sourceOf(two)]).toEqual([GATEWAY, GATEWAY]);
    const aliases = [view(one).getUint16(34), view(two).getUint16(34)];
    send(udpFrame(53, aliases[1], bytesOf(2), GUEST_IP, GATEWAY));
    send(udpFrame(53, aliases[0], bytesOf(1), GUEST_IP, GATEWAY));
    expect(socket.sent).toEqual([
      { bytes: bytesOf(2), address: '198.51.100.7', port: 5555 },
      { bytes: bytesOf(1), address: '127.0.0.1', port: 5555 },
    ]);
  });
});

describe('hostile and strange frames', () => {
  test('addresses that are not the guest’s network’s are not answered, forbidden ones not called', () => {
    const { host, send } = makeNat();
    expect(send(udpFrame(1, 9, bytesOf(1), OUTSIDE, OUTSIDE), udpFrame(1, 9, bytesOf(1), GATEWAY, OUTSIDE))).toEqual(
      [],
    );
    for (const address of ['127.0.0.1', '0.1.2.3', '224.0.0.1', '255.255.255.255', '10.0.2.99'])
      send(udpFrame(1, 9, bytesOf(1), GUEST_IP, parseIpv4(address)));
    send(tcpFrame({ payload: bytesOf(0), flags: 2, destination: parseIpv4('127.0.0.1') }));
    expect(host.datagrams).toHaveLength(0);
    expect(host.streams).toHaveLength(0);
  });

  test('a frame for somebody else, or from a group address, is passed over', () => {
    const { send } = makeNat();
    const other = ipv4Frame(1, bytesOf(20));
    other[5] ^= 1;
    const group = ipv4Frame(1, bytesOf(20));
    group[6] |= 1;
    expect(send(other, group)).toEqual([]);
  });

  test('a guest in any of the layout’s places leaves room for the others', () => {
    for (const host of [1, 2, 3, 4, 15, 254]) {
      const a = natAddresses((0xc0a80700 + host) >>> 0);
      expect(new Set([a.gatewayIp, a.dnsIp, a.guestIp]).size).toBe(3);
    }
  });

  test('cut and random frames do no harm', () => {
    const { host, nat, send } = makeNat();
    let seed = 7;
    const random = (n: number): number => {
      seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff;
      return (seed >>> 8) % n;
    };
    const good = [
      arp(GATEWAY),
      udpFrame(5000, 9, bytesOf(100), GUEST_IP, OUTSIDE),
      udpFrame(68, 67, bytesOf(300), 0, 0xffffffff),
      tcpFrame({ payload: bytesOf(100), options: [2, 4, 5, 0xb4, 3, 3, 7, 0], flags: 2 }),
      ipv4Frame(1, Uint8Array.of(8, 0, 0, 0, ...bytesOf(60))),
      ipv4Frame(17, bytesOf(1480), GUEST_IP, OUTSIDE, 0x2000, 5),
    ];
    for (let i = 0; i < 30_000; i++) {
      const bytes = good[random(good.length)].slice(0, 14 + random(400));
      for (let n = random(6); n > 0; n--) bytes[random(bytes.length)] = random(256);
      // Most get past the header's checksum.
      if (bytes.length >= 34 && random(4) > 0) {
        bytes[24] = 0;
        bytes[25] = 0;
        const header = Math.min((bytes[14] & 15) * 4, bytes.length - 14);
        const sum = sumBytes(bytes, 14, header) ^ 0xffff;
        bytes[24] = sum >> 8;
        bytes[25] = sum;
      }
      send(bytes);
      if (i % 1000 === 0) {
        for (const stream of host.streams.splice(0)) stream.events?.connected();
        host.advance(1000);
      }
    }
    expect(nat.flows.tcp).toBeLessThanOrEqual(1024);
    expect(nat.flows.udp).toBeLessThanOrEqual(512);
    nat.close();
    expect(nat.flows).toEqual({ tcp: 0, udp: 0 });
    expect(host.timers).toHaveLength(0);
  });

  test('a frame in two pieces is read as one', () => {
    const { host, nat } = makeNat();
    const bytes = udpFrame(5000, 9, bytesOf(100), GUEST_IP, OUTSIDE);
    nat.send(new Frame().set(bytes.slice(0, 20), 20).setTail(bytes, 20, bytes.length - 20));
    expect(host.datagrams[0].sent[0].bytes).toEqual(bytesOf(100));
  });
});
