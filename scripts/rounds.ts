/**
 * `node scripts/rounds.ts [--saves N] [--migrations N] [--cuts N] [--engine kvm|wasm] [--alternate] [--vcpus N]`: saves and restores a guest under load N times, moves it N times by TLS
 * between two daemons of this machine, and N times more while something on the way is killed or stopped at a moment by chance; with a look at it after each. After a cut the guest
 * must live on one side, and on one only. `--alternate`: each time it goes on by the other engine; it has `engine_may_change`, and its C library is told to keep to
 * what both engines have.
 *
 * The guest compiles with Debian's gcc and runs what it has compiled, computes in all AVX registers, writes to a disk and reads back past the page cache, pings the gateway of its NAT, and
 * has a TCP connection to another guest, on which both ends send numbers and look at every byte. The other guest stays where it is: a cable joins the switches of both
 * daemons. After each round all of that must have gone on, without a wrong byte, and without a line of the kernel's log that was not expected. Exit code 1 at the first
 * that is not so.
 */

import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { loadavg, tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { stopDaemon } from '../src/host/domusd.ts';
import { createKeys, trust } from '../src/host/keys/host-keys.ts';
import { pidIn, switchPath } from '../src/host/state-dir.ts';
import { buildGuest } from '../src/toolstack/guest-image/build.ts';
import { KEEPS_TO_BOTH } from '../test/boot/both-engines.ts';
import { endDomains } from '../test/boot/domains.ts';
import { freePort } from '../test/boot/free-port.ts';
import { untilListening } from '../test/boot/listening.ts';
import { packagesRoot } from '../test/boot/packages-root.ts';
import { doorOf, whereItIs } from '../test/boot/where-it-is.ts';

const XL = fileURLToPath(new URL('../src/cli/xl/main.ts', import.meta.url));
const LIMIT_MS = 15 * 60_000;
const SWITCH = 'rounds0';
/** How long a target keeps what has not come whole. */
const GIVEN_UP_MS = 120_000;
/** A way that stands still for so long is none that is given up. */
const STOP_MS = 4000;
/** That the guest writes and reads back at a time. */
const DISK_BYTES = 1_000_000;
/**
 * What the load does, what blkfront says whenever it hears of a backend that it knows (watches fire when a domain goes on), and lines of a kernel that has been away.
 * Source: Linux drivers/block/xen-blkfront.c blkfront_connect, kernel/time/clocksource.c.
 */
const EXPECTED =
  'drop_caches: 3|crng init done|Setting capacity to|clocksource: (Long readout|timekeeping watchdog|.*wd-.*read-back|Checking clocksource)|hrtimer: interrupt took' +
  // `xl save` asks it to suspend. Source: Linux kernel/power/process.c, drivers/xen/manage.c, drivers/xen/grant-table.c gnttab_resume.
  '|Freezing (user space processes|remaining freezable tasks)|OOM killer (dis|en)abled|suspending xenstore|Restarting tasks|xen:grant_table: Grant tables using version';

/** KVM cannot set the TSC everywhere: it is the host's, and goes on while a domain moves (docs/quirks.md). Linux looks at it and does not use it. */
const EXPECTED_ON_KVM = "|clocksource: +'(xen|tsc)' |tsc: Marking TSC unstable";

const { values } = parseArgs({
  options: {
    saves: { type: 'string', default: '5' },
    migrations: { type: 'string', default: '5' },
    cuts: { type: 'string', default: '0' },
    engine: { type: 'string', default: 'wasm' },
    alternate: { type: 'boolean', default: false },
    vcpus: { type: 'string', default: '1' },
  },
});
const otherThan = (engine: string): string => (engine === 'kvm' ? 'wasm' : 'kvm');
/** By which engines domains go on that come to the one daemon and to the other: the saves leave the guest on the first. */
const FIRST = values.alternate && Number(values.saves) % 2 !== 0 ? otherThan(values.engine) : values.engine;
const ENGINES = [FIRST, values.alternate ? otherThan(FIRST) : FIRST];
const folder = mkdtempSync(join(tmpdir(), 'domus-rounds-'));
const roots = ['a', 'b'].map((name) => join(folder, name));
const say = (line: string): void => console.log(`${new Date().toISOString().slice(11, 19)} ${line}`);

/** What `xl` of a state folder has in its environment; a daemon that it starts, and its domains, have it too. */
const environmentOf = (root: string, engine = ENGINES[roots.indexOf(root)]): NodeJS.ProcessEnv => ({
  ...process.env,
  DOMUS_STATE_DIR: root,
  DOMUS_ENGINE: engine,
});

const xl = (root: string, ...words: string[]): Promise<string> => xlWith(environmentOf(root), ...words);

function xlWith(env: NodeJS.ProcessEnv, ...words: string[]): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [XL, ...words], { env });
    let text = '';
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding('utf8').on('data', (more: string) => {
        text += more;
      });
    child.on('error', reject);
    child.on('close', (code) => {
      if (code === 0) resolve(text);
      else reject(new Error(`xl ${words.join(' ')}: ${code ?? 'killed'}\n${text}`));
    });
  });
}

