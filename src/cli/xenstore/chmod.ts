/** xenstore-chmod: sets the permissions of a node; with -r also of all below it, with -u also of all above it. */
import type { XenstoreNodes } from '../../xenstore/client.ts';
import { type Command, errorText, Failure, leadingNumber, orNull } from './command.ts';

export const chmod: Command = {
  name: 'chmod',
  usage: '[-h] [-u] [-r] [-s] key <mode [modes...]>',
  letters: 'ur',
  usesTransaction: () => true,
  accepts: (operands) => operands > 0,

  async run([key, ...modes], { nodes, options }) {
    const permissions = modes.map((mode) => {
      if (!/^[nrwb]/.test(mode)) throw new Failure(`Invalid permission specification: '${mode.slice(0, 1)}'`);
      // A negative domid goes over the wire as an unsigned number, and is refused there.
      return mode[0] + (leadingNumber(mode.slice(1)) >>> 0);
    });
    await set(key, permissions, nodes);
    if (options.has('u')) await setAbove(key, permissions, nodes);
    if (options.has('r')) await setBelow(key, permissions, nodes);
    return true;
  },
};

async function set(path: string, permissions: readonly string[], nodes: XenstoreNodes): Promise<void> {
  if (path === '') return;
  try {
    await nodes.setPermissions(path, permissions);
  } catch (error) {
    throw new Failure(`Error occurred setting permissions on '${path}': ${errorText(error)}`);
  }
}

async function setAbove(path: string, permissions: readonly string[], nodes: XenstoreNodes): Promise<void> {
  for (let at = path; at !== ''; ) {
    const slash = at.lastIndexOf('/');
    if (slash < 0) throw new Failure(`Unable to locate path separator '/' in '${at}'`);
    at = at.slice(0, slash);
    await set(at, permissions, nodes);
  }
}

async function setBelow(path: string, permissions: readonly string[], nodes: XenstoreNodes): Promise<void> {
  for (const name of (await orNull(nodes.directory(path))) ?? []) {
    const child = `${path}/${name}`;
    await set(child, permissions, nodes);
    await setBelow(child, permissions, nodes);
  }
}
