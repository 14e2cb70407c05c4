import { expect, test } from 'vitest';
import { CHECKSUM_PARTIAL, Frame, GSO_TCPV4 } from './frame.ts';
import { DOMUS_FORM, type FrameForm, FrameReader, FrameWriter, QEMU_FORM } from './frame-stream.ts';

const frames = [14, 60, 1514, 65_549, 15, 3000].map((length) =>
  Uint8Array.from({ length }, (_, i) => (i * 3 + length) & 255),
);

function write(form: FrameForm): Uint8Array {
  const out: Uint8Array[] = [];
  const writer = new FrameWriter(
    form,
    (bytes, done) => {
      out.push(bytes.slice());
      done();
    },
    () => {},
  );
  for (const bytes of frames) {
    const frame = new Frame().set(bytes, 14).setTail(bytes, 14, bytes.length - 14);
    frame.checksum = CHECKSUM_PARTIAL;
    frame.gsoType = GSO_TCPV4;
    frame.gsoSize = 1448;
    expect(writer.send(frame)).toBe(true);
  }
  writer.flush();
  return new Uint8Array(Buffer.concat(out));
}

for (const [name, form] of [
  ['domus', DOMUS_FORM],
  ['qemu', QEMU_FORM],
] as const) {
  test(`${name}: frames come out as they went in, wherever the stream is cut`, () => {
    const stream = write(form);
    for (const size of [1, 7, 100, 1500, 65_536, stream.length]) {
      const got: Uint8Array[] = [];
      const reader = new FrameReader(form, (frame) => {
        if (form === DOMUS_FORM)
          expect([frame.checksum, frame.gsoType, frame.gsoSize]).toEqual([CHECKSUM_PARTIAL, GSO_TCPV4, 1448]);
        got.push(frame.head.slice(0, frame.headLength));
        return true;
      });
      const buffer = new Uint8Array(size);
      for (let at = 0; at < stream.length; at += size) {
        const piece = buffer.subarray(0, Math.min(size, stream.length - at));
        piece.set(stream.subarray(at, at + size));
        expect(reader.push(piece)).toBe(true);
      }
      expect(got, `in pieces of ${size}`).toEqual(frames);
    }
  });

  test(`${name}: a reader without room keeps everything`, () => {
    const stream = write(form);
    for (const size of [100, 70_000, stream.length]) {
      const got: Uint8Array[] = [];
      let turn = 0;
      const reader = new FrameReader(form, (frame) => {
        if (turn++ % 2 === 0) return false;
        got.push(frame.head.slice(0, frame.headLength));
        return true;
      });
      for (let at = 0; at < stream.length; at += size) {
        // Borrowed: whatever it keeps, it has copied.
        const piece = stream.slice(at, at + size);
        reader.push(piece);
        piece.fill(0xee);
        while (reader.isStalled) reader.resume();
      }
      expect(got, `in pieces of ${size}`).toEqual(frames);
    }
  });

  test.each([0, 13, 65_554, 0xffffffff])(`${name}: a length of %i is no frame`, (length) => {
    const header = new Uint8Array(16);
    new DataView(header.buffer).setUint32(0, length, form === DOMUS_FORM);
    expect(new FrameReader(form, () => true).push(header)).toBe(false);
  });
}

test('a writer refuses frames when too much waits, and says when there is room', () => {
  const waiting: (() => void)[] = [];
  let rooms = 0;
  const writer = new FrameWriter(
    DOMUS_FORM,
    (_bytes, done) => waiting.push(done),
    () => rooms++,
  );
  const frame = new Frame().set(new Uint8Array(60_000), 60_000);
  let sent = 0;
  while (writer.send(frame)) sent++;
  expect(sent * 60_000).toBeLessThan(1_400_000);
  for (const done of waiting.splice(0)) done();
  expect(rooms).toBe(1);
  expect(writer.send(frame)).toBe(true);
});
