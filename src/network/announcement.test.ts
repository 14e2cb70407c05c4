import { expect, test } from 'vitest';
import { announcement } from './announcement.ts';
import { Frame, type FramePort } from './frame.ts';
import { EthernetSwitch } from './switch.ts';

const GUEST = Uint8Array.of(0, 0x16, 0x3e, 1, 2, 3);
const OTHER = Uint8Array.of(0, 0x16, 0x3e, 4, 5, 6);

test('an announcement is a RARP request to all', () => {
  const frame = announcement(GUEST);
  expect(Buffer.from(frame.head.subarray(0, 42)).toString('hex')).toBe(
    `ffffffffffff00163e0102038035${'0001080006040003'}00163e01020300000000${'00163e01020300000000'}`,
  );
  expect(frame.length).toBe(60);
});

test('after an announcement at another port, a switch sends there what is for the guest', () => {
  const bridge = new EthernetSwitch(() => 0);
  const seen: string[] = [];
  const plug = (name: string) => {
    const port = bridge.attach();
    if (port === null) throw new Error('full');
    const device: FramePort = {
      send: (frame) => {
        if (frame.length === 64) seen.push(name);
        return true;
      },
      flush: () => {},
      room: () => {},
    };
    port.connect(device);
    return port;
  };
  const [before, now, other] = ['before', 'now', 'other'].map(plug);
  const data = new Uint8Array(64);
  data.set(GUEST, 0);
  data.set(OTHER, 6);
  const send = (): void => {
    other.send(new Frame().set(data, data.length));
    other.flush();
  };
  before.send(announcement(GUEST));
  send();
  now.send(announcement(GUEST));
  send();
  expect(seen).toEqual(['before', 'now']);
});
