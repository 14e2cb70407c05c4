import { describe, expect, test } from 'vitest';
import { Frame } from '../frame.ts';
import { tcpFrame } from '../testing.ts';
import type { NatOptions } from './nat.ts';
import { ACK, FIN, Peer, type PeerOptions, parseSegment, RST, SYN } from './test-peer.ts';
import { FakeStream, type GotFrame, makeNat } from './testing.ts';

const bytesOf = (length: number): Uint8Array => Uint8Array.from({ length }, (_, i) => (i * 7 + (i >> 8) * 13) & 255);

/** Quicker than `toEqual`, which looks at each byte by name. */
function expectBytes(bytes: Uint8Array, count: number): void {
  expect(bytes.length).toBe(count);
  expect(Buffer.compare(bytes, bytesOf(count))).toBe(0);
}

function generator(seed: number): (n: number) => number {
  let state = seed;
  return (n) => {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
    return (state >>> 8) % n;
  };
}

interface Trouble {
  /** Of 100 frames each way. */
  readonly lost?: number;
  readonly twice?: number;
  readonly late?: number;
}

/** A guest and a NAT with a cable between them on which frames may be lost, come twice, or late. */
function setUp(trouble: Trouble = {}, seed = 1, peerOptions: PeerOptions = {}, natOptions: Partial<NatOptions> = {}) {
  const random = generator(seed);
  const rig = makeNat(natOptions);
  const { host, nat, cable } = rig;
  const toNat: Uint8Array[] = [];
  const toGuest: GotFrame[] = [];
  const queue = <T>(line: T[], frame: T): void => {
    if (random(100) < (trouble.lost ?? 0)) return;
    const copies = random(100) < (trouble.twice ?? 0) ? 2 : 1;
    for (let i = 0; i < copies; i++)
      if (random(100) < (trouble.late ?? 0)) line.splice(random(line.length + 1), 0, frame);
      else line.push(frame);
  };
  const peer = new Peer(
    (frame) => queue(toNat, frame),
    () => host.now,
    peerOptions,
  );
  /** Lets frames travel and time pass until nothing moves or `ms` are over. */
  const run = (ms: number, until: () => boolean = () => false): void => {
    const frame = new Frame();
    for (const end = host.now + ms; host.now < end && !until(); ) {
      for (let n = 0; n < 100 && (toNat.length > 0 || toGuest.length > 0 || cable.got.length > 0); n++) {
        for (const got of cable.got.splice(0)) queue(toGuest, got);
        for (const bytes of toNat.splice(0)) nat.send(frame.set(bytes, bytes.length));
        nat.flush();
        for (const got of toGuest.splice(0)) peer.take(got);
      }
      host.advance(10);
      peer.tick();
    }
  };
  const connect = (): FakeStream => {
    peer.open();
    run(2000, () => host.streams.length > 0);
    const [stream] = host.streams;
    stream.events?.connected();
    run(5000, () => peer.established);
    expect(peer.established).toBe(true);
    return stream;
  };
  return { ...rig, peer, run, connect };
}

