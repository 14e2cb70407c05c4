/** `xl vcpu-pin`: the CPUs that vCPUs may use, and prefer. Source: xl(1); recorded output of xl 4.17. */

import { cpus } from 'node:os';
import { pinVcpu } from '../../host/domain-client.ts';
import { readXlConf } from '../../host/xl-conf-file.ts';
import { type CpuSet, formatCpuSet, parseCpuSet } from '../../toolstack/config/cpu-set.ts';
import { ConfigError } from '../../toolstack/config/xl-cfg.ts';
import { maskedCpus, NO_CONF } from '../../toolstack/config/xl-conf.ts';
import { type Command, type Context, readWords } from './command.ts';
import { CommandError, findDomain, tryState, withStore } from './domains.ts';

const LONG = [
  { name: 'force', takesValue: false, key: 'f' },
  { name: 'ignore-global-affinity-masks', takesValue: false, key: 'i' },
];

export const vcpuPin: Command = {
  name: 'vcpu-pin',
  modifies: true,
  canDryRun: true,
  summary: 'Set which CPUs a VCPU can use',
  usage: '[option] <Domain> <VCPU|all> <Hard affinity|-|all> <Soft affinity|-|all>',
  options: [
    '-f, --force        undo an override pinning done by the kernel',
    '--ignore-global-affinity-masks Ignore global masks in xl.conf',
  ].join('\n'),
  async run(words, context) {
    const parsed = readWords(vcpuPin, words, { letters: 'fi', long: LONG }, 3, context);
    if (typeof parsed === 'number') return parsed;
    const [domain, which, hardText, softText = '-'] = parsed.operands;
    const force = context.force || parsed.options.some(({ key }) => key === 'f');
    const hostCpus = cpus().length;
    return await withStore(context, async (store) => {
      const { domid } = await findDomain(store, domain);
      const vcpu = /^\d{1,9}/.exec(which)?.[0];
      if (vcpu === undefined && which !== 'all') throw new CommandError(`Error: Invalid argument ${which} as VCPU.`);
      if (vcpu === undefined && force) throw new CommandError("Error: --force and 'all' as VCPU not allowed.");
      const wanted = readSet(hardText, hostCpus);
      const soft = readSet(softText, hostCpus);
      const ignoreMasks = parsed.options.some(({ key }) => key === 'i');
      const hard = wanted === null || context.dryRun ? wanted : masked(wanted, ignoreMasks, context);
      if (context.dryRun) {
        const shown = [hard, soft].map((set) => (set === null ? '-' : formatCpuSet(set, hostCpus)));
        context.out(`cpumap: ${soft === null ? shown[0] : shown.join(' ')}\n`);
        return 0;
      }
      if (domid === 0) throw new CommandError('libxl: error: Domain 0:the host schedules its vCPUs');
      const count = (await tryState(domid))?.vcpus.length ?? 0;
      const vcpus = vcpu === undefined ? Array.from({ length: count }, (_, id) => id) : [Number(vcpu)];
      for (const id of vcpus) await pin(domid, id, hard, soft);
      return 0;
    });
  },
};

function masked(set: CpuSet, ignoreMasks: boolean, context: Context): CpuSet {
  try {
    return maskedCpus(set, ignoreMasks ? NO_CONF : readXlConf(context.err));
  } catch (error) {
    if (error instanceof ConfigError) throw new CommandError(error.message);
    throw error;
  }
}

/** Null: it stays as it is. */
function readSet(text: string, hostCpus: number): CpuSet | null {
  if (text === '-') return null;
  const set = parseCpuSet(text, hostCpus);
  if (set === null) throw new CommandError(`\`${text}' names no CPUs: expected as in "all", "3" or "0-3,^2"`);
  return set;
}

async function pin(domid: number, vcpu: number, hard: CpuSet | null, soft: CpuSet | null): Promise<void> {
  const change = { vcpu, ...(hard === null ? {} : { hard }), ...(soft === null ? {} : { soft }) };
  try {
    if (await pinVcpu(domid, change)) return;
    throw new CommandError(
      `libxl: error: Domain ${domid}:No such process\nCould not set affinity for vcpu \`${vcpu}'.`,
    );
  } catch (error) {
    if (!(error instanceof Error && error.name === 'DomainClientError')) throw error;
    throw new CommandError(`libxl: error: ${error.message}\nCould not set affinity for vcpu \`${vcpu}'.`);
  }
}
