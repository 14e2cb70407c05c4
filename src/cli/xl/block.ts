/** `xl block-attach`, `block-list` and `block-detach`. Source: xl(1); recorded output of xl 4.17. */

import { backendDomid } from '../../toolstack/backend-domain.ts';
import { type DiskConfig, diskJson, parseDisk, vdevNumber } from '../../toolstack/config/disk.ts';
import { libxlJson } from '../../toolstack/config/domain-config.ts';
import { ConfigError } from '../../toolstack/config/xl-cfg.ts';
import { type DeviceNodes, diskNodes } from '../../toolstack/device-nodes.ts';
import { plugDevice, unplugAndRemove } from '../../toolstack/device-plug.ts';
import { DiskPlaceError, findDisk, numberOfForeignDisk } from '../../toolstack/disk-place.ts';
import { type Command, readWords } from './command.ts';
import { devicesOf, numberIn } from './devices.ts';
import { CommandError, domidOf, findDomain, withStore } from './domains.ts';

export const blockAttach: Command = {
  name: 'block-attach',
  modifies: true,
  canDryRun: true,
  summary: 'Create a new virtual block device',
  usage: '<Domain> <disk-spec-component(s)>...',
  options: '',
  async run(words, context) {
    const parsed = readWords(blockAttach, words, { letters: '' }, 2, context);
    if (typeof parsed === 'number') return parsed;
    const [word, ...specs] = parsed.operands;
    return await withStore(context, async (store) => {
      const { domid } = await findDomain(store, word);
      let disk: DiskConfig;
      try {
        disk = parseDisk('command line', ...specs);
      } catch (error) {
        if (error instanceof ConfigError) throw new CommandError(error.message);
        throw error;
      }
      if (context.dryRun) {
        context.out(`disk: ${libxlJson(diskJson(disk))}`);
        return 0;
      }
      const backend = await backendDomid(store, disk.backendDomain);
      await plugDevice(store, domid, await nodesFor(disk, backend));
      return 0;
    });
  },
};

/** @throws CommandError when there is no such disk */
async function nodesFor(disk: DiskConfig, backendDomid: number): Promise<DeviceNodes> {
  try {
    if (backendDomid !== 0) return { ...diskNodes(disk, numberOfForeignDisk(disk), disk.target ?? ''), backendDomid };
    const { id, path } = await findDisk(disk);
    return diskNodes(disk, id, path);
  } catch (error) {
    if (!(error instanceof DiskPlaceError)) throw error;
    throw new CommandError(
      `libxl: error: ${error.message}\nlibxl: error: unable to add device\nlibxl_device_disk_add failed.`,
    );
  }
}

export const blockList: Command = {
  name: 'block-list',
  modifies: false,
  canDryRun: false,
  summary: 'List virtual block devices for a domain',
  usage: '<Domain(s)>',
  options: '',
  async run(words, context) {
    const parsed = readWords(blockList, words, { letters: '' }, 1, context);
    if (typeof parsed === 'number') return parsed;
    context.out('Vdev  BE  handle state evt-ch ring-ref BE-path                       \n');
    return await withStore(context, async (store) => {
      for (const word of parsed.operands) {
        let domid: number;
        try {
          domid = await domidOf(store, word);
        } catch (error) {
          if (!(error instanceof CommandError)) throw error;
          // xl's own wording here, and no failure.
          context.err(`${word} is an invalid domain identifier`);
          continue;
        }
        for (const { id, backendId, state, frontend, backendPath } of await devicesOf(store, domid, 'vbd')) {
          const columns = [
            String(id).padEnd(5),
            String(backendId).padEnd(3),
            String(domid).padEnd(6),
            String(state).padEnd(5),
            String(numberIn(frontend('event-channel'))).padEnd(6),
            String(numberIn(frontend('ring-ref'))).padEnd(8),
            backendPath.padEnd(30),
          ];
          context.out(`${columns.join(' ')}\n`);
        }
      }
      return 0;
    });
  },
};

export const blockDetach: Command = {
  name: 'block-detach',
  modifies: true,
  canDryRun: false,
  summary: "Destroy a domain's virtual block device",
  usage: '[option] <Domain> <DevId>',
  options: '-f, --force        do not wait for the domain to release the device',
  async run(words, context) {
    const long = [{ name: 'force', takesValue: false, key: 'f' }];
    const parsed = readWords(blockDetach, words, { letters: 'f', long }, 2, context);
    if (typeof parsed === 'number') return parsed;
    const force = context.force || parsed.options.length > 0;
    const [word, vdev] = parsed.operands;
    return await withStore(context, async (store) => {
      const { domid } = await findDomain(store, word);
      const id = vdevNumber(vdev);
      const device = (await devicesOf(store, domid, 'vbd')).find((one) => one.id === id);
      if (device === undefined) throw new CommandError(`Error: Device ${vdev} not connected.`);
      const backendKind = device.backendPath.split('/')[5];
      const nodes = {
        kind: 'vbd',
        backendKind,
        id: device.id,
        backend: {},
        frontend: {},
        backendDomid: Number(device.backendPath.split('/')[3]),
      };
      if (!(await unplugAndRemove(store, domid, nodes, force ? 0 : undefined)) && !force)
        context.err(`libxl: error: Domain ${domid}:the guest did not release ${vdev} in time; it is taken away`);
      return 0;
    });
  },
};
