import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { type AddressInfo, createServer } from 'node:net';
import { expect, onTestFinished, test } from 'vitest';
import { parseVif } from '../toolstack/config/network-interface.ts';
import { chooseNetwork, type HostBridges, openNetwork } from './domain-network.ts';

const none: HostBridges = { isBridge: () => false, mayUseTap: true };
const xenbr0: HostBridges = { isBridge: (name) => name === 'xenbr0', mayUseTap: true };
const powerless: HostBridges = { ...xenbr0, mayUseTap: false };
const vif = (spec: string) => parseVif('x.cfg', spec, 0, () => {});

test.each([
  ['', none, { kind: 'nat' }],
  ['', xenbr0, { kind: 'bridge', name: 'xenbr0' }],
  ['', powerless, { kind: 'nat' }],
  ['script=vif-nat,bridge=lan0', xenbr0, { kind: 'nat' }],
  ['bridge=lan0', xenbr0, { kind: 'switch', name: 'lan0' }],
  ['bridge=xenbr0', none, { kind: 'switch', name: 'xenbr0' }],
  ['bridge=xenbr0', xenbr0, { kind: 'bridge', name: 'xenbr0' }],
  ['bridge=passt', none, { kind: 'passt' }],
  ['script=vif-route,ip=10.0.0.1', none, { kind: 'route' }],
  ['script=/etc/xen/scripts/vif-openvswitch,bridge=ovs0.7', none, { kind: 'openvswitch', name: 'ovs0.7' }],
  ['script=mine,bridge=xenbr0', xenbr0, { kind: 'script' }],
  ['script=/home/me/vif-bridge', none, { kind: 'script' }],
] as const)('vif = [ "%s" ] is plugged into what its words say', (spec, host, choice) => {
  expect(chooseNetwork(vif(spec), host)).toEqual(choice);
});

test('what cannot be is refused with the reason', async () => {
  expect(() => chooseNetwork(vif('bridge=xenbr0'), powerless)).toThrow(/vif devid=0: xenbr0 .*CAP_NET_ADMIN/);
  expect(() => chooseNetwork(vif('script=mine'), powerless)).toThrow(
    /vif devid=0: script=mine: this user may not make the network interface .*CAP_NET_ADMIN.* vif-bridge, vif-nat, vif-route/,
  );
  const facts = { domid: 1, mac: new Uint8Array(6), takesGso: () => true, log: () => {}, mayLackForwards: false };
  const open = (spec: string) => openNetwork(vif(spec), facts);
  await expect(open('script=vif-nat,ip=300.1.1.1')).rejects.toThrow(/ip=300.1.1.1: expected one IPv4 address/);
  await expect(open('script=vif-nat,forward=tcp:80')).rejects.toThrow(/forward: expected tcp\|udp:/);
  await expect(open('script=vif-route')).rejects.toThrow(/script=vif-route needs ip=/);
  await expect(open('script=vif-route,ip=10.0.0.1 x')).rejects.toThrow(/found `x'/);
  await expect(open('bridge=a/b')).rejects.toThrow(/bridge=a\/b: expected up to 32 letters/);
});

test.each(['tcp', 'udp'])(
  'a %s port that is taken is an error, and of a guest that runs already a line',
  async (protocol) => {
    const other =
      protocol === 'tcp' ? createServer().listen(0, '127.0.0.1') : createSocket('udp4').bind(0, '127.0.0.1');
    onTestFinished(() => void other.close());
    await once(other, 'listening');
    const { port } = other.address() as AddressInfo;
    const problem = `vif devid=0: cannot forward ${protocol} 127.0.0.1:${port}: the port is taken (EADDRINUSE)`;
    const log: string[] = [];
    const facts = { domid: 1, mac: new Uint8Array(6), takesGso: () => true, log: (line: string) => log.push(line) };
    const wanted = vif(`script=vif-nat,forward=${protocol}::${port}-:1`);
    await expect(openNetwork(wanted, { ...facts, mayLackForwards: false })).rejects.toThrow(problem);
    expect(log).toEqual([]);
    const network = await openNetwork(wanted, { ...facts, mayLackForwards: true });
    expect(log).toEqual([problem]);
    await network.close();
  },
);