describe('a connection', () => {
  test('is made when the host’s is, with MSS and window scale', () => {
    const { host, cable, send } = makeNat();
    const syn = tcpFrame({ payload: bytesOf(0), flags: SYN, sequence: 100, options: [2, 4, 5, 0xb4, 1, 3, 3, 7] });
    expect(send(syn)).toEqual([]);
    expect(host.streams[0]).toMatchObject({ address: '127.0.0.1', port: 80 });
    host.streams[0].events?.connected();
    const s = parseSegment(cable.got[0]);
    expect([s.flags, s.ack]).toEqual([SYN | ACK, 101]);
    expect([...s.options]).toEqual([2, 4, 0x05, 0xb4, 1, 3, 3, 5]);
  });

  test('without window scale in the SYN has none in the answer', () => {
    const { host, cable, send } = makeNat();
    send(tcpFrame({ payload: bytesOf(0), flags: SYN, options: [2, 4, 5, 0xb4] }));
    host.streams[0].events?.connected();
    expect([...parseSegment(cable.got[0]).options]).toEqual([2, 4, 0x05, 0xb4, 0, 0, 0, 0]);
  });

  test('that the host refuses is reset; one to an unreachable host is told by ICMP; a timeout is left to the guest', () => {
    const { host, cable, send, nat } = makeNat();
    for (const guestPort of [1000, 1001, 1002])
      send(tcpFrame({ payload: bytesOf(0), flags: SYN, sequence: 9, sourcePort: guestPort }));
    host.streams[0].fail('refused');
    const s = parseSegment(cable.got.splice(0)[0]);
    expect([s.flags, s.ack]).toEqual([RST | ACK, 10]);
    host.streams[1].fail('unreachable');
    expect([...cable.got.splice(0)[0].bytes.slice(34, 36)]).toEqual([3, 1]);
    host.streams[2].fail('timeout');
    expect(cable.got).toEqual([]);
    expect(nat.flows.tcp).toBe(0);
  });

  test('that nobody knows is reset, with the numbers of RFC 9293 (3.10.7.1)', () => {
    const { send } = makeNat();
    const one = parseSegment(send(tcpFrame({ payload: bytesOf(5), flags: ACK, sequence: 7, acknowledgement: 99 }))[0]);
    expect([one.flags, one.sequence]).toEqual([RST, 99]);
    const two = parseSegment(send(tcpFrame({ payload: bytesOf(5), flags: FIN, sequence: 7 }))[0]);
    expect([two.flags, two.sequence, two.ack]).toEqual([RST | ACK, 0, 13]);
    expect(send(tcpFrame({ payload: bytesOf(0), flags: RST }))).toEqual([]);
  });

  test('from outside opens towards the guest, which sees the gateway', () => {
    const rig = makeNat({ forwards: [{ protocol: 'tcp', address: '127.0.0.1', port: 8022, guestPort: 22 }] });
    const stream = new FakeStream('', 0, null);
    stream.paused = true;
    stream.events = rig.host.listeners[0].accept(stream);
    const [frame] = rig.cable.got.splice(0);
    const syn = parseSegment(frame);
    const port = new DataView(frame.bytes.buffer).getUint16(34);
    expect(syn.flags).toBe(SYN);
    const answer = { sourcePort: 22, destinationPort: port, sequence: 500, acknowledgement: syn.sequence + 1 };
    const [ack] = rig.send(tcpFrame({ ...answer, payload: bytesOf(0), flags: SYN | ACK, options: [3, 3, 7, 0] }));
    expect(parseSegment(ack).flags).toBe(ACK);
    expect(stream.paused).toBe(false);
    rig.send(tcpFrame({ ...answer, sequence: 501, payload: bytesOf(9) }));
    expectBytes(stream.receivedBytes, 9);
  });

  test('from outside gets through to a guest that still has another one of these addresses', () => {
    const rig = makeNat({ forwards: [{ protocol: 'tcp', address: '127.0.0.1', port: 8022, guestPort: 22 }] });
    const stream = new FakeStream('', 0, null);
    stream.events = rig.host.listeners[0].accept(stream);
    const [frame] = rig.cable.got.splice(0);
    const syn = parseSegment(frame);
    const answer = { sourcePort: 22, destinationPort: new DataView(frame.bytes.buffer).getUint16(34), sequence: 900 };
    // What Linux says of a SYN that is old to it, in TIME-WAIT.
    const old = tcpFrame({ ...answer, acknowledgement: (syn.sequence + 7) >>> 0, payload: bytesOf(0) });
    const [reset] = rig.send(old).map(parseSegment);
    expect([reset.flags, reset.sequence >>> 0]).toEqual([RST, (syn.sequence + 7) >>> 0]);
    rig.host.advance(10_000);
    expect(rig.cable.got.splice(0).map(parseSegment)).toContainEqual(expect.objectContaining(syn));
    const taken = { ...answer, acknowledgement: (syn.sequence + 1) >>> 0, payload: bytesOf(0), flags: SYN | ACK };
    expect(parseSegment(rig.send(tcpFrame(taken))[0]).flags).toBe(ACK);
    // A reset of what is not this one is none.
    expect(stream.wasReset).toBe(false);
  });

  test('whose host sends all there is room for before the guest answers loses none of it', () => {
    const { peer, host, run, nat, cable } = setUp();
    peer.open();
    run(2000, () => host.streams.length > 0);
    const [stream] = host.streams;
    stream.events?.connected();
    // The answer to the guest is lost, and comes again.
    nat.flush();
    cable.got.splice(0);
    let said = 0;
    const all = bytesOf(3 << 20);
    const say = (): void => {
      while (!stream.paused && said < all.length) {
        const next = Math.min(all.length, said + (said === 0 ? 272 : 65_536));
        stream.say(all.subarray(said, next));
        said = next;
      }
    };
    stream.resume = () => {
      stream.paused = false;
      say();
    };
    say();
    expect(stream.paused).toBe(true);
    run(60_000, () => peer.received.length === all.length || stream.wasReset);
    expect(stream.wasReset).toBe(false);
    expectBytes(peer.received, all.length);
  });

  test('from outside that the guest refuses, or does not answer, ends', () => {
    const rig = makeNat({ forwards: [{ protocol: 'tcp', address: '127.0.0.1', port: 8022, guestPort: 22 }] });
    for (const refused of [true, false]) {
      const stream = new FakeStream('', 0, null);
      stream.events = rig.host.listeners[0].accept(stream);
      const [frame] = rig.cable.got.splice(0);
      if (refused)
        rig.send(
          tcpFrame({
            payload: bytesOf(0),
            flags: RST | ACK,
            sourcePort: 22,
            destinationPort: new DataView(frame.bytes.buffer).getUint16(34),
            acknowledgement: parseSegment(frame).sequence + 1,
          }),
        );
      else rig.host.advance(100_000);
      expect(stream.wasReset).toBe(true);
    }
    expect(rig.nat.flows.tcp).toBe(0);
  });
});