/** How a guest gets at the tree with gcc, and at its script, which a command line is too short for. */
const start = (name: string): string =>
  `dmesg -n 1; mkdir /g; mount -t ext4 -o ro /dev/xvdb /g; . /g/rounds/${name}.sh`;

/** In both guests: one end of the connection. `more`: what else one does. */
function script(address: string, mode: string, more: string): string {
  return `
mount -t tmpfs tmpfs /g/tmp; mount --bind /dev /g/dev; mount --bind /proc /g/proc
ip link set eth1 up; ip address add ${address}/24 dev eth1
i=0; until dmesg | grep -q 'eth1: link becomes ready' || [ $i = 50 ]; do usleep 100000; i=$((i+1)); done
cd /g/tmp; echo 0 | tee tcp disk cc vec nat >/dev/null; : >bad
base=$(dmesg | wc -l)
chroot /g gcc -O1 -o /tmp/stream /rounds/stream.c || echo 'gcc: stream.c' >>bad
chroot /g /tmp/stream ${mode} 10.9.0.2 /tmp/tcp /tmp/bad &
${more}
n=0
while :; do
  n=$((n+1)); sleep 1
  k=$(dmesg | tail -n +$((base+1)) | grep -vE "${ENGINES.includes('kvm') ? EXPECTED + EXPECTED_ON_KVM : EXPECTED}" | tr '\\n' ';')
  echo "status $n tcp=$(cat tcp) disk=$(cat disk) cc=$(cat cc) vec=$(cat vec) nat=$(cat nat) bad=[$(tr '\\n' ';' <bad)] dmesg=[$k]."
done
`;
}

const LOAD = `
( n=0; while :; do
  n=$((n+1)); head -c ${DISK_BYTES} /dev/urandom >/tmp/a
  dd if=/tmp/a of=/dev/xvda bs=4096 seek=$((n % 50 * 250)) conv=fsync,notrunc 2>/dev/null
  echo 3 >/proc/sys/vm/drop_caches
  dd if=/dev/xvda bs=4096 skip=$((n % 50 * 250)) count=250 2>/dev/null | head -c ${DISK_BYTES} | cmp -s - /tmp/a || echo "disk: round $n reads other bytes" >>bad
  echo $n >disk.new; mv disk.new disk
done ) &
( n=0; first=; while :; do
  n=$((n+1)); chroot /g gcc -O2 -o /tmp/work /rounds/work.c -lm || echo "gcc: round $n" >>bad
  now=$(chroot /g /tmp/work); : \${first:=$now}
  [ "$now" = "$first" ] || echo "gcc: round $n prints $now, not $first" >>bad
  echo $n >cc.new; mv cc.new cc
done ) &
chroot /g gcc -O2 -mavx2 -mfma -o /tmp/vector /rounds/vector.c || echo 'gcc: vector.c' >>bad
for one in a b; do
  ( n=0; first=; while :; do
    n=$((n+1)); now=$(chroot /g /tmp/vector); : \${first:=$now}
    [ "$now" = "$first" ] || echo "vector: round $n prints $now, not $first" >>bad
    [ $one = b ] || { echo $n >vec.new; mv vec.new vec; }
  done ) &
done
( n=0; while :; do
  ping -c 1 -W 30 10.0.2.2 >/dev/null && n=$((n+1)) && echo $n >nat.new && mv nat.new nat || echo "nat: no answer after $n" >>bad
  sleep 1
done ) &
`;

