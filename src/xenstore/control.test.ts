import { expect, test } from 'vitest';
import { XS } from '../abi/io/xs-wire.ts';
import { createStore } from './store.ts';
import { ask } from './test-client.ts';

test('quota shows the limits, or what a domain owns', () => {
  const store = createStore({ quotas: { nodesMax: 1234 } });
  const tool = store.connect(0);
  expect(ask(tool, XS.CONTROL, 'quota\0').split('\n')[0]).toBe('nodes            :     1234 nodes a domain owns');
  store.write('/a', '');
  store.setPermissions('/a', ['n5']);
  expect(ask(tool, XS.CONTROL, 'quota\x005\0')).toBe('nodes            :        1 owned by domain 5\n\0');
  expect(ask(tool, XS.CONTROL, 'quota\0five\0')).toBe('!EINVAL');
});

test('print leaves one line in the log, whatever is in it', () => {
  const lines: string[] = [];
  const tool = createStore({ log: (line) => lines.push(line) }).connect(0);
  expect(ask(tool, XS.CONTROL, `print\0hello\n\x1b[31m${'x'.repeat(3000)}\0`)).toBe('OK\0');
  expect(lines).toEqual([`xenstored: hello??[31m${'x'.repeat(1024 - 11)}`]);
});

test('what it cannot do it says, and nothing of it is for guests', () => {
  const store = createStore();
  const tool = store.connect(0);
  for (const command of ['live-update\0-s\0', 'log\0on\0', 'quota\0set\0nodes\x001\0'])
    expect(ask(tool, XS.CONTROL, command)).toBe('!ENOSYS');
  for (const command of ['help\0', 'check\0', 'allocate-domid\0', 'print\0x\0'])
    expect(ask(store.connect(5), XS.CONTROL, command)).toBe('!EACCES');
  expect(ask(tool, XS.CONTROL, 'allocate-domid\0')).toBe('1\0');
});

test('claim-domid gives that very domid, unless a domain has it', () => {
  const store = createStore();
  const tool = store.connect(0);
  expect(ask(tool, XS.CONTROL, 'claim-domid\x007\0')).toBe('OK\0');
  expect(ask(tool, XS.CONTROL, 'allocate-domid\0')).toBe('8\0');
  expect(ask(tool, XS.CONTROL, 'claim-domid\x003\0')).toBe('OK\0');
  expect(ask(tool, XS.CONTROL, 'allocate-domid\0')).toBe('9\0');
  expect(ask(tool, XS.INTRODUCE, '7\x001\x001\0')).toBe('OK\0');
  expect(ask(tool, XS.CONTROL, 'claim-domid\x007\0')).toBe('TAKEN\0');
  for (const domid of ['', '0', '-1', '32752', '99999', 'x'])
    expect(ask(tool, XS.CONTROL, `claim-domid\0${domid}\0`)).toBe('!EINVAL');
  expect(ask(store.connect(5), XS.CONTROL, 'claim-domid\x002\0')).toBe('!EACCES');
});