describe('data', () => {
  test('arrives whole both ways, and each side’s end is passed on by itself', () => {
    const { peer, run, connect, nat, host } = setUp();
    const stream = connect();
    peer.write(bytesOf(300_000));
    peer.end();
    run(1000, () => stream.ended);
    expectBytes(stream.receivedBytes, 300_000);
    expect(peer.finAcked).toBe(true);
    // The guest has said all; the host goes on.
    for (let at = 0; at < 500_000; at += 50_000) {
      stream.say(bytesOf(500_000).slice(at, at + 50_000));
      run(20);
    }
    stream.events?.end();
    run(1000, () => peer.ended);
    expectBytes(peer.received, 500_000);
    expect(stream.closed).toBe(true);
    host.advance(10_000);
    expect(nat.flows.tcp).toBe(0);
    expect(host.timers).toHaveLength(0);
  });

  test('the host ends first', () => {
    const { peer, run, connect, nat, host } = setUp();
    const stream = connect();
    stream.say(bytesOf(1000));
    stream.events?.end();
    run(100, () => peer.ended);
    peer.write(bytesOf(5000));
    run(100);
    peer.end();
    run(1000, () => stream.closed);
    expectBytes(peer.received, 1000);
    expectBytes(stream.receivedBytes, 5000);
    expect(stream.ended).toBe(true);
    host.advance(10_000);
    expect(nat.flows.tcp).toBe(0);
  });

  for (const gso of [true, false])
    test(`survives frames that are lost, come twice, and out of order (GSO ${gso})`, () => {
      for (let seed = 1; seed <= 8; seed++) {
        const trouble = [{ lost: 10 }, { twice: 20 }, { late: 20 }, { lost: 5, twice: 10, late: 10 }][seed % 4];
        const { peer, run, connect, host, nat } = setUp(
          trouble,
          seed,
          { window: 32_768 * (1 + (seed % 3)) },
          { gso: () => gso },
        );
        const stream = connect();
        peer.write(bytesOf(60_000));
        peer.end();
        const all = bytesOf(200_000);
        let said = 0;
        run(600_000, () => {
          if (!stream.paused && said < 200_000) {
            stream.say(all.subarray(said, said + 7777));
            said += 7777;
            if (said >= 200_000) stream.events?.end();
          }
          return peer.ended && stream.closed;
        });
        expectBytes(stream.receivedBytes, 60_000);
        expectBytes(peer.received, 200_000);
        expect(peer.reset).toBe(false);
        run(20_000);
        expect(nat.flows.tcp).toBe(0);
        expect(host.timers).toHaveLength(0);
      }
    });

  test('a guest that does not read stops the host; its window is probed, and all comes when it reads', () => {
    const { peer, run, connect } = setUp({}, 1, { window: 16_384 });
    const stream = connect();
    peer.reading = false;
    let said = 0;
    while (stream.say(bytesOf(65_536))) {
      said += 65_536;
      run(10);
      expect(said).toBeLessThan(4 << 20);
    }
    said += 65_536;
    run(120_000);
    expect(peer.reset).toBe(false);
    expect(peer.received.length).toBeLessThanOrEqual(16_384);
    peer.read();
    run(60_000, () => peer.received.length === said);
    expect(peer.received.length).toBe(said);
    expect(stream.paused).toBe(false);
  });

  test('a host that does not take shuts the guest’s window, which opens again', () => {
    const { peer, run, connect } = setUp();
    const stream = connect();
    stream.takes = false;
    peer.write(bytesOf(3_000_000));
    run(3000);
    const held = stream.receivedBytes.length;
    expect(held).toBeLessThanOrEqual((1 << 20) + 65_536);
    expect(held).toBeGreaterThan(900_000);
    stream.takes = true;
    for (const done of stream.pending.splice(0)) done();
    run(10_000, () => stream.receivedBytes.length === 3_000_000);
    expectBytes(stream.receivedBytes, 3_000_000);
  });

  test('a cable without room holds the data back and loses nothing', () => {
    const { peer, run, connect, cable, nat } = setUp();
    const stream = connect();
    cable.full = true;
    stream.say(bytesOf(40_000));
    run(5000);
    expect(peer.received).toHaveLength(0);
    cable.full = false;
    nat.room();
    run(100);
    expectBytes(peer.received, 40_000);
    expect(peer.reset).toBe(false);
  });
});

