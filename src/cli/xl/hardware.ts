/**
 * Commands for what Domus has not: devices of the host for guests, device models, a security module, high availability. Each says so in one
 * line, with exit code 1; what does not fit the command's usage is refused as for any other.
 *
 * Source: xl(1); recorded help of xl 4.17.
 */

import { type Command, readWords } from './command.ts';

const NO_PCI = 'devices of the host cannot be passed through: guests have no hardware';
const NO_DEVICE_MODEL = 'a PV guest has no device model';
const NO_FLASK = 'there is no Flask security module here';

export const pciAttach = refused(
  'pci-attach',
  'Insert a new pass-through pci device',
  '<Domain> <PCI_SPEC_STRING>',
  NO_PCI,
);
export const pciDetach = refused(
  'pci-detach',
  "Remove a domain's pass-through pci device",
  '<Domain> <PCI_SPEC_STRING>',
  NO_PCI,
);
export const pciAssignableAdd = refused(
  'pci-assignable-add',
  'Make a device assignable for pci-passthru',
  '[options] <BDF>',
  NO_PCI,
  ['-n NAME, --name=NAME    Name the assignable device.', '-h                      Print this help.\n'],
  'n:',
);
export const pciAssignableRemove = refused(
  'pci-assignable-remove',
  'Remove a device from being assignable',
  '[options] <BDF>|NAME',
  NO_PCI,
  [
    '-h                      Print this help.',
    '-r                      Attempt to re-assign the device to the\n                        original driver.',
  ],
  'r',
);

export const pciAssignableList: Command = {
  name: 'pci-assignable-list',
  modifies: false,
  canDryRun: false,
  summary: 'List all the assignable pci devices',
  usage: '[options]',
  options: [
    '-h                      Print this help.',
    '-n, --show-names        Display assignable name where available.\n',
  ].join('\n'),
  async run(words, context) {
    const long = [{ name: 'show-names', takesValue: false, key: 'n' }];
    const parsed = readWords(pciAssignableList, words, { letters: 'n', long }, 0, context);
    if (typeof parsed === 'number') return parsed;
    // As on a host that has the command and no device for it.
    context.err('libxl: error: Looks like pciback driver not loaded');
    return 0;
  },
};

const NO_USB = 'there are no USB controllers for guests here';
export const usbctrlAttach = refused(
  'usbctrl-attach',
  'Create a virtual USB controller for a domain',
  '<Domain> [type=pv] [version=<version>] [ports=<number>]',
  NO_USB,
);
export const usbctrlDetach = refused(
  'usbctrl-detach',
  'Remove the virtual USB controller specified by <DevId> for a domain',
  '<Domain> <DevId>',
  NO_USB,
);
export const usbdevAttach = refused(
  'usbdev-attach',
  'Attach a USB device to a domain',
  '<Domain> hostbus=<busnum> hostaddr=<devnum> [controller=<DevId> [port=<port>]]',
  NO_USB,
);
export const usbdevDetach = refused(
  'usbdev-detach',
  'Detach a USB device from a domain',
  '<Domain> <controller> <port>',
  NO_USB,
);

const NO_VTPM = 'there are no virtual TPMs here';
export const vtpmAttach = refusedPlug(
  'vtpm-attach',
  'Create a new virtual TPM device',
  '<Domain> [uuid=<uuid>] [backend=<BackDomain>]',
  NO_VTPM,
);
export const vtpmDetach = refused(
  'vtpm-detach',
  "Destroy a domain's virtual TPM device",
  '<Domain> <DevId|uuid>',
  NO_VTPM,
);

const KEYBOARD_BY_VFB = 'keyboards come and go with the vfb= of the config';
export const vkbAttach = refusedPlug(
  'vkb-attach',
  'Create a new virtual keyboard device',
  '<Domain> <vkb-spec-component(s)>...',
  KEYBOARD_BY_VFB,
);
export const vkbDetach = refused(
  'vkb-detach',
  "Destroy a domain's virtual keyboard device",
  '<Domain> <DevId>',
  KEYBOARD_BY_VFB,
);

