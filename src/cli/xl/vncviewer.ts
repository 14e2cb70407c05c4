/** `xl vncviewer`: runs the viewer that is called so on a domain's display. Source: xl(1); libxl_console.c, libxl_vncviewer_exec (behaviour). */

import { spawn } from 'node:child_process';
import { FIRST_VNC_PORT } from '../../toolstack/config/framebuffer.ts';
import { type Command, type Context, readWords } from './command.ts';
import { CommandError, findDomain, withStore } from './domains.ts';

export const vncviewer: Command = {
  name: 'vncviewer',
  modifies: false,
  canDryRun: false,
  summary: "Attach to domain's VNC server.",
  usage: [
    '[options] <Domain>',
    '--autopass               Pass VNC password to viewer via stdin and',
    '                         -autopass',
    '--vncviewer-autopass     (consistency alias for --autopass)',
  ].join('\n'),
  options: '',

  async run(words, context) {
    const long = [
      { name: 'autopass', takesValue: false, key: 'a' },
      { name: 'vncviewer-autopass', takesValue: false, key: 'a' },
    ];
    const parsed = readWords(vncviewer, words, { letters: '', long }, 1, context);
    if (typeof parsed === 'number') return parsed;
    return await withStore(context, async (store) => {
      const { domid } = await findDomain(store, parsed.operands[0]);
      return await showDisplay(domid, parsed.options.length > 0, context);
    });
  },
};

/** Starts the viewer, which goes on by itself. */
export async function showDisplay(domid: number, autopass: boolean, context: Context): Promise<number> {
  return await withStore(context, async (store) => {
    const console = `/local/domain/${domid}/console`;
    const port = Number(await store.read(`${console}/vnc-port`));
    if (port === 0) throw new CommandError(`libxl: error: Domain ${domid}:Unable to get vnc-port: it has no display`);
    const listen = (await store.read(`${console}/vnc-listen`)) ?? '127.0.0.1';
    const password = autopass ? await store.read(`/local/domain/0/backend/vfb/${domid}/0/vncpasswd`) : null;
    const args = [
      `${listen.includes(':') ? `[${listen}]` : listen}:${port - FIRST_VNC_PORT}`,
      ...(password === null ? [] : ['-autopass']),
    ];
    const child = spawn('vncviewer', args, {
      detached: true,
      stdio: [password === null ? 'ignore' : 'pipe', 'ignore', 'ignore'],
    });
    const failure = await new Promise<Error | null>((resolve) => {
      child.once('error', resolve);
      child.once('spawn', () => resolve(null));
    });
    if (failure !== null)
      throw new CommandError(`xl: cannot run vncviewer (${failure.message}); the display is at ${args[0]}`);
    child.stdin?.end(`${password}\n`);
    child.unref();
    return 0;
  });
}