describe('the end', () => {
  test('a reset of the guest’s resets the host’s connection, and the reverse', () => {
    const one = setUp();
    const stream = one.connect();
    one.peer.abort();
    one.run(50);
    expect(stream.wasReset).toBe(true);
    expect(one.nat.flows.tcp).toBe(0);
    const two = setUp();
    two.connect().fail('reset');
    two.run(50);
    expect(two.peer.reset).toBe(true);
    expect(two.nat.flows.tcp).toBe(0);
  });

  test('a reset or SYN with a number that does not fit is answered, not believed', () => {
    const { peer, run, connect, send, nat } = setUp();
    connect();
    run(50);
    const { iss } = peer.options;
    for (const flags of [RST, SYN]) {
      const [frame] = send(tcpFrame({ payload: bytesOf(0), flags, sequence: iss + 5000 }));
      expect(parseSegment(frame)).toMatchObject({ flags: ACK, ack: (iss + 1) >>> 0 });
    }
    expect(nat.flows.tcp).toBe(1);
  });

  test('a guest that vanishes is given up in the end', () => {
    const { run, connect, nat, host } = setUp();
    const stream = connect();
    run(50);
    stream.say(bytesOf(100));
    host.advance(1_500_000);
    expect(stream.wasReset).toBe(true);
    expect(nat.flows.tcp).toBe(0);
    expect(host.timers).toHaveLength(0);
  });

  test('a guest may use the port again at once', () => {
    const { peer, run, connect, host, send } = setUp();
    const stream = connect();
    stream.events?.end();
    peer.end();
    run(500, () => stream.closed);
    send(tcpFrame({ payload: bytesOf(0), flags: SYN, sequence: 77 }));
    expect(host.streams).toHaveLength(2);
  });
});

describe('hostile guests', () => {
  test('a flood of SYNs holds a bounded number of connections, and the rest is refused', () => {
    const { host, nat, send } = makeNat();
    let refused = 0;
    for (let i = 0; i < 3000; i++)
      refused += send(tcpFrame({ payload: bytesOf(0), flags: SYN, sourcePort: 1 + i })).length;
    expect(nat.flows.tcp).toBe(1024);
    expect(refused).toBe(3000 - 1024);
    expect(host.streams).toHaveLength(1024);
  });

  test('data beyond the window is not kept', () => {
    const { peer, run, connect, send } = setUp();
    const stream = connect();
    run(50);
    stream.takes = false;
    const { iss } = peer.options;
    for (let at = 0; at < 8 << 20; at += 1460)
      send(tcpFrame({ payload: bytesOf(1460), sequence: (iss + 1 + at) >>> 0, acknowledgement: 0 }));
    expect(stream.receivedBytes.length).toBeLessThanOrEqual((1 << 20) + 65_536);
  });

  test('options that lie about their length, and acknowledgements of what was never sent', () => {
    const { host, cable, send } = makeNat();
    for (const [i, options] of [
      [2, 0, 0, 0],
      [2, 40, 0, 0],
      [3, 1, 1, 1],
      [2, 4, 0, 0],
      [3, 3, 255, 0],
      [9, 255, 1, 1],
    ].entries()) {
      send(tcpFrame({ payload: bytesOf(0), flags: SYN, sourcePort: 100 + i, options, sequence: 9 }));
      host.streams[i].events?.connected();
      const { sequence } = parseSegment(cable.got.splice(0)[0]);
      const [answer] = send(
        tcpFrame({ payload: bytesOf(0), sourcePort: 100 + i, sequence: 10, acknowledgement: sequence + 50_000 }),
      );
      expect(parseSegment(answer).flags).toBe(ACK);
      send(tcpFrame({ payload: bytesOf(0), sourcePort: 100 + i, sequence: 10, acknowledgement: sequence + 1 }));
      host.streams[i].say(bytesOf(5000));
      for (const frame of cable.got.splice(0)) expect(frame.gsoSize === 0 || frame.gsoSize >= 64).toBe(true);
    }
  });
});
