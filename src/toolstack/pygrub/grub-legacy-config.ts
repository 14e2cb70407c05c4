/** menu.lst and grub.conf of GRUB 0.97. `module` lines, which a Xen entry has, are passed over, as in pygrub. */
import { type BootEntry, type BootMenu, withoutDevice } from './boot-menu.ts';

export function parseGrubLegacyConfig(text: string): BootMenu {
  const entries: BootEntry[] = [];
  let defaultEntry = '0';
  let title: string | undefined;
  let kernel: string | undefined;
  let args = '';
  let ramdisks: string[] = [];
  const finish = (): void => {
    if (title !== undefined) entries.push({ title, id: '', submenus: [], kernel, ramdisks, args });
    kernel = undefined;
    args = '';
    ramdisks = [];
  };
  for (const line of text.split('\n').map((each) => each.trim())) {
    if (line === '' || line.startsWith('#')) continue;
    const [, command = '', rest = ''] = /^([^\s=]+)(?:\s*=\s*|\s+|$)(.*)$/s.exec(line) ?? [];
    if (command === 'title') {
      finish();
      title = rest;
    } else if (title === undefined) {
      if (command === 'default') defaultEntry = /^\d+$/.test(rest) ? rest : '0';
    } else if (command === 'kernel') {
      // Options of GRUB's own may stand before the path.
      const words = rest.split(/\s+/);
      while (words[0]?.startsWith('--')) words.shift();
      kernel = withoutDevice(words[0] ?? '') || undefined;
      args = words.slice(1).join(' ');
    } else if (command === 'initrd') ramdisks = [withoutDevice(rest.split(/\s+/)[0] ?? '')];
  }
  finish();
  return { entries, defaultEntry };
}
