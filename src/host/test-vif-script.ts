/**
 * For domain-devices.test.ts: interfaces whose scripts are the user's. Run by `unshare -Urn`, so that TAP devices may be made. The
 * argument is a folder with the scripts; what they were told is in there. Prints one JSON object.
 */

import { existsSync, readFileSync } from 'node:fs';
import { FakeGuest } from '../backends/testing.ts';
import { parseVif } from '../toolstack/config/network-interface.ts';
import { unplugAndRemove } from '../toolstack/device-plug.ts';
import { introduceControlDomain } from '../toolstack/xenstore-nodes.ts';
import { XenstoreClient } from '../xenstore/client.ts';
import { linkToStore } from '../xenstore/link.ts';
import { createStore } from '../xenstore/store.ts';
import { DomainDevices } from './domain-devices.ts';

const folder = process.argv[2]!;
const BACKEND = '/local/domain/0/backend/vif/7/0';

const real = createStore();
const store = new XenstoreClient(linkToStore(real));
await introduceControlDomain(store);
real.introduceDomain(7, { gfn: 1, port: 1 }, null);
const log: string[] = [];
const port = new FakeGuest();
const devices = new DomainDevices({
  store,
  port,
  name: 'guest',
  xenstoredPath: null,
  log: (line) => void log.push(line),
});
const vif = (spec: string) => parseVif('x.cfg', spec, 0, () => {});
const interfaces = (): string[] =>
  readFileSync('/proc/self/net/dev', 'latin1')
    .split('\n')
    .map((line) => line.split(':')[0].trim())
    .filter((name) => /^vif/.test(name));
const out: Record<string, unknown> = {};

await devices.addVif(vif(`script=${folder}/good,bridge=lan0,gatewaydev=eth9,mtu=1400`));
out['status'] = await store.read(`${BACKEND}/hotplug-status`);
out['state'] = await store.read(`${BACKEND}/state`);
out['there'] = interfaces();

// The nodes stay, and the device is not Closed, until the script has done its work and the interface is gone.
let toldEarly = false;
await store.watch(`${BACKEND}/state`, 't', async () => {
  if ((await store.read(`${BACKEND}/state`)) !== '6') return;
  if (!existsSync(`${folder}/offline-done`) || interfaces().length > 0) toldEarly = true;
});
const nodes = { kind: 'vif', backendKind: 'vif', id: 0, backend: {}, frontend: {} };
out['released'] = await unplugAndRemove(store, 7, nodes);
out['toldEarly'] = toldEarly;
out['afterUnplug'] = interfaces();

out['failed'] = await devices.addVif(vif(`script=${folder}/bad`)).then(
  () => null,
  (error: Error) => error.message,
);
out['afterFailure'] = interfaces();
out['nodesLeft'] = await store.directory('/local/domain/0/backend/vif/7');

// The end of the domain ends it as well.
await devices.addVif(vif(`script=${folder}/good`));
await devices.close();
out['atEnd'] = interfaces();
out['log'] = log;
process.stdout.write(`${JSON.stringify(out)}\n`);
process.exit(0);
