import { expect, test } from 'vitest';
import { EVTCHNOP_alloc_unbound, EVTCHNOP_close, EVTCHNOP_send } from '../abi/event-channel.ts';
import { Dom0Channels } from './dom0-channels.ts';
import { EVENT_CHANNELS } from './domain-limits.ts';
import { isPending } from './event-channels.ts';
import { eventChannelOp } from './hypercalls/event-channel.ts';
import { KERNEL_VA, TestGuest, va } from './testing.ts';

const ARG = KERNEL_VA + 0x1000;

function setUp() {
  const guest = new TestGuest();
  const channels = new Dom0Channels(guest.domain, { kick: () => {} });
  const op = (cmd: number, ...words: number[]): number => {
    guest.setWords(ARG, words);
    return guest.call(eventChannelOp, cmd, va(ARG));
  };
  const allocate = (): number => {
    expect(op(EVTCHNOP_alloc_unbound, 0x7ff0, 0)).toBe(0);
    return guest.word(ARG + 4);
  };
  return { guest, channels, op, allocate };
}

test('both ends of a channel signal each other, and the handler runs once for the binding itself', () => {
  const { guest, channels, op, allocate } = setUp();
  const port = allocate();
  let calls = 0;
  const channel = channels.bind(port, () => ++calls === 99);
  expect(channel).not.toBeNull();
  channels.dispatch();
  expect(calls).toBe(1);
  op(EVTCHNOP_send, port);
  op(EVTCHNOP_send, port);
  channels.dispatch();
  channels.dispatch();
  expect(calls).toBe(2);
  channel?.notify();
  expect(isPending(guest.domain, port)).toBe(true);
});

test('a handler that has more to do is called again', () => {
  const { channels, allocate } = setUp();
  let left = 3;
  channels.bind(allocate(), () => --left > 0);
  for (let turn = 0; turn < 5; turn++) channels.dispatch();
  expect(left).toBe(0);
});

test('only a port that the guest has made for Dom0 can be bound, and once', () => {
  const { channels, op, allocate } = setUp();
  for (const port of [0, -1, 1, EVENT_CHANNELS, 2 ** 32, Number.NaN, 1.5])
    expect(channels.bind(port, () => false)).toBeNull();
  const port = allocate();
  expect(channels.bind(port, () => false)).not.toBeNull();
  expect(channels.bind(port, () => false)).toBeNull();
  // For another domain.
  expect(op(EVTCHNOP_alloc_unbound, 0x7ff0 | (5 << 16), 0)).toBe(0);
  expect(channels.bind(port + 1, () => false)).toBeNull();
});

test('an end whose guest port was closed and made anew is silent', () => {
  const { guest, channels, op, allocate } = setUp();
  const port = allocate();
  let calls = 0;
  const old = channels.bind(port, () => ++calls < 0);
  channels.dispatch();
  expect(op(EVTCHNOP_close, port)).toBe(0);
  expect(allocate()).toBe(port);
  old?.notify();
  expect(isPending(guest.domain, port)).toBe(false);
  const again = channels.bind(port, () => false);
  old?.close();
  old?.notify();
  expect(isPending(guest.domain, port)).toBe(false);
  again?.notify();
  expect(isPending(guest.domain, port)).toBe(true);
  channels.dispatch();
  expect(calls).toBe(1);
});

test('after close the guest may have Dom0 bind its port again', () => {
  const { channels, op, allocate } = setUp();
  const port = allocate();
  let calls = 0;
  channels.bind(port, () => ++calls < 0)?.close();
  channels.dispatch();
  expect(op(EVTCHNOP_send, port)).toBe(0);
  channels.dispatch();
  expect(calls).toBe(0);
  expect(channels.bind(port, () => false)).not.toBeNull();
});
