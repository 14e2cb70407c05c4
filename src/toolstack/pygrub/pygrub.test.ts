import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { qemuTools } from '../../../test/qemu-tools.ts';
import { openDiskImage } from '../../storage/disk-image.ts';
import { hostFiles } from '../../storage/host/node-file.ts';
import { AptError } from '../guest-image/apt.ts';
import { debianTool } from '../guest-image/debian-tool.ts';
import { chooseEntry } from './boot-menu.ts';
import { parseExtlinuxConfig } from './extlinux-config.ts';
import { parseGrubLegacyConfig } from './grub-legacy-config.ts';
import { parseGrub2Config } from './grub2-config.ts';
import { parsePygrubArgs, pygrub } from './pygrub.ts';

/** As grub-mkconfig of Debian 12 writes it, shortened. */
const DEBIAN = `
set prefix_unused=1
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "\${next_entry}" ] ; then
   set default="\${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="0"
fi

if [ x"\${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
export menuentry_id_option

function savedefault {
  if [ -z "\${boot_once}" ]; then
    saved_entry="\${chosen}"
    save_env saved_entry
  fi
}
function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  else
    insmod efi_gop
  fi
}
if loadfont unicode ; then set gfxmode=auto ; fi
for x in a b; do menuentry "no $x" { linux /no }; done

### BEGIN /etc/grub.d/10_linux ###
menuentry 'Debian GNU/Linux' --class debian --class gnu-linux --class os $menuentry_id_option 'gnulinux-simple-1111' {
	load_video
	insmod gzio
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	set root='hd0,gpt1'
	if [ x$feature_platform_search_hint = xy ]; then
	  search --no-floppy --fs-uuid --set=root --hint-bios=hd0,gpt1  1111
	fi
	echo	'Loading Linux 6.1.0-18-amd64 ...'
	linux	/boot/vmlinuz-6.1.0-18-amd64 root=UUID=1111 ro  quiet "two words" # a comment
	echo	'Loading initial ramdisk ...'
	initrd	/boot/initrd.img-6.1.0-18-amd64
}
submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced-1111' {
	menuentry 'Debian GNU/Linux, with Linux 6.1.0-18-amd64' --class debian $menuentry_id_option 'gnulinux-18-advanced' {
		linux	($root)/boot/vmlinuz-6.1.0-18-amd64 root=UUID=1111 ro
		initrd	/boot/intel-ucode.img /boot/initrd.img-6.1.0-18-amd64
	}
	menuentry 'Debian GNU/Linux, with Linux 6.1.0-18-amd64 (recovery mode)' $menuentry_id_option 'gnulinux-18-recovery' {
		linux	/boot/vmlinuz-6.1.0-18-amd64 root=UUID=1111 ro single
		initrd	/boot/initrd.img-6.1.0-18-amd64
	}
}
if [ "$grub_platform" = "efi" ]; then
	menuentry 'UEFI Firmware Settings' { fwsetup }
fi
menuentry "Other" --hotkey=o {
	extra="b=2   c=3"
	if [ "\${initrdfail}" = 1 ]; then
	  linux /wrong
	elif test -n "$extra" -a ! "$extra" = x; then
	  linux \${prefix}/other a=1 $extra "\${extra}"
	else
	  linux /wrong
	fi
}
`;

