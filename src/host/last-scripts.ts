/**
 * The scripts of a domain's devices, run for the last time: for a domain whose process is gone, and could not do it itself. What they were
 * given by `add` and `online` is there still, and whoever starts the domain again has it given once more.
 *
 * Deviation: libxl runs them when the domain is destroyed, which may be later: nothing uses the devices any more.
 */

import { XenbusStateClosed } from '../abi/io/xenbus.ts';
import { diskFromNodes, vifFromNodes } from '../toolstack/config/device-from-nodes.ts';
import { userScript, vifName } from './domain-network.ts';
import { type HotplugHost, type HotplugScript, runHotplugScript } from './hotplug-script.ts';

/** Before the nodes go. What goes wrong with a script is logged, and holds nothing up. */
export async function runLastScripts(domid: number, host: HotplugHost): Promise<void> {
  const scripts: HotplugScript[] = [];
  for (const backendKind of ['vbd', 'vif']) {
    const folder = `/local/domain/0/backend/${backendKind}/${domid}`;
    for (const id of (await host.store.directory(folder)) ?? []) {
      const script = await lastScript(domid, backendKind, `${folder}/${id}`, host);
      if (script !== null) scripts.push(script);
    }
  }
  await Promise.all(
    scripts.map(async (script) => {
      try {
        await runHotplugScript(script, host);
      } catch (error) {
        if (!(error instanceof Error)) throw error;
        host.log(`${script.backendPath}: ${error.message}`);
      }
    }),
  );
}

/** Null where there is none, or where it has run. */
async function lastScript(
  domid: number,
  backendKind: string,
  backendPath: string,
  { store }: HotplugHost,
): Promise<HotplugScript | null> {
  const names = (await store.directory(backendPath)) ?? [];
  const values = await Promise.all(names.map((name) => store.read(`${backendPath}/${name}`)));
  const nodes = Object.fromEntries(names.map((name, i) => [name, values[i] ?? '']));
  if (nodes['online'] === '0' && nodes['state'] === String(XenbusStateClosed)) return null;
  if (backendKind === 'vbd') {
    const path = diskFromNodes(nodes)?.script ?? null;
    return path === null ? null : { path, words: ['remove'], backendPath };
  }
  const vif = vifFromNodes(nodes);
  const path = vif === null ? null : userScript(vif);
  if (vif === null || path === null) return null;
  const env = { vif: vifName(domid, vif), netdev: vif.gatewaydev ?? '' };
  return { path, words: ['offline', 'type_if=vif'], backendPath, env };
}
