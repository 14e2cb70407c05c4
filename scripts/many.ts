/**
 * `node scripts/many.ts [--guests N] [--memory MIB] [--at-once N] [--engine kvm|wasm]`: starts many small Linux guests on one switch, reaches each by its
 * console and by the network, and measures what they cost: the time to start them, the host's memory beyond their RAM when they are idle, and how long
 * `xl list` takes meanwhile. It prints; nothing is judged.
 */

import { execFile } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { loadavg, tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { connectConsole, domidsIn, pidOf } from '../src/host/domain-client.ts';
import { stopDaemon } from '../src/host/domusd.ts';
import { pidIn } from '../src/host/state-dir.ts';
import { buildGuest } from '../src/toolstack/guest-image/build.ts';
import { endDomains } from '../test/boot/domains.ts';

const XL = fileURLToPath(new URL('../bin/xl.js', import.meta.url));
const LIMIT_MS = 30 * 60_000;
/** When V8 has given back what starting took. */
const IDLE_MS = 60_000;

const { values } = parseArgs({
  options: {
    guests: { type: 'string', default: '64' },
    memory: { type: 'string', default: '80' },
    'at-once': { type: 'string', default: '2' },
    engine: { type: 'string', default: 'auto' },
  },
});
const guests = Number(values.guests);
const root = mkdtempSync(join(tmpdir(), 'domus-many-'));

function xl(...words: string[]): Promise<{ out: string; ms: number }> {
  const startMs = performance.now();
  return new Promise((resolve, reject) => {
    const env = { ...process.env, DOMUS_STATE_DIR: root };
    execFile(process.execPath, [XL, ...words], { env }, (error, out, err) => {
      if (error === null) resolve({ out, ms: performance.now() - startMs });
      else reject(new Error(`xl ${words.join(' ')}: ${err}`));
    });
  });
}

/** Types lines at a console until a text shows; what it showed. */
async function atConsole(domid: number, typed: string, wanted: RegExp): Promise<string> {
  const socket = await connectConsole(domid, root);
  if (socket === null) throw new Error(`domain ${domid} has no console`);
  let shown = '';
  socket.setEncoding('utf8').on('data', (text: string) => {
    shown += text.replaceAll('\r', '');
  });
  socket.write(typed);
  const endMs = performance.now() + LIMIT_MS;
  while (!wanted.test(shown)) {
    if (performance.now() > endMs || socket.destroyed) throw new Error(`domain ${domid}: ${shown.slice(-500)}`);
    await sleep(100);
  }
  socket.destroy();
  return shown;
}

/** Of the mapping that is the guest's RAM there is more: page tables of the engine's, what it maps of others. */
const BESIDE_RAM_KIB = 64 * 1024;

/** MiB: of all, and of the one mapping that is the guest's RAM. Source: proc_pid_smaps(5). */
function memoryOf(pid: number): { readonly pss: number; readonly ram: number } {
  let pss = 0;
  let size = 0;
  let ram = 0;
  for (const line of readFileSync(`/proc/${pid}/smaps`, 'utf8').split('\n')) {
    const range = /^([0-9a-f]+)-([0-9a-f]+) /.exec(line);
    if (range !== null) size = (Number.parseInt(range[2], 16) - Number.parseInt(range[1], 16)) / 1024;
    const kib = Number(/^Pss: +(\d+) kB/.exec(line)?.[1] ?? 0);
    pss += kib;
    const ramKib = Number(values.memory) * 1024;
    if (size >= ramKib && size < ramKib + BESIDE_RAM_KIB && kib > ram) ram = kib;
  }
  return { pss: pss / 1024, ram: ram / 1024 };
}

const median = (numbers: readonly number[]): number => [...numbers].sort((a, b) => a - b)[numbers.length >> 1];

async function listLatency(what: string): Promise<void> {
  const times: number[] = [];
  for (let i = 0; i < 15; i++) times.push((await xl('list')).ms);
  const load = loadavg()[0].toFixed(1);
  console.log(
    `xl list, ${what}: median ${median(times).toFixed(0)} ms, best ${Math.min(...times).toFixed(0)} ms (load ${load})`,
  );
}

try {
  console.log(`state in ${root}`);
  const { config } = await buildGuest();
  await xl('list');
  await listLatency('no guest');
  const startMs = performance.now();
  const seconds = (): string => `${((performance.now() - startMs) / 1000).toFixed(0)} s`;
  let next = 0;
  const creator = async (): Promise<void> => {
    while (next < guests) {
      const words = [
        `name="many-${next++}"`,
        `memory=${values.memory}`,
        'vif=["bridge=many0"]',
        `engine="${values.engine}"`,
      ];
      await xl('create', '-q', config, ...words);
    }
  };
  await Promise.all(Array.from({ length: Number(values['at-once']) }, creator));
  console.log(`${guests} guests created: ${seconds()} (load ${loadavg()[0].toFixed(1)})`);
  await listLatency('guests booting');
  const domids = domidsIn(root);
  await Promise.all(
    domids.map((domid, i) =>
      atConsole(
        domid,
        `ip address add 10.66.0.${i + 1}/16 dev eth0; echo "up $((${i} + 0))"\n`,
        new RegExp(`^up ${i}$`, 'm'),
      ),
    ),
  );
  console.log(`all answer at their consoles: ${seconds()}`);
  const loop = `for i in $(seq ${domids.length}); do ping -c 1 -W 10 10.66.0.$i >/dev/null && echo "reached $i"; done; echo "end $((0))"\n`;
  const reached = (await atConsole(domids[0], loop, /^end 0$/m)).match(/^reached \d+$/gm)?.length ?? 0;
  console.log(`reached by the network: ${reached} of ${domids.length}: ${seconds()}`);
  await sleep(IDLE_MS);
  const memory = domids.map((domid) => memoryOf(pidOf(root, domid) ?? 0));
  const beyond = memory.map(({ pss, ram }) => pss - ram);
  const sum = (numbers: readonly number[]): number => numbers.reduce((total, one) => total + one, 0);
  console.log(
    `memory: PSS ${sum(memory.map(({ pss }) => pss)).toFixed(0)} MiB in all, RAM in use ${sum(memory.map(({ ram }) => ram)).toFixed(0)} MiB; ` +
      `beyond RAM per guest: mean ${(sum(beyond) / beyond.length).toFixed(1)}, median ${median(beyond).toFixed(1)}, most ${Math.max(...beyond).toFixed(1)} MiB`,
  );
  console.log(`domusd: ${memoryOf(pidIn(root) ?? 0).pss.toFixed(0)} MiB`);
  await listLatency(`${guests} idle guests`);
} finally {
  const startMs = performance.now();
  await endDomains(root);
  console.log(`all destroyed: ${((performance.now() - startMs) / 1000).toFixed(0)} s`);
  await stopDaemon(root);
  rmSync(root, { recursive: true });
}
