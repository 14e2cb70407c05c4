import { describe, expect, test } from 'vitest';
import { Frame, type FramePort } from './frame.ts';
import { FrameQueue } from './frame-queue.ts';
import { MacTable } from './mac-table.ts';
import { EthernetSwitch, type SwitchPort } from './switch.ts';

const mac = (n: number): number[] => [0, 0x16, 0x3e, 0, n >> 8, n & 255];
const BROADCAST = [255, 255, 255, 255, 255, 255];

class Device implements FramePort {
  readonly got: string[] = [];
  full = false;
  flushes = 0;
  readonly port: SwitchPort;

  constructor(owner: EthernetSwitch) {
    this.port = owner.attach()!;
    this.port.connect(this);
  }
  send(frame: Frame): boolean {
    if (this.full) return false;
    const bytes = new Uint8Array(frame.length);
    frame.copyTo(bytes, 0);
    this.got.push(new TextDecoder().decode(bytes.subarray(14)));
    return true;
  }
  flush(): void {
    this.flushes++;
  }
  room(): void {}

  /** Sends text from one address to another. */
  say(to: number[], from: number[], text: string): void {
    const bytes = Uint8Array.from([...to, ...from, 0x88, 0xb5, ...new TextEncoder().encode(text)]);
    this.port.send(new Frame().set(bytes, bytes.length));
    this.port.flush();
  }
}

function setUp() {
  const clock = { nowMs: 0 };
  const owner = new EthernetSwitch(() => clock.nowMs);
  return { clock, owner, a: new Device(owner), b: new Device(owner), c: new Device(owner) };
}

describe('the switch', () => {
  test('sends what is for nobody known to all others, and then to the one', () => {
    const { a, b, c } = setUp();
    a.say(mac(2), mac(1), 'who is 2');
    b.say(mac(1), mac(2), 'I am');
    a.say(mac(2), mac(1), 'hello');
    expect(a.got).toEqual(['I am']);
    expect(b.got).toEqual(['who is 2', 'hello']);
    expect(c.got).toEqual(['who is 2']);
    expect(c.flushes).toBe(1);
  });

  test('sends broadcasts and multicasts to all others', () => {
    const { a, b, c } = setUp();
    a.say(BROADCAST, mac(1), 'all');
    a.say([1, 0, 0x5e, 0, 0, 1], mac(1), 'some');
    expect([a.got, b.got, c.got]).toEqual([[], ['all', 'some'], ['all', 'some']]);
  });

  test('follows an address that moves, and never learns a group address', () => {
    const { a, b, c } = setUp();
    b.say(BROADCAST, mac(9), '');
    c.say(BROADCAST, mac(9), '');
    c.say(BROADCAST, BROADCAST, '');
    a.say(mac(9), mac(1), 'found');
    a.say(BROADCAST, mac(1), 'all');
    expect(b.got).not.toContain('found');
    expect(c.got).toContain('found');
    expect(b.got).toContain('all');
  });

  test('forgets an address after five minutes, and with its port', () => {
    const { a, b, c, clock } = setUp();
    b.say(BROADCAST, mac(2), '');
    clock.nowMs = 300_001;
    a.say(mac(2), mac(1), 'old');
    expect(c.got).toContain('old');
    b.say(BROADCAST, mac(2), '');
    b.port.close();
    a.say(mac(2), mac(1), 'gone');
    expect(c.got).toContain('gone');
    expect(b.got).not.toContain('gone');
  });

  test('does not send a frame back to where it came from', () => {
    const { a, b } = setUp();
    a.say(BROADCAST, mac(1), '');
    a.say(mac(1), mac(3), 'inside');
    expect([a.got, b.got]).toEqual([[], ['']]);
  });

  test('a device that does not take its frames loses its own and nobody else’s, and gets those that were kept, in order', () => {
    const { a, b, c } = setUp();
    b.full = true;
    for (let i = 0; i < 20_000; i++) a.say(BROADCAST, mac(1), `${i}`.padEnd(100));
    expect(c.got).toHaveLength(20_000);
    expect(b.port.statistics.dropped).toBeGreaterThan(10_000);
    b.full = false;
    b.port.room();
    expect(b.got.length + b.port.statistics.dropped).toBe(20_000);
    expect(b.got.map(Number)).toEqual(Array.from({ length: b.got.length }, (_, i) => i));
    a.say(BROADCAST, mac(1), 'after');
    expect(b.got.at(-1)).toBe('after');
  });

  test('switches are isolated from each other', () => {
    const one = setUp();
    const two = setUp();
    one.a.say(BROADCAST, mac(1), 'here');
    expect([two.a.got, two.b.got]).toEqual([[], []]);
  });

  test('frames shorter than their header are thrown away', () => {
    const { a, b } = setUp();
    a.port.send(new Frame().set(new Uint8Array(13), 13));
    expect(b.got).toEqual([]);
  });
});

test('a flood of addresses does not grow the table, and does not make it forget for long', () => {
  const table = new MacTable();
  for (let i = 0; i < 200_000; i++) table.learn(i >> 16, i, 7, i);
  table.learn(0x16, 0x3e000001, 3, 200_001);
  expect(table.find(0x16, 0x3e000001, 0)).toBe(3);
  table.forgetPort(7);
  expect(table.find(199_999 >> 16, 199_999, 0)).toBe(-1);
  expect(table.find(0x16, 0x3e000001, 0)).toBe(3);
});

test('a queue gives frames back as they were, in order, for any mixture of sizes', () => {
  const queue = new FrameQueue(4096);
  const expected: Uint8Array[] = [];
  let seed = 3;
  const random = (n: number): number => {
    seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff;
    return (seed >>> 8) % n;
  };
  let refused = 0;
  for (let i = 0; i < 5000; i++) {
    if (random(2) === 0) {
      const bytes = Uint8Array.from({ length: 14 + random(900) }, () => random(256));
      const frame = new Frame().set(bytes, 10).setTail(bytes, 10, bytes.length - 10);
      frame.checksum = random(3);
      frame.gsoType = random(3);
      frame.gsoSize = random(65536);
      if (queue.push(frame)) expected.push(Uint8Array.of(frame.checksum, frame.gsoType, frame.gsoSize & 255, ...bytes));
      else refused++;
    } else {
      const frame = queue.peek();
      const want = expected.shift();
      if (frame === null) expect(want).toBeUndefined();
      else {
        const got = frame.head.subarray(0, frame.headLength);
        expect(Uint8Array.of(frame.checksum, frame.gsoType, frame.gsoSize & 255, ...got)).toEqual(want);
        queue.shift();
      }
    }
    expect(queue.frames).toBe(expected.length);
  }
  expect(refused).toBeGreaterThan(0);
});
