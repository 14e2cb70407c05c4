/**
 * `node scripts/soak.ts [--boots N] [--vcpus N] [KERNEL_PACKAGE[@SUITE] ...]`: boots each kernel N times in a row and compares what its
 * dmesg says between boots, after masking times, addresses and the order of lines. Any trouble the kernel reports, a difference
 * or an exit code other than 0 is printed, and the exit code is 1.
 */

import { parseArgs } from 'node:util';
import { runGuest } from '../test/boot/guest.ts';

const TROUBLE = /oops|BUG:|Call Trace|detected stall|soft lockup|hung task|WARNING: CPU|general protection/i;
/** What Linux says once on a host that has much else to do: no boot is another one for it. */
const BUSY = /hrtimer: interrupt took/;
const SCRIPT = 'dmesg -r 2>/dev/null | sed "s/^<[0-9]*>//" || dmesg; echo SOAK-END; cat /proc/interrupts | wc -l';

/** Lines without what differs from boot to boot for good reasons: times, addresses, measured rates, counts of bytes freed. */
function masked(console: string): string[] {
  const start = console.lastIndexOf('Linux version');
  const from = console.lastIndexOf('\n', start) + 1;
  const text = console.slice(from, console.indexOf('SOAK-END'));
  return text
    .split('\n')
    .filter((line) => !BUSY.test(line))
    .map((line) =>
      line
        .replace(/^\[ *\d+\.\d+\] /, '')
        .replace(/audit\([\d.:]+\)/g, 'audit(T)')
        .replace(/0x[0-9a-f]{6,}/g, '0xX')
        .replace(/\b[0-9a-f]{16}\b/g, 'X')
        .replace(/\b\d+\.\d+ (MHz|BogoMIPS)/g, 'N $1')
        .replace(/lpj=\d+/g, 'lpj=N')
        .replace(/sched_clock: Marking stable .*/, 'sched_clock: Marking stable')
        .replace(/max_cycles: \S+ max_idle_ns: \d+ ns/, 'max_cycles')
        .replace(/Memory: \d+K\/\d+K available .*/, 'Memory:')
        .replace(/ \d+ (usecs|ns|us|ms)\b/g, ' N $1')
        .trimEnd(),
    )
    .sort();
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { boots: { type: 'string', default: '20' }, vcpus: { type: 'string', default: '2' } },
});
const kernels =
  positionals.length > 0
    ? positionals
    : ['linux-image-cloud-amd64', 'linux-image-amd64', 'linux-image-amd64@bookworm-backports'];
let failed = false;
for (const kernel of kernels) {
  const [kernelPackage, suite] = kernel.split('@');
  let first: string[] | null = null;
  let differences = 0;
  const seconds: number[] = [];
  for (let boot = 1; boot <= Number(values.boots); boot++) {
    const start = performance.now();
    const run = await runGuest({
      kernelPackage: kernelPackage ?? '',
      ...(suite === undefined ? {} : { suite }),
      script: SCRIPT,
      overrides: [`vcpus=${values.vcpus}`],
    });
    seconds.push((performance.now() - start) / 1000);
    const trouble = run.console.split('\n').filter((line) => TROUBLE.test(line));
    if (run.code !== 0 || trouble.length > 0) {
      failed = true;
      console.log(
        `${kernel} boot ${boot}: exit ${run.code}\n${trouble.join('\n')}\n${run.console.slice(-3000)}\n${run.log.slice(-3000)}`,
      );
      continue;
    }
    const lines = masked(run.console);
    if (first === null) first = lines;
    else {
      const before = first;
      const news = lines.filter((line) => !before.includes(line)).map((line) => `+ ${line}`);
      const gone = before.filter((line) => !lines.includes(line)).map((line) => `- ${line}`);
      if (news.length + gone.length > 0) {
        differences++;
        console.log(`${kernel} boot ${boot} differs:\n${[...gone, ...news].join('\n')}`);
      }
    }
  }
  if (differences > 0) failed = true;
  seconds.sort((a, b) => a - b);
  console.log(
    `${kernel}: ${seconds.length} boots, ${differences} differ, ${first?.length ?? 0} lines of dmesg; seconds min ${seconds[0]?.toFixed(1)} ` +
      `median ${seconds[seconds.length >> 1]?.toFixed(1)} max ${seconds.at(-1)?.toFixed(1)}`,
  );
}
process.exitCode = failed ? 1 : 0;