interface Status {
  readonly n: number;
  readonly tcp: number;
  readonly disk: number;
  readonly cc: number;
  readonly vec: number;
  readonly nat: number;
}

/** What a guest said last; null: nothing yet. Throws when it says that something is wrong. */
function statusOf(root: string, name: string): Status | null {
  const path = join(root, 'log', `console-${name}.log`);
  const lines = existsSync(path) ? readFileSync(path, 'utf8').replaceAll('\r', '').split('\n') : [];
  const line = lines.filter((one) => /^status .*\]\.$/.test(one)).at(-1);
  if (line === undefined) return null;
  const match = /^status (\d+) tcp=(\d+) disk=(\d+) cc=(\d+) vec=(\d+) nat=(\d+) bad=\[(.*)\] dmesg=\[(.*)\]\.$/.exec(
    line,
  );
  if (match === null || match[7] !== '' || match[8] !== '') throw new Error(`${name}: ${line}`);
  const [n, tcp, disk, cc, vec, nat] = match.slice(1, 7).map(Number);
  return { n, tcp, disk, cc, vec, nat };
}

/** Resolves when all that the guests do has gone on since `before`. */
async function goneOn(root: string, before: Status | null, peerBefore: Status | null): Promise<Status> {
  const endMs = performance.now() + LIMIT_MS;
  for (; ; await sleep(200)) {
    const [now, peer] = [statusOf(root, 'mover'), statusOf(roots[0], 'peer')];
    const since = (old: Status | null, key: keyof Status, next: Status | null): number =>
      (next?.[key] ?? 0) - (old?.[key] ?? 0);
    if (
      now !== null &&
      (['n', 'tcp', 'disk', 'vec', 'nat'] as const).every((key) => since(before, key, now) > 0) &&
      since(peerBefore, 'tcp', peer) > 0
    )
      return now;
    if (performance.now() > endMs)
      throw new Error(`it does not go on: ${JSON.stringify({ before, now, peerBefore, peer })}`);
  }
}

/** Joins the switches of that name of both daemons, again and again when one of them has died: what comes out of one port goes into the other. */
function plugCable(): { unplug(): void } {
  let isUnplugged = false;
  let ends: Socket[] = [];
  const plug = (): void => {
    if (isUnplugged) return;
    const both = roots.map((root) => connect(switchPath(root)));
    ends = both;
    for (const end of both) {
      end.write(`domus-switch 1 ${SWITCH}\n`);
      end.on('error', () => {});
      end.on('close', () => {
        for (const other of both) other.destroy();
        if (ends === both) setTimeout(plug, 100);
        ends = [];
      });
    }
    both[0].pipe(both[1]);
    both[1].pipe(both[0]);
  };
  plug();
  return {
    unplug: () => {
      isUnplugged = true;
      for (const end of ends) end.destroy();
    },
  };
}

const VICTIMS = ['xl migrate killed', 'door killed', 'xl migrate stopped', 'door stopped', 'daemon killed'] as const;

