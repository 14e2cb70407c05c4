/** What was said of an interface holds: for one that is plugged in later, and behind `xl save` and `xl restore`. */

import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { hostBridges } from '../../src/host/domain-network.ts';
import { stopDaemon } from '../../src/host/domusd.ts';
import { buildGuest } from '../../src/toolstack/guest-image/build.ts';
import { ENGINES, whyUnusable } from '../guests/engines.ts';
import { consoleLog, consoleSays, endDomains } from './domains.ts';
import { freePort } from './free-port.ts';
import { type GuestRun, xl as runXl } from './guest.ts';

const LIMIT_MS = 120_000;
const root = mkdtempSync(join(tmpdir(), 'domus-kept-'));
afterAll(async () => {
  await endDomains(root);
  await stopDaemon(root);
  rmSync(root, { recursive: true });
});

const xl = (...words: string[]): Promise<GuestRun> => runXl(words, LIMIT_MS, { ...process.env, DOMUS_STATE_DIR: root });

/** Says each round whether somebody gives eth0 an address, and whether the host's loopback is behind eth1's router. */
const script = (port: number): string => `
mkdir /tmp/www; echo from the guest >/tmp/www/page; httpd -p 80 -h /tmp/www
n=0; while :; do n=$((n+1))
if [ -e /sys/class/net/eth1 ]; then ip address add 10.0.3.15/24 dev eth1; ip link set eth1 up; fi 2>/dev/null
first=isolated; udhcpc -n -q -t 2 -T 1 -i eth0 -s /bin/true >/dev/null 2>&1 && first=lease
second=none; ping -c 1 -W 2 10.0.3.2 >/dev/null 2>&1 && second=there
host=away; wget -q -T 3 -O - http://10.0.3.2:${port}/ >/dev/null 2>&1 && host=reached
echo "round $n $first $second $host"; sleep 0.3; done
`;

const rounds = (name: string): string[] => consoleLog(root, name).match(/^round .*\n/gm) ?? [];

for (const engine of ENGINES)
  test(`an isolated guest stays so, and an interface that was attached has its forward and no loopback, on ${engine}`, async (context) => {
    const unusable = whyUnusable(engine);
    if (unusable !== null) return context.skip(unusable);
    if (hostBridges().isBridge('xenbr0')) return context.skip('this host has a bridge xenbr0');
    const server = createServer((_, response) => response.end('from the host')).listen(0, '127.0.0.1');
    await once(server, 'listening');
    try {
      const { config } = await buildGuest();
      const name = `kept-${engine}`;
      const run = Buffer.from(script((server.address() as AddressInfo).port)).toString('base64');
      const created = await xl(
        ...['create', '-q', config, `name="${name}"`, `engine="${engine}"`, 'vif=["bridge=xenbr0"]'],
        `cmdline="console=hvc0 domus.run=${run}"`,
      );
      expect(created.code, created.log).toBe(0);
      expect(await consoleSays(root, name, /^round \d+ (.*)$/m, LIMIT_MS)).toBe('isolated none away');

      const port = await freePort();
      const attach = ['network-attach', name, 'script=vif-nat', 'loopback=0', `forward=tcp:127.0.0.1:${port}-:80`];
      expect((await xl(...attach)).code).toBe(0);
      // A connection does not outlive a save.
      const headers = { connection: 'close' };
      const page = async (): Promise<string> =>
        await (await fetch(`http://127.0.0.1:${port}/page`, { headers })).text();
      expect(await consoleSays(root, name, /^round \d+ (.* there .*)$/m, LIMIT_MS)).toBe('isolated there away');
      expect(await page()).toBe('from the guest\n');

      const file = join(root, `${name}.saved`);
      expect((await xl('save', name, file)).code).toBe(0);
      const before = rounds(name).length;
      expect((await xl('restore', file)).code).toBe(0);
      // The first one may have begun before.
      await consoleSays(root, name, new RegExp(`^round ${before + 2} `, 'm'), LIMIT_MS);
      expect(await page()).toBe('from the guest\n');
      expect(rounds(name).filter((line) => !/ isolated (none|there) away\n/.test(line))).toEqual([]);
      expect(rounds(name).at(-1)).toContain('there');
      expect((await xl('destroy', name)).code).toBe(0);
    } finally {
      server.close();
    }
  });
