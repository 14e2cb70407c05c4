/**
 * xl: the toolstack's command line. Global options, the table of commands, and the program's entry.
 *
 * Source: xl(1); tools/xl/xl.c main (read for behaviour); recorded output of xl 4.17.
 */

import { useCompileCache } from '../../toolstack/compile-cache.ts';
import { getopt } from '../getopt.ts';
import { blockAttach, blockDetach, blockList } from './block.ts';
import { channelList } from './channel-list.ts';
import type { Command, Context, DomainStarter } from './command.ts';
import { console } from './console.ts';
import { create } from './create.ts';
import { destroy } from './destroy.ts';
import { findCommand, helpText } from './help.ts';
import { debugKeys, dmesg, trigger } from './hypervisor.ts';
import { info } from './info.ts';
import { list } from './list.ts';
import { memMax, memSet } from './memory.ts';
import { domid, domname, rename } from './names.ts';
import { networkAttach, networkDetach, networkList } from './network.ts';
import { dumpCore, migrate, restore, resume, save, suspend } from './not-built.ts';
import { pause, unpause } from './pause.ts';
import { reboot, shutdown } from './shutdown.ts';
import { sysrq } from './sysrq.ts';
import { uptime, vmList } from './uptime.ts';
import { vcpuList, vcpuSet } from './vcpus.ts';
import { vncviewer } from './vncviewer.ts';

/** In the order of xl's own list. */
const COMMANDS: readonly Command[] = [
  ...[create, list, destroy, shutdown, reboot, pause, unpause, console, vncviewer],
  ...[save, migrate, restore, dumpCore, memMax, memSet, vcpuList, vcpuSet, vmList, info, domid, domname, rename],
  ...[trigger, sysrq, debugKeys, dmesg, networkAttach, networkList, networkDetach, channelList],
  ...[blockAttach, blockList, blockDetach, uptime, suspend, resume],
];

export interface Streams {
  readonly out: (text: string) => void;
  readonly err: (line: string) => void;
  /** Instead of the host's; for tests. */
  readonly starter?: DomainStarter;
}

const PROCESS_STREAMS: Streams = {
  out: (text) => process.stdout.write(text),
  err: (line) => process.stderr.write(`${line}\n`),
};

/**
 * Runs one command line, without the program's name, and returns its exit code.
 * An exception that no command expects is a defect of Domus: its stack is printed and the code is 1.
 */
export async function main(argv: string[], streams: Streams = PROCESS_STREAMS): Promise<number> {
  const { events, operands } = getopt(argv, { program: 'xl', letters: 'vftTN', inOrder: true });
  const flags = new Set<string>();
  let verbosity = 0;
  for (const event of events) {
    if (event.kind === 'error') {
      streams.err(event.message);
      streams.err('unknown global option');
      return 1;
    }
    flags.add(event.key);
    if (event.key === 'v') verbosity++;
  }
  const help = (word?: string) => streams.out(helpText(COMMANDS, word));
  const [name, ...words] = operands;
  if (name === undefined) {
    help();
    return 1;
  }
  const command = findCommand(COMMANDS, name);
  if (command === undefined) {
    if (name === 'help') {
      help(words[0]);
      return 0;
    }
    streams.err('command not implemented');
    return 1;
  }
  const dryRun = flags.has('N');
  if (dryRun && !command.canDryRun) {
    streams.err('command does not implement -N (dryrun) option');
    return 1;
  }
  const context: Context = {
    ...streams,
    err: timestamped(streams.err, flags.has('T')),
    dryRun,
    verbosity,
    force: flags.has('f'),
    help,
  };
  try {
    return await command.run(words, context);
  } catch (error) {
    streams.err(
      `xl: this is a defect of Domus: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`,
    );
    return 1;
  }
}

/** -T: libxl's lines get the time and the process behind their level. */
function timestamped(err: (line: string) => void, wanted: boolean): (line: string) => void {
  if (!wanted) return err;
  return (line) => {
    const time = new Date().toISOString().replace('T', ' ').replace(/\..*/, ' UTC');
    err(line.startsWith('libxl: ') ? `${time} [${process.pid}] ${line}` : line);
  };
}

if (import.meta.main) {
  useCompileCache();
  // A reader that has had enough (`xl help | head -1`) is no error.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error;
  });
  process.exitCode = await main(process.argv.slice(2));
}
