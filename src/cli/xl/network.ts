/** `xl network-attach`, `network-list` and `network-detach`. Source: xl(1); recorded output of xl 4.17. */

import { readXlConf } from '../../host/xl-conf-file.ts';
import { backendDomid } from '../../toolstack/backend-domain.ts';
import { libxlJson } from '../../toolstack/config/domain-config.ts';
import { makeUpMac, parseVif, type VifConfig, vifJson } from '../../toolstack/config/network-interface.ts';
import { ConfigError } from '../../toolstack/config/xl-cfg.ts';
import { withVifDefaults } from '../../toolstack/config/xl-conf.ts';
import { vifNodes } from '../../toolstack/device-nodes.ts';
import { plugDevice, unplugAndRemove } from '../../toolstack/device-plug.ts';
import { type Command, readWords } from './command.ts';
import { devicesOf, numberIn } from './devices.ts';
import { CommandError, findDomain, withStore } from './domains.ts';

export const networkAttach: Command = {
  name: 'network-attach',
  modifies: true,
  canDryRun: true,
  summary: 'Create a new virtual network device',
  usage:
    '<Domain> [type=<type>] [mac=<mac>] [bridge=<bridge>] [ip=<ip>] [script=<script>] [backend=<BackDomain>] [vifname=<name>] [rate=<rate>] [model=<model>] [accel=<accel>] [mtu=<mtu>]',
  options: '',
  async run(words, context) {
    const parsed = readWords(networkAttach, words, { letters: '' }, 1, context);
    if (typeof parsed === 'number') return parsed;
    const [word, ...specs] = parsed.operands;
    return await withStore(context, async (store) => {
      const { domid } = await findDomain(store, word);
      const taken = new Set((await devicesOf(store, domid, 'vif')).map(({ id }) => id));
      let devid = 0;
      while (taken.has(devid)) devid++;
      let vif: VifConfig;
      let warning: string | null = null;
      try {
        vif = parseVif('command line', specs.join(','), devid, (line) => {
          warning ??= line;
        });
        vif = withVifDefaults(vif, readXlConf(context.err));
      } catch (error) {
        if (error instanceof ConfigError) throw new CommandError(error.message);
        throw error;
      }
      // In a config this is passed over; here it is an error.
      if (warning !== null) throw new CommandError(warning);
      if (context.dryRun) {
        context.out(`vif: ${libxlJson(vifJson(vif))}`);
        return 0;
      }
      const backend = await backendDomid(store, vif.backendDomain);
      await plugDevice(store, domid, { ...vifNodes(vif, vif.mac ?? makeUpMac()), backendDomid: backend });
      return 0;
    });
  },
};

export const networkList: Command = {
  name: 'network-list',
  modifies: false,
  canDryRun: false,
  summary: 'List virtual network interfaces for a domain',
  usage: '<Domain(s)>',
  options: '',
  async run(words, context) {
    const parsed = readWords(networkList, words, { letters: '' }, 1, context);
    if (typeof parsed === 'number') return parsed;
    context.out('Idx BE Mac Addr.         handle state evt-ch   tx-/rx-ring-ref BE-path                       \n');
    return await withStore(context, async (store) => {
      for (const word of parsed.operands) {
        const { domid } = await findDomain(store, word);
        for (const { id, backendId, state, frontend, backendPath } of await devicesOf(store, domid, 'vif')) {
          const handle = String(numberIn(frontend('handle'))).padStart(6);
          // -1 where the guest has one channel for each direction.
          const channel = String(numberIn(frontend('event-channel'))).padStart(6);
          const [tx, rx] = [numberIn(frontend('tx-ring-ref')), numberIn(frontend('rx-ring-ref'))];
          const rings = `${String(tx).padStart(5)}/${String(rx).padEnd(11)}`;
          const start = `${String(id).padEnd(3)} ${String(backendId).padEnd(2)} ${frontend('mac') ?? ''}`;
          context.out(`${start}${handle} ${String(state).padStart(5)} ${channel} ${rings} ${backendPath.padEnd(30)}\n`);
        }
      }
      return 0;
    });
  },
};

export const networkDetach: Command = {
  name: 'network-detach',
  modifies: true,
  canDryRun: false,
  summary: "Destroy a domain's virtual network device",
  usage: '<Domain> <DevId|mac>',
  options: '',
  async run(words, context) {
    const parsed = readWords(networkDetach, words, { letters: '' }, 2, context);
    if (typeof parsed === 'number') return parsed;
    const [word, which] = parsed.operands;
    return await withStore(context, async (store) => {
      const { domid } = await findDomain(store, word);
      const isMac = which.includes(':');
      const device = (await devicesOf(store, domid, 'vif')).find(({ id, frontend }) =>
        isMac ? frontend('mac')?.toLowerCase() === which.toLowerCase() : String(id) === which,
      );
      if (device === undefined) throw new CommandError(`Unknown device ${which}.`);
      await unplugAndRemove(store, domid, {
        kind: 'vif',
        backendKind: 'vif',
        id: device.id,
        backend: {},
        frontend: {},
        backendDomid: Number(device.backendPath.split('/')[3]),
      });
      return 0;
    });
  },
};