describe('grub.cfg', () => {
  const menu = parseGrub2Config(DEBIAN, '/boot/grub');

  test('is run as GRUB on Xen runs it', () => {
    expect(menu.entries).toEqual([
      {
        title: 'Debian GNU/Linux',
        id: 'gnulinux-simple-1111',
        submenus: [],
        kernel: '/boot/vmlinuz-6.1.0-18-amd64',
        ramdisks: ['/boot/initrd.img-6.1.0-18-amd64'],
        args: 'root=UUID=1111 ro quiet two words',
      },
      {
        title: 'Debian GNU/Linux, with Linux 6.1.0-18-amd64',
        id: 'gnulinux-18-advanced',
        submenus: ['Advanced options for Debian GNU/Linux'],
        kernel: '/boot/vmlinuz-6.1.0-18-amd64',
        ramdisks: ['/boot/intel-ucode.img', '/boot/initrd.img-6.1.0-18-amd64'],
        args: 'root=UUID=1111 ro',
      },
      {
        title: 'Debian GNU/Linux, with Linux 6.1.0-18-amd64 (recovery mode)',
        id: 'gnulinux-18-recovery',
        submenus: ['Advanced options for Debian GNU/Linux'],
        kernel: '/boot/vmlinuz-6.1.0-18-amd64',
        ramdisks: ['/boot/initrd.img-6.1.0-18-amd64'],
        args: 'root=UUID=1111 ro single',
      },
      { title: 'Other', id: '', submenus: [], kernel: '/boot/grub/other', ramdisks: [], args: 'a=1 b=2 c=3 b=2   c=3' },
    ]);
    expect(menu.defaultEntry).toBe('0');
  });

  test.for([
    ['0', undefined, 0],
    ['1', undefined, 1],
    ['Other', undefined, 3],
    ['gnulinux-18-recovery', undefined, 2],
    ['Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux 6.1.0-18-amd64', undefined, 1],
    ['gnulinux-advanced-1111>gnulinux-18-recovery', undefined, 2],
    ['1>1', undefined, 2],
    ['7', undefined, 0],
    ['no such thing', undefined, 0],
    ['0', '2', 2],
    ['0', 'Other', 3],
    ['1', 'no such thing', 1],
    ['1', '99', 1],
  ] as const)('with the default %s, and %s asked for, entry %d is booted', ([defaultEntry, wanted, index]) => {
    expect(chooseEntry({ ...menu, defaultEntry }, wanted)).toBe(index);
  });

  test('a saved default counts as none', () => {
    expect(parseGrub2Config('set default="$saved_entry"\nmenuentry "a" { linux /k }', '/').defaultEntry).toBe('0');
  });

  test('whatever is written in it, there is an end', () => {
    for (const text of [
      '}',
      '{{{{',
      'if',
      'if [ a',
      'menuentry',
      'menuentry {',
      '"',
      "'",
      '\\',
      '${',
      'fi fi',
      'function',
      'for',
      '$',
      'if true; then menuentry a {',
    ]) {
      parseGrub2Config(text, '/');
      parseGrub2Config(`${text}\nmenuentry "x" { linux /k ; }`, '/');
    }
    expect(() => parseGrub2Config('{ '.repeat(10_000), '/')).toThrow(/nested deeper/);
    expect(() => parseGrub2Config('if '.repeat(10_000), '/')).toThrow(/nested deeper/);
  });
});

test('menu.lst of GRUB legacy', () => {
  const menu = parseGrubLegacyConfig(`# comment
default=1
timeout 5
title Xen
	root (hd0,0)
	kernel /boot/xen.gz
	module /boot/vmlinuz ro
title		Debian, kernel 2.6.32
	root		(hd0,0)
	kernel --type=linux (hd0,0)/boot/vmlinuz-2.6.32 root=/dev/xvda1 ro  quiet
	initrd		/boot/initrd.img-2.6.32
title Broken
`);
  expect(menu.defaultEntry).toBe('1');
  expect(menu.entries.map(({ title, kernel, ramdisks, args }) => [title, kernel, ramdisks, args])).toEqual([
    ['Xen', '/boot/xen.gz', [], ''],
    ['Debian, kernel 2.6.32', '/boot/vmlinuz-2.6.32', ['/boot/initrd.img-2.6.32'], 'root=/dev/xvda1 ro quiet'],
    ['Broken', undefined, [], ''],
  ]);
});

test('extlinux.conf', () => {
  const menu = parseExtlinuxConfig(
    `DEFAULT virt
PROMPT 0
LABEL grsec
  MENU LABEL Linux ^grsec
  KERNEL vmlinuz-grsec
  APPEND initrd=initramfs-grsec root=UUID=2 modules=ext4
LABEL virt
  LINUX /boot/vmlinuz-virt
  INITRD initramfs-virt
  APPEND root=/dev/xvda1 quiet
`,
    '/boot/extlinux',
  );
  expect(chooseEntry(menu, undefined)).toBe(1);
  expect(menu.entries.map(({ title, kernel, ramdisks, args }) => [title, kernel, ramdisks, args])).toEqual([
    ['Linux grsec', '/boot/extlinux/vmlinuz-grsec', ['/boot/extlinux/initramfs-grsec'], 'root=UUID=2 modules=ext4'],
    ['virt', '/boot/vmlinuz-virt', ['/boot/extlinux/initramfs-virt'], 'root=/dev/xvda1 quiet'],
  ]);
});

test('pygrub’s arguments', () => {
  expect(
    parsePygrubArgs(['-q', '--kernel=/k', '--ramdisk', '/r', '--args=a b=c', '--entry=2', '--offset=512']),
  ).toEqual({
    kernel: '/k',
    ramdisk: '/r',
    args: 'a b=c',
    entry: '2',
    offset: 512,
  });
  expect(() => parsePygrubArgs(['--offset=x'])).toThrow(/must be an integer/);
  expect(() => parsePygrubArgs(['--kernel'])).toThrow(/requires argument/);
  expect(() => parsePygrubArgs(['--output=x'])).toThrow(/--output=x is not supported/);
});