const NO_DISPLAY = 'there are no virtual displays here; vfb= in the config gives a screen';
export const vdisplAttach = refusedPlug(
  'vdispl-attach',
  'Create a new virtual display device',
  "<Domain> [backend=<BackDomain>] [be-alloc=<BackAlloc>] [connectors='<Connectors>']",
  NO_DISPLAY,
  [
    '    BackAlloc  - set to 1 to if backend allocates display buffers',
    "    Connectors - list of connector's description in ID:WxH format,",
    '                 where: ID - unique connector ID, W - connector width,',
    "                 H - connector height: connectors='id0:800x600;id1:1024x768'\n",
  ],
);
export const vdisplDetach = refused(
  'vdispl-detach',
  "Destroy a domain's virtual display device",
  '<Domain> <DevId>',
  NO_DISPLAY,
);

const NO_SOUND = 'there are no virtual sound devices here';
export const vsndAttach = refusedPlug(
  'vsnd-attach',
  'Create a new virtual sound device',
  '<Domain> <vsnd-spec-component(s)>...',
  NO_SOUND,
);
export const vsndDetach = refused(
  'vsnd-detach',
  "Destroy a domain's virtual sound device",
  '<Domain> <DevId>',
  NO_SOUND,
);

export const buttonPress = refused(
  'button-press',
  'Indicate an ACPI button press to the domain',
  '<Domain> <Button>',
  'a PV guest has no ACPI buttons; `xl shutdown` asks it to power off',
  ["<Button> may be 'power' or 'sleep'."],
);
export const qemuMonitorCommand = refused(
  'qemu-monitor-command',
  'Issue a qemu monitor command to the device model of a domain',
  '<Domain> <Command>',
  NO_DEVICE_MODEL,
);

export const getenforce = {
  ...refused('getenforce', 'Returns the current enforcing mode of the Flask Xen security module', '', NO_FLASK),
  modifies: false,
};
export const setenforce = refused(
  'setenforce',
  'Sets the current enforcing mode of the Flask Xen security module',
  '<1|0|Enforcing|Permissive>',
  NO_FLASK,
);
export const loadpolicy = refused(
  'loadpolicy',
  'Loads a new policy into the Flask Xen security module',
  '<policy file>',
  NO_FLASK,
);

export const remus = refused(
  'remus',
  'Enable Remus HA for domain',
  '[options] <Domain> [<host>]',
  'a guest cannot be copied continually to another host',
  [
    '-i MS                   Checkpoint domain memory every MS milliseconds.',
    '-b                      Replicate memory checkpoints to /dev/null, without a host.',
    '-u                      Disable memory checkpoint compression.',
    '-s <sshcommand>         Use <sshcommand> instead of ssh.',
    '-e                      Do not wait in the background for the death of the domain.',
    '-N <netbufscript>       Use netbufscript to set up network buffering.',
    '-F                      Enable unsafe configurations.',
    '-n                      Disable network output buffering.',
    '-d                      Disable disk replication.',
    '-c                      Enable COLO HA.',
    '-p                      Use COLO userspace proxy.',
  ],
  'Fbundi:s:N:ecp',
);
export const devd = refused(
  'devd',
  'Daemon that listens for devices and launches backends',
  '[options]',
  "backends run in each domain's own process; nothing has to be started for them",
  ['-F                      Run in the foreground.', '-p, --pidfile [FILE]    Write PID to pidfile when daemonizing.'],
  'Fp:',
);

function refused(
  name: string,
  summary: string,
  usage: string,
  reason: string,
  options: readonly string[] = [],
  letters = '',
): Command {
  const command: Command = {
    name,
    modifies: true,
    canDryRun: false,
    summary,
    usage,
    options: options.join('\n'),
    async run(words, context) {
      const operandsMin = usage.split(' ').filter((word) => word.startsWith('<')).length;
      const parsed = readWords(command, words, { letters }, operandsMin, context);
      if (typeof parsed === 'number') return parsed;
      context.err(`xl: ${name}: ${reason}`);
      return 1;
    },
  };
  return command;
}

/** xl understands -N for these. */
function refusedPlug(
  name: string,
  summary: string,
  usage: string,
  reason: string,
  options: readonly string[] = [],
): Command {
  return { ...refused(name, summary, usage, reason, options), canDryRun: true };
}
