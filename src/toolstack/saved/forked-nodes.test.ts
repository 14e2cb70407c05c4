import { expect, test } from 'vitest';
import { type ForkIdentity, forkedDescription } from './forked-nodes.ts';
import type { Description } from './saved-description.ts';
import { checkNodes, type SavedNode } from './saved-store.ts';

const OLD = '6d0b4e0e-9b0b-4d4c-8d1f-0123456789ab';
const NODES: readonly SavedNode[] = [
  [`/vm/${OLD}`, '', ['n0', 'r3']],
  [`/vm/${OLD}/uuid`, OLD, ['n0', 'r3']],
  ['/local/domain/3', '', ['n0', 'r3']],
  ['/local/domain/3/vm', `/vm/${OLD}`, ['n0', 'r3']],
  ['/local/domain/3/platform', '', ['n0', 'r3']],
  ['/local/domain/3/platform/generation-id', '1:2', ['n0', 'r3']],
  ['/local/domain/3/device/vif/0/mac', '00:16:3e:00:00:01', ['n3', 'r0']],
  ['/local/domain/3/device/vbd/51712/state', '4', ['n3', 'r0']],
  ['/local/domain/0/backend/vif/3/0/mac', '00:16:3e:00:00:01', ['n0', 'r3']],
  ['/local/domain/0/backend/vif/3/0/vifname', 'web0', ['n0', 'r3']],
  ['/local/domain/0/backend/vif/3/0/forward-0', 'tcp::8022-:22', ['n0', 'r3']],
  ['/local/domain/0/backend/vif/3/0/loopback', '0', ['n0', 'r3']],
  ['/libxl/3/device/vif/0/forward-0', 'tcp::8022-:22', ['n0']],
  ['/local/domain/0/backend/vif/3/1/mac', '00:16:3e:00:00:02', ['n0', 'r3']],
  ['/local/domain/0/backend/vbd/3/51712/params', '/d.img', ['n0', 'r3']],
  ['/local/domain/0/backend/vbd/3/51712/type', 'phy', ['n0', 'r3']],
  ['/local/domain/0/backend/vbd/3/51728/params', '/readonly.img', ['n0', 'r3']],
  ['/local/domain/0/backend/vbd/3/51728/type', 'phy', ['n0', 'r3']],
  ['/libxl/3/device/vbd/51712/params', '/d.img', ['n0']],
];

test('the nodes of a copy say who it is, and nothing else', () => {
  const identity: ForkIdentity = {
    name: 'copy',
    uuid: Uint8Array.from({ length: 16 }, (_, i) => i),
    macs: { 0: Uint8Array.of(0, 0x16, 0x3e, 7, 8, 9) },
    disks: { 51712: '/copy/xvda.qcow2' },
    generation: [5n, 2n ** 64n - 1n],
  };
  const from = { domid: 3, name: 'web', nodes: NODES } as unknown as Description;
  const { name, nodes } = forkedDescription(from, identity);
  const vm = '/vm/00010203-0405-0607-0809-0a0b0c0d0e0f';
  expect(name).toBe('copy');
  expect(nodes.map(([path, value]) => `${path} = ${value}`)).toEqual([
    `${vm} = `,
    `${vm}/uuid = ${vm.slice(4)}`,
    '/local/domain/3 = ',
    `/local/domain/3/vm = ${vm}`,
    '/local/domain/3/device/vif/0/mac = 00:16:3e:07:08:09',
    '/local/domain/3/device/vbd/51712/state = 4',
    '/local/domain/0/backend/vif/3/0/mac = 00:16:3e:07:08:09',
    '/local/domain/0/backend/vif/3/0/loopback = 0',
    '/local/domain/0/backend/vif/3/1/mac = 00:16:3e:00:00:02',
    '/local/domain/0/backend/vbd/3/51712/params = qcow2:/copy/xvda.qcow2',
    '/local/domain/0/backend/vbd/3/51712/type = qdisk',
    '/local/domain/0/backend/vbd/3/51728/params = /readonly.img',
    '/local/domain/0/backend/vbd/3/51728/type = phy',
    '/libxl/3/device/vbd/51712/params = qcow2:/copy/xvda.qcow2',
    '/local/domain/3/platform = ',
    '/local/domain/3/platform/generation-id = 5:18446744073709551615',
  ]);
  expect(nodes.at(-1)?.[2]).toEqual(['n0', 'r3']);
  // As a restored domain's nodes have to be.
  expect(checkNodes(JSON.parse(JSON.stringify(nodes)), 3)).toEqual(nodes);
});
