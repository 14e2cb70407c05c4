/**
 * `node scripts/chaos.ts [--seconds N] [--guests N] [--shells N] [--seed N]`: chaos (test/boot/chaos.ts) for as long as one likes. Prints what was done;
 * exit code 1 if anything was wrong, and then the state folder is kept.
 */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { stopDaemon } from '../src/host/domusd.ts';
import { runChaos } from '../test/boot/chaos.ts';
import { endDomains } from '../test/boot/domains.ts';

const { values } = parseArgs({
  options: {
    seconds: { type: 'string', default: '600' },
    guests: { type: 'string', default: '10' },
    shells: { type: 'string', default: '4' },
    seed: { type: 'string', default: String(Date.now() % 1_000_000) },
  },
});
const root = mkdtempSync(join(tmpdir(), 'domus-chaos-'));
console.log(`seed ${values.seed}, state in ${root}`);
const report = await runChaos({
  root,
  durationMs: Number(values.seconds) * 1000,
  guests: Number(values.guests),
  shells: Number(values.shells),
  seed: Number(values.seed),
  log: (line) => console.log(line),
});
console.log(JSON.stringify(report, null, 2));
if (report.faults.length === 0) {
  await endDomains(root);
  await stopDaemon(root);
  rmSync(root, { recursive: true });
} else process.exitCode = 1;
