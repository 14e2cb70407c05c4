import { expect, it } from 'vitest';
import { XS } from '../abi/io/xs-wire.ts';
import { DomidAlias, translatePath } from './domid-alias.ts';
import { bytesToText, joinStrings, type Message, textToBytes } from './wire.ts';

const message = (type: number, payload: Uint8Array): Message => ({ type, reqId: 5, txId: 6, payload });
const alias = new DomidAlias(7, 1234);

it('paths of the domain have the other domid, and no others', () => {
  const paths = {
    '/local/domain/7': '/local/domain/1234',
    '/local/domain/7/device/vbd/7': '/local/domain/1234/device/vbd/7',
    '/local/domain/0/backend/vbd/7/51712/state': '/local/domain/0/backend/vbd/1234/51712/state',
    '/local/domain/0/backend/vbd/7': '/local/domain/0/backend/vbd/1234',
  };
  for (const [path, translated] of Object.entries(paths)) expect(translatePath(path, 7, 1234)).toBe(translated);
  const others = [
    '/local/domain/77',
    '/local/domain/0/backend/7/8',
    'device/7',
    '/local/domain',
    '/vm/7',
    '@releaseDomain',
    '',
  ];
  for (const path of others) expect(translatePath(path, 7, 1234)).toBe(path);
});

it('requests go to the domain that it is; what they carry stays', () => {
  const { payload, ...rest } = alias.request(
    message(XS.WRITE, textToBytes('/local/domain/7/data\0/local/domain/7\xff\0')),
  );
  expect(bytesToText(payload)).toBe('/local/domain/1234/data\0/local/domain/7\xff\0');
  expect(rest).toEqual({ type: XS.WRITE, reqId: 5, txId: 6 });
  const watch = alias.request(message(XS.WATCH, joinStrings(['/local/domain/0/backend/vif/7/0/state', 'FFFF8880'])));
  expect(bytesToText(watch.payload)).toBe('/local/domain/0/backend/vif/1234/0/state\0FFFF8880\0');
  for (const same of [message(XS.READ, joinStrings(['device/vbd'])), message(XS.TRANSACTION_END, joinStrings(['T']))])
    expect(alias.request(same)).toBe(same);
  const broken = message(XS.READ, textToBytes('/local/domain/7'));
  expect(alias.request(broken)).toBe(broken);
});

it('events and values that are paths name the domain as the guest knows it', () => {
  const event = alias.reply(
    message(XS.WATCH_EVENT, joinStrings(['/local/domain/0/backend/vif/1234/0/state', 'token'])),
  );
  expect(bytesToText(event.payload)).toBe('/local/domain/0/backend/vif/7/0/state\0token\0');
  const value = alias.reply(message(XS.READ, textToBytes('/local/domain/0/backend/vbd/1234/51712')));
  expect(bytesToText(value.payload)).toBe('/local/domain/0/backend/vbd/7/51712');
  const path = alias.reply(message(XS.GET_DOMAIN_PATH, joinStrings(['/local/domain/1234'])));
  expect(bytesToText(path.payload)).toBe('/local/domain/7\0');
  for (const same of [message(XS.READ, textToBytes('1234')), message(XS.DIRECTORY, joinStrings(['1234']))])
    expect(alias.reply(same)).toBe(same);
});
