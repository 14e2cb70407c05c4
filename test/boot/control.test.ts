/** What a toolstack asks of Debian's kernel through xenstore: less memory and more, vCPUs, disks and interfaces, SysRq, and the end. */

import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, expect, test } from 'vitest';
import { stopDaemon } from '../../src/host/domusd.ts';
import { openXenstored } from '../../src/host/xenstored.ts';
import { parseDisk } from '../../src/toolstack/config/disk.ts';
import { parseVif } from '../../src/toolstack/config/network-interface.ts';
import { diskNodes, vifNodes } from '../../src/toolstack/device-nodes.ts';
import { plugDevice, unplugAndRemove } from '../../src/toolstack/device-plug.ts';
import { requestShutdown, sendSysrq, setMemoryTarget, setOnlineVcpus } from '../../src/toolstack/domain-control.ts';
import { buildGuest } from '../../src/toolstack/guest-image/build.ts';
import { XenstoreClient } from '../../src/xenstore/client.ts';
import { ENGINES, whyUnusable } from '../guests/engines.ts';
import { endDomains } from './domains.ts';

const XL = fileURLToPath(new URL('../../src/cli/xl/main.ts', import.meta.url));
const LIMIT_MS = 120_000;

const folder = mkdtempSync(join(tmpdir(), 'domus-control-'));
afterAll(async () => {
  await stopDaemon(folder);
  rmSync(folder, { recursive: true });
});

/** Says again and again what it has, on one line. A vCPU that has come is brought online, as udev does elsewhere. */
const SCRIPT = `
while :; do
  for cpu in /sys/devices/system/cpu/cpu*/online; do [ "$(cat $cpu)" = 1 ] || echo 1 > $cpu; done 2>/dev/null
  echo "cpus=$(nproc) disks=$(ls /sys/block | tr '\\n' ,) nets=$(ls /sys/class/net | tr '\\n' ,) total=$(grep MemTotal /proc/meminfo | tr -dc 0-9) free=$(grep MemFree /proc/meminfo | tr -dc 0-9)"
  sleep 0.3
done
`;

class Guest {
  readonly child: ChildProcess;
  readonly ended: Promise<number | null>;
  shown = '';
  #from = 0;

  constructor(words: readonly string[]) {
    this.child = spawn(process.execPath, [XL, ...words], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, DOMUS_STATE_DIR: folder },
    });
    for (const stream of [this.child.stdout, this.child.stderr])
      stream?.setEncoding('utf8').on('data', (text: string) => {
        this.shown += text.replaceAll('\r', '');
      });
    this.ended = new Promise((resolve) => this.child.on('close', resolve));
  }

  /** Waits for a line that was not there when this was called. */
  async until(pattern: RegExp): Promise<RegExpExecArray> {
    const endMs = performance.now() + LIMIT_MS;
    this.#from = this.shown.length;
    for (;;) {
      const match = pattern.exec(this.shown.slice(this.#from));
      if (match !== null) return match;
      if (performance.now() > endMs || this.child.exitCode !== null)
        throw new Error(`${pattern} did not show; last:\n${this.shown.slice(-2000)}`);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
}

for (const engine of ENGINES)
  test(`a guest on ${engine} does what it is asked to`, async (context) => {
    const unusable = whyUnusable(engine);
    if (unusable !== null) return context.skip(unusable);
    const { config } = await buildGuest();
    const run = Buffer.from(SCRIPT).toString('base64');
    const guest = new Guest([
      'create',
      '-c',
      config,
      `cmdline="console=hvc0 domus.run=${run}"`,
      `engine="${engine}"`,
      'vcpus=1',
      'maxvcpus=2',
    ]);
    try {
      const [, before] = await guest.until(/cpus=1 .*total=(\d+) /);
      const store = new XenstoreClient(await openXenstored(folder));
      const domids = (await store.directory('/local/domain'))!.map(Number).filter((domid) => domid !== 0);
      const domid = Math.max(...domids);

      await setOnlineVcpus(store, domid, 2);
      await guest.until(/cpus=2 /);
      await setOnlineVcpus(store, domid, 1);
      await guest.until(/cpus=1 /);

      // 64 MiB less, and back again.
      await setMemoryTarget(store, domid, (256 - 64) * 1024);
      await guest.until(new RegExp(`total=${Number(before) - 65536} `));
      await setMemoryTarget(store, domid, 256 * 1024);
      await guest.until(new RegExp(`total=${before} `));

      const image = join(folder, `${engine}.img`);
      writeFileSync(image, new Uint8Array(1 << 20));
      const disk = diskNodes(parseDisk('', `${image},raw,xvdb,w`), 51728, image);
      await plugDevice(store, domid, disk);
      await guest.until(/disks=xvdb,/);
      await expect(plugDevice(store, domid, disk)).rejects.toThrow('device vbd 51728 is there already');
      expect(await unplugAndRemove(store, domid, disk)).toBe(true);
      await guest.until(/disks= /);
      // Nobody holds the file any more.
      await plugDevice(store, domid, disk);
      await guest.until(/disks=xvdb,/);
      const missing = diskNodes(parseDisk('', '/nosuch,raw,xvdc,w'), 51744, '/nosuch');
      await expect(plugDevice(store, domid, missing)).rejects.toThrow(
        `Domain ${domid}: unable to add device vbd 51744: Disk vdev=xvdc failed to stat: /nosuch: No such file or directory`,
      );
      const mac = Uint8Array.of(0, 0x16, 0x3e, 1, 2, 3);
      const vif = vifNodes(
        parseVif('', 'script=vif-nat', 0, () => {}),
        mac,
      );
      await plugDevice(store, domid, vif);
      await guest.until(/nets=eth0,/);
      expect(await unplugAndRemove(store, domid, vif)).toBe(true);
      await guest.until(/nets=lo,/);

      await sendSysrq(store, domid, 'h');
      await guest.until(/sysrq: HELP : /);

      await requestShutdown(store, domid, 'poweroff');
      expect(await guest.ended).toBe(0);
      expect(guest.shown).not.toMatch(/Oops|BUG:|Call Trace/);
      store.close();
    } finally {
      await endDomains(folder);
      await guest.ended;
    }
  });
