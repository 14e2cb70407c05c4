/** extlinux.conf, syslinux.cfg, isolinux.cfg. Source: Syslinux wiki, "Config". */
import type { BootEntry, BootMenu } from './boot-menu.ts';

/** @param folder where the file is: names without a slash in front are relative to it */
export function parseExtlinuxConfig(text: string, folder: string): BootMenu {
  const entries: BootEntry[] = [];
  let defaultEntry = '0';
  let label: { id: string; title: string; kernel?: string; args: string; ramdisks: string[] } | undefined;
  let globalAppend = '';
  const pathOf = (name: string): string => (name.startsWith('/') ? name : `${folder === '/' ? '' : folder}/${name}`);
  const finish = (): void => {
    if (label === undefined) return;
    const words = (label.args || globalAppend).split(/\s+/).filter(Boolean);
    const given = words.filter((word) => word.startsWith('initrd=')).flatMap((word) => word.slice(7).split(','));
    const ramdisks = (label.ramdisks.length > 0 ? label.ramdisks : given).filter(Boolean).map(pathOf);
    const args = words.filter((word) => !word.startsWith('initrd=')).join(' ');
    const kernel = label.kernel === undefined ? undefined : pathOf(label.kernel);
    entries.push({ title: label.title, id: label.id, submenus: [], kernel, ramdisks, args });
  };
  for (const line of text.split('\n').map((each) => each.trim())) {
    if (line === '' || line.startsWith('#')) continue;
    const [, word = '', rest = ''] = /^(\S+)\s*(.*)$/s.exec(line) ?? [];
    const command = word.toLowerCase();
    if (command === 'label') {
      finish();
      label = { id: rest, title: rest, args: '', ramdisks: [] };
    } else if (command === 'default' || command === 'ontimeout') defaultEntry = rest;
    else if (label === undefined) {
      if (command === 'append') globalAppend = rest;
    } else if (command === 'kernel' || command === 'linux') label.kernel = rest;
    else if (command === 'initrd') label.ramdisks = rest.split(',');
    else if (command === 'append') label.args = rest === '-' ? '' : rest;
    else if (command === 'menu') {
      const [, what = '', value = ''] = /^(\S+)\s*(.*)$/s.exec(rest) ?? [];
      if (what.toLowerCase() === 'label') label.title = value.replaceAll('^', '');
      else if (what.toLowerCase() === 'default') defaultEntry = label.id;
    }
  }
  finish();
  return { entries, defaultEntry };
}