describe('a disk', () => {
  let folder: string;
  const kernel = new Uint8Array(3000).fill(1);
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'domus-pygrub-'));
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  /** A disk with one Linux partition, of the given files, behind an empty one. */
  async function makeDisk(name: string, files: Readonly<Record<string, string | Uint8Array>>): Promise<string> {
    const mke2fs = await debianTool('mke2fs', 'e2fsprogs');
    const tree = join(folder, `${name}-tree`);
    for (const [path, content] of Object.entries(files)) {
      mkdirSync(dirname(join(tree, path)), { recursive: true });
      writeFileSync(join(tree, path), content);
    }
    const partition = join(folder, `${name}-partition`);
    execFileSync(mke2fs.path, ['-q', '-F', '-t', 'ext4', '-d', tree, partition, '4M'], { env: mke2fs.env });
    const disk = new Uint8Array(8 << 20);
    const view = new DataView(disk.buffer);
    view.setUint16(510, 0xaa55, true);
    for (const [index, [start, sectors]] of [
      [2048, 2048],
      [4096, 8192],
    ].entries()) {
      view.setUint8(446 + index * 16 + 4, 0x83);
      view.setUint32(446 + index * 16 + 8, start!, true);
      view.setUint32(446 + index * 16 + 12, sectors!, true);
    }
    disk.set(await readFile(partition), 4096 * 512);
    const path = join(folder, name);
    writeFileSync(path, disk);
    return path;
  }

  const boot = async (path: string, options: Parameters<typeof pygrub>[1] = {}) => {
    const disk = await openDiskImage(hostFiles, path, { format: 'auto', readOnly: true });
    try {
      return await pygrub(disk, options);
    } finally {
      await disk.close();
    }
  };

  test('gives kernel, ramdisk and command line, in every format', async (context) => {
    let path: string;
    try {
      path = await makeDisk('debian.raw', {
        'boot/grub/grub.cfg': DEBIAN,
        'boot/vmlinuz-6.1.0-18-amd64': kernel,
        'boot/initrd.img-6.1.0-18-amd64': 'ramdisk',
        'boot/intel-ucode.img': 'ucode',
      });
    } catch (error) {
      if (error instanceof AptError) return context.skip(error.message);
      throw error;
    }
    const paths = [path];
    const qemu = await qemuTools();
    if (typeof qemu !== 'string') {
      for (const [format, options] of [
        ['qcow2', ['-c']],
        ['vpc', []],
      ] as const) {
        paths.push(`${path}.${format}`);
        await qemu.img('convert', ...options, '-O', format, path, `${path}.${format}`);
      }
    }
    for (const each of paths) {
      const found = await boot(each, { args: 'console=hvc0' });
      expect([found.kernelPath, found.ramdiskPath]).toEqual([
        '/boot/vmlinuz-6.1.0-18-amd64',
        '/boot/initrd.img-6.1.0-18-amd64',
      ]);
      expect(found.cmdline).toBe('root=UUID=1111 ro quiet two words console=hvc0');
      expect(Buffer.compare(found.kernel, kernel)).toBe(0);
      expect(Buffer.from(found.ramdisk!).toString()).toBe('ramdisk');
    }
    const second = await boot(path, { entry: '1' });
    expect(Buffer.from(second.ramdisk!).toString()).toBe('ucode\0\0\0ramdisk\0');
    const own = await boot(path, { kernel: '/boot/intel-ucode.img', args: 'x' });
    expect([Buffer.from(own.kernel).toString(), own.ramdisk, own.cmdline]).toEqual(['ucode', undefined, 'x']);
    expect((await boot(path, { offset: 4096 * 512 })).kernelPath).toBe('/boot/vmlinuz-6.1.0-18-amd64');
    await expect(boot(path, { offset: 0 })).rejects.toThrow(/at 0: no ext2\/3\/4, FAT or ISO 9660 file system/);
    await expect(boot(path, { kernel: '/none' })).rejects.toThrow(/partition 2 \(ext4\): there is no \/none/);
    await expect(boot(path, { entry: 'Other' })).rejects.toThrow(
      /Unable to find partition containing kernel: partition 1: no .* file system; partition 2 \(ext4\): there is no \/boot\/grub\/other/,
    );
  });

  test('without a boot loader is told apart', async (context) => {
    try {
      const path = await makeDisk('empty.raw', { 'etc/fstab': '' });
      await expect(boot(path)).rejects.toThrow(/partition 2 \(ext4\): no configuration of GRUB or extlinux/);
    } catch (error) {
      if (error instanceof AptError) return context.skip(error.message);
      throw error;
    }
  });
});