async function main(): Promise<void> {
  const tree = await packagesRoot(['gcc', 'libc6-dev']);
  mkdirSync(join(tree.folder, 'rounds'), { recursive: true });
  for (const name of ['stream.c', 'vector.c', 'work.c'])
    writeFileSync(join(tree.folder, 'rounds', name), readFileSync(new URL(`rounds/${name}`, import.meta.url)));
  const rounds = join(tree.folder, 'rounds');
  writeFileSync(join(rounds, 'peer.sh'), script('10.9.0.2', 'listen', ''));
  writeFileSync(join(rounds, 'mover.sh'), script('10.9.0.1', 'connect', LOAD));
  for (const name of ['dev', 'proc', 'tmp']) mkdirSync(join(tree.folder, name), { recursive: true });
  const image = join(folder, 'tree.img');
  execFileSync('mke2fs', ['-q', '-F', '-t', 'ext4', '-O', '^has_journal', '-d', tree.folder, image, '1G'], {
    env: { ...process.env, PATH: `${process.env['PATH']}:/usr/sbin:/sbin` },
  });
  const disk = join(folder, 'disk.img');
  writeFileSync(disk, '');
  truncateSync(disk, 64 << 20);
  const ports = [await freePort(), await freePort()];
  roots.forEach((root, i) => {
    mkdirSync(root);
    writeFileSync(join(root, 'xl.conf'), `migration_listen="127.0.0.1:${ports[i]}"\n`);
  });
  const bundle = roots.map((root, i) => createKeys(root, [['127.0.0.1'], ['localhost']][i], 1, false)).join('\n');
  for (const root of roots) trust(root, bundle, 'bundle');

  const { config } = await buildGuest();
  const create = (name: string, engine: string, disks: string): Promise<string> =>
    xlWith(
      environmentOf(roots[0], engine),
      ...[
        'create',
        '-q',
        config,
        `name="${name}"`,
        `engine="${engine}"`,
        `engine_may_change=${values.alternate ? 1 : 0}`,
        `vcpus=${values.vcpus}`,
        'memory=256',
      ],
      ...[
        `cmdline="console=hvc0 ${values.alternate ? KEEPS_TO_BOTH : ''} domus.run=${Buffer.from(start(name)).toString('base64')}"`,
        `disk=[${disks}]`,
      ],
      `vif=["script=vif-nat","bridge=${SWITCH}"]`,
    );
  // The daemons start, each with its engine.
  for (const root of roots) await xl(root, 'list');
  const ro = `"${image},raw,xvdb,r"`;
  await create('peer', values.engine, ro);
  await create('mover', values.engine, `"${disk},raw,xvda,w",${ro}`);
  const cable = plugCable();
  let here = 0;
  let status = await goneOn(roots[here], null, null);
  const first = status;
  say(`both run on ${values.engine}, load ${loadavg()[0].toFixed(1)}: ${JSON.stringify(status)}`);

  const round = async (what: string, act: () => Promise<void>): Promise<void> => {
    const peer = statusOf(roots[0], 'peer');
    const before = statusOf(roots[here], 'mover') ?? status;
    const startMs = performance.now();
    await act();
    const ms = performance.now() - startMs;
    status = await goneOn(roots[here], before, peer);
    say(
      `${what}: ${Math.round(ms)} ms, and on after ${Math.round(performance.now() - startMs)} ms: ${JSON.stringify(status)}`,
    );
  };
  /** That runs the guest. */
  let { engine } = values;
  const file = join(folder, 'mover.save');
  for (let i = 1; i <= Number(values.saves); i++)
    await round(`save and restore ${i}`, async () => {
      await xl(roots[here], 'save', 'mover', file);
      if (values.alternate) engine = otherThan(engine);
      await xlWith(environmentOf(roots[here], engine), 'restore', file);
      say(`on ${engine} now`);
    });
  const target = (): string => `tls:${['127.0.0.1', 'localhost'][1 - here]}:${ports[1 - here]}`;
  const moved = (to: number): void => {
    if (to !== here) rmSync(join(roots[here], 'log', 'console-mover.log'), { force: true });
    here = to;
    engine = ENGINES[to];
  };
  let migrationMs = 5000;
  for (let i = 1; i <= Number(values.migrations); i++)
    await round(`migration ${i}`, async () => {
      const startMs = performance.now();
      const told = await xl(roots[here], '-v', 'migrate', 'mover', target());
      migrationMs = performance.now() - startMs;
      moved(1 - here);
      say(`${/stood still for \d+ ms/.exec(told)?.[0] ?? told}, on ${engine} now`);
    });
  const outcomes = new Map<string, number>();
  for (let i = 1; i <= Number(values.cuts); i++) {
    const victim = VICTIMS[i % VICTIMS.length];
    const afterMs = Math.round(Math.random() * migrationMs * 1.2);
    await round(`cut ${i}, ${victim} after ${afterMs} ms`, async () => {
      const from = here;
      await untilListening(ports[1 - from], GIVEN_UP_MS);
      const env = environmentOf(roots[from]);
      const child = spawn(process.execPath, [XL, 'migrate', 'mover', target()], { stdio: 'ignore', env });
      const ended = once(child, 'close');
      await sleep(afterMs);
      const pid = victim.startsWith('xl')
        ? child.pid
        : victim.startsWith('door')
          ? doorOf(roots[1 - from])
          : pidIn(roots[1 - from]);
      if (pid === undefined || pid === null) throw new Error(`${victim}: no such process`);
      if (child.exitCode !== null) say('it is over already');
      else if (victim.endsWith('killed')) process.kill(pid, 'SIGKILL');
      else {
        process.kill(pid, 'SIGSTOP');
        await sleep(STOP_MS);
        process.kill(pid, 'SIGCONT');
      }
      await ended;
      const { at, how } = await whereItIs({ roots, name: 'mover', xl, limitMs: GIVEN_UP_MS }, from);
      // Without a daemon nobody listens for a moment.
      const mustMove = victim.endsWith('stopped');
      if (mustMove && at === from) throw new Error(`${victim}: it has not moved`);
      const outcome = `${victim}: ${at === from ? 'stayed' : 'moved'}${how === null ? '' : `, after xl ${how}`}`;
      outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
      say(outcome);
      moved(at);
    });
  }
  for (const [outcome, count] of outcomes) say(`${count} times ${outcome}`);
  // The compiler shares a vCPU with all the rest: some rounds may be too few for one run of it.
  for (const endMs = performance.now() + LIMIT_MS; status.cc === first.cc; await sleep(1000)) {
    if (performance.now() > endMs) throw new Error(`nothing was compiled: ${JSON.stringify({ first, status })}`);
    status = statusOf(roots[here], 'mover') ?? status;
  }
  const peer = statusOf(roots[0], 'peer');
  const mb = (bytes: number): string => `${Math.round(bytes / 1e6)} MB`;
  say(
    `${values.saves} saves and restores, ${values.migrations} migrations, ${values.cuts} cuts on ${values.alternate ? 'kvm and wasm in turn' : values.engine}: nothing wrong`,
  );
  say(
    `checked: ${mb((peer?.tcp ?? 0) + status.tcp)} of one TCP connection, which was never lost; ${mb(status.disk * DISK_BYTES)} of the disk; ${status.cc} compilations; ` +
      `${status.vec} runs in AVX registers; ${status.nat} answers through the NAT; 0 lines of the kernel's log that were not expected`,
  );
  cable.unplug();
}

try {
  await main();
} catch (error) {
  if (!(error instanceof Error)) throw error;
  say(error.stack ?? error.message);
  process.exitCode = 1;
} finally {
  for (const root of roots.filter((one) => existsSync(one))) {
    if (process.exitCode === 1)
      for (const name of ['mover', 'peer']) {
        const path = join(root, 'log', `console-${name}.log`);
        if (existsSync(path)) say(`${path}: ${readFileSync(path, 'utf8').slice(-1500)}`);
      }
    await endDomains(root);
    await stopDaemon(root);
  }
  rmSync(folder, { recursive: true, force: true });
}
process.exit();
