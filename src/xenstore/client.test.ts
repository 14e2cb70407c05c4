import { expect, test } from 'vitest';
import { XenstoreClient, XenstoreClosed } from './client.ts';
import { type ByteChannel, linkOverBytes, linkToStore } from './link.ts';
import { createStore, type Store } from './store.ts';
import { encodeMessage, MessageDecoder } from './wire.ts';

function clientOf(store: Store, domid = 0): XenstoreClient {
  return new XenstoreClient(linkToStore(store, domid));
}

/** A store behind a byte stream that arrives in pieces of `pieceBytes`. */
function byteClientOf(store: Store, pieceBytes: number): XenstoreClient {
  const connection = store.connect(0);
  const decoder = new MessageDecoder();
  let onBytes: (bytes: Uint8Array) => void = () => {};
  const pump = (): void =>
    queueMicrotask(() => {
      for (let message = connection.takeOutput(); message !== null; message = connection.takeOutput()) {
        const bytes = encodeMessage(message);
        for (let at = 0; at < bytes.length; at += pieceBytes) onBytes(bytes.slice(at, at + pieceBytes));
      }
    });
  connection.onEvent = pump;
  const channel: ByteChannel = {
    write: (bytes) => {
      for (let at = 0; at < bytes.length; ) {
        const chunk = bytes.subarray(at, at + decoder.wanted);
        at += chunk.length;
        const decoded = decoder.push(chunk);
        if (decoded.kind === 'message') connection.submit(decoded.message);
      }
      pump();
    },
    receive: (handler) => {
      onBytes = handler;
    },
    close: () => connection.close(),
  };
  return new XenstoreClient(linkOverBytes(channel));
}

const turn = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 0));

test('values are bytes; text is UTF-8; a missing node is null', async () => {
  const client = clientOf(createStore());
  await client.write('/t/text', 'Grüße');
  expect(await client.read('/t/text')).toBe('Grüße');
  const bytes = Uint8Array.from({ length: 256 }, (_, i) => i);
  await client.write('/t/bytes', bytes);
  expect(await client.readBytes('/t/bytes')).toEqual(bytes);
  expect(await client.read('/nosuch')).toBe(null);
  expect(await client.directory('/nosuch')).toBe(null);
  expect(await client.getPermissions('/nosuch')).toBe(null);
  expect(await client.remove('/no/such')).toBe(false);
  expect(await client.remove('/t/text')).toBe(true);
  expect(await client.directory('/t')).toEqual(['bytes']);
});

test('permissions, domains and their paths', async () => {
  const client = clientOf(createStore());
  await client.mkdir('/t/d');
  await client.setPermissions('/t/d', ['n3', 'r0', 'b7']);
  expect(await client.getPermissions('/t/d')).toEqual(['n3', 'r0', 'b7']);
  await client.introduce(3, 77, 1);
  expect(await client.isDomainIntroduced(3)).toBe(true);
  expect(await client.getDomainPath(3)).toBe('/local/domain/3');
  await client.release(3);
  expect(await client.isDomainIntroduced(3)).toBe(false);
  await expect(client.release(3)).rejects.toMatchObject({ name: 'XenstoreError', code: 'EINVAL' });
});

test('a directory of any length is listed, by parts over a stream cut anywhere', async () => {
  const client = byteClientOf(createStore(), 7);
  const names = Array.from({ length: 1500 }, (_, i) => `child-${i}`);
  await Promise.all(names.map((name) => client.mkdir(`/many/${name}`)));
  expect(await client.directory('/many')).toEqual(names.sort());
});

test('a transaction that conflicts runs again, and one that throws leaves nothing', async () => {
  const store = createStore();
  const client = clientOf(store);
  await client.write('/count', '0');
  const add = (other: XenstoreClient): Promise<void> =>
    other.transaction(async (t) => {
      const count = Number(await t.read('/count'));
      await turn();
      await t.write('/count', String(count + 1));
    });
  await Promise.all(Array.from({ length: 8 }, () => add(clientOf(store))));
  expect(await client.read('/count')).toBe('8');

  const failing = client.transaction(async (t) => {
    await t.write('/count', 'lost');
    throw new Error('on purpose');
  });
  await expect(failing).rejects.toThrow('on purpose');
  expect(await client.read('/count')).toBe('8');
});

test('watches call back at once and for each change, until they are ended', async () => {
  const store = createStore();
  const client = clientOf(store);
  const other = clientOf(store);
  const heard: string[] = [];
  const hear = (path: string, token: string): void => void heard.push(`${path} ${token}`);
  await client.watch('/a', 'outer', hear);
  await client.watch('/a/b', 'inner', hear);
  await client.watch('@introduceDomain', 'came', hear);
  await other.write('/a/b/c', '1');
  await other.introduce(9, 1, 1);
  await turn();
  expect(heard.sort()).toEqual(
    ['/a outer', '/a/b inner', '/a/b/c outer', '/a/b/c inner', '@introduceDomain came', '@introduceDomain came'].sort(),
  );
  heard.length = 0;
  await client.unwatch('/a', 'outer');
  await other.write('/a/b/c', '2');
  await turn();
  expect(heard).toEqual(['/a/b/c inner']);
  await expect(client.unwatch('/a', 'outer')).rejects.toMatchObject({ code: 'ENOENT' });
});

test('what would not be one request is refused here', async () => {
  const client = clientOf(createStore());
  await expect(client.write('/a', new Uint8Array(5000))).rejects.toMatchObject({ code: 'E2BIG' });
  await expect(client.write('/a\0b', 'c')).rejects.toMatchObject({ code: 'EINVAL' });
  await expect(client.read('/gr\u00fc\u00df')).rejects.toMatchObject({ code: 'EINVAL' });
});

test('the end of the connection rejects what waits and what comes', async () => {
  const store = createStore();
  const control = clientOf(store);
  await control.introduce(5, 1, 1);
  const guest = clientOf(store, 5);
  await guest.write('data', 'x').catch(() => undefined);
  await control.release(5);
  await guest.closed;
  await expect(guest.read('data')).rejects.toBeInstanceOf(XenstoreClosed);

  const waiting = control.read('/');
  control.close();
  await expect(waiting).rejects.toBeInstanceOf(XenstoreClosed);
});
