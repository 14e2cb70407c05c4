/**
 * The demo guest's own files: /init, which prepares the system, and what busybox's init runs after it.
 *
 * /init mounts the kernel's file systems, loads the frontends, starts the network in the background, and then does one of
 * three things that the kernel command line chooses:
 *
 * | command line | what happens |
 * |---|---|
 * | `root=/dev/xvda` (also UUID=, LABEL=; `rootfstype=`, `rw`, `init=` as usual) | mounts it and switches to its /sbin/init |
 * | `domus.run=BASE64` | runs the base64-decoded shell script with its output on the console, prints `domus: script ended with STATUS`, powers off |
 * | neither | prints `domus: shell on hvc0` and gives a root shell there, again and again |
 *
 * A command line has at most 1023 characters (MAX_GUEST_CMDLINE in xen/include/public/xen.h), so scripts are short.
 *
 * In the last two cases process 1 becomes busybox's init. It gives the shell a session, a controlling terminal and default
 * signals; a shell script as process 1 cannot, because what it starts in the background ignores Ctrl-C for good (POSIX
 * 2.12). It also makes `poweroff`, `reboot` and `halt` work without -f, and with them `xl shutdown`, for which the kernel
 * runs /sbin/poweroff. Source: busybox init/init.c and init/halt.c.
 */

/** Printed just before the interactive shell starts. Tests wait for it. */
export const SHELL_MARKER = 'domus: shell on hvc0';

/** Folders the archive has; everything else is made by the script. */
export const GUEST_FOLDERS: readonly string[] = [
  'bin',
  'dev',
  'etc',
  'lib',
  'lib/modules',
  'mnt',
  'newroot',
  'proc',
  'root',
  'run',
  'sbin',
  'sys',
  'tmp',
  'usr',
  'usr/bin',
  'usr/lib',
  'usr/sbin',
  'var',
];

/** Small files of the guest, by name. */
export const GUEST_FILES: Readonly<Record<string, string>> = {
  'etc/passwd': 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n',
  'etc/group': 'root:x:0:\ntty:x:5:\nnogroup:x:65534:\n',
  'etc/hostname': 'domus\n',
  'etc/inittab': 'hvc0::respawn:-/etc/console\n::ctrlaltdel:/sbin/reboot\n',
  'etc/hosts': '127.0.0.1 localhost domus\n::1 localhost\n',
  'etc/profile': "export PATH=/usr/sbin:/usr/bin:/sbin:/bin\nexport PS1='\\u@\\h:\\w\\$ '\nalias ll='ls -l'\n",
};

/**
 * Called by udhcpc. Takes back only the address that it has given: one that somebody has set by hand meanwhile stays.
 * Source: busybox examples/udhcp/simple.script describes the variables.
 */
export const UDHCPC_SCRIPT = `#!/bin/sh
lease=/run/udhcpc.$interface
case $1 in
deconfig)
  [ ! -s "$lease" ] || ip address delete "$(cat "$lease")" dev "$interface"
  rm -f "$lease"
  ip link set "$interface" up
  ;;
bound|renew)
  ip address replace "$ip/\${mask:-24}" \${broadcast:+broadcast "$broadcast"} dev "$interface"
  echo "$ip/\${mask:-24}" >"$lease"
  for gateway in $router; do
    ip route replace default via "$gateway" dev "$interface"
    break
  done
  : >/etc/resolv.conf
  [ -z "$domain" ] || echo "search $domain" >>/etc/resolv.conf
  for server in $dns; do
    echo "nameserver $server" >>/etc/resolv.conf
  done
  ;;
esac
`;

/** The script itself. /etc/domus-modules lists the modules to load, dependencies first. */
export const INIT_SCRIPT = `#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root

/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
# It makes no link where a package has the program, and says so.
/bin/busybox --install -s 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
ln -sf /proc/mounts /etc/mtab
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
ln -s /proc/self/fd/1 /dev/stdout
ln -s /proc/self/fd/2 /dev/stderr
hostname domus
ip link set lo up

while read -r module; do
  insmod "$module" || echo "domus: cannot load $module"
done </etc/domus-modules
mount -t xenfs xenfs /proc/xen 2>/dev/null

root= rootfstype= rootmode=ro init=/sbin/init script=
for word in $(cat /proc/cmdline); do
  case $word in
  root=*) root=\${word#root=} ;;
  rootfstype=*) rootfstype=\${word#rootfstype=} ;;
  ro|rw) rootmode=$word ;;
  init=*) init=\${word#init=} ;;
  domus.run=*) script=\${word#domus.run=} ;;
  esac
done

# Waits up to ten seconds for the condition given as a command.
await() {
  tries=100
  until "$@"; do
    tries=$((tries - 1))
    [ $tries -gt 0 ] || return 1
    sleep 0.1
  done
}

resolve_root() {
  case $root in
  UUID=*|LABEL=*) device=$(findfs "$root" 2>/dev/null) ;;
  *) device=$root ;;
  esac
  [ -b "$device" ]
}

if [ -n "$root" ]; then
  if ! await resolve_root; then
    echo "domus: root $root did not appear"
  elif ! mount \${rootfstype:+-t "$rootfstype"} -o "$rootmode" "$device" /newroot; then
    echo "domus: cannot mount $device"
  elif [ ! -x "/newroot$init" ] && [ ! -L "/newroot$init" ]; then
    echo "domus: $device has no $init"
    umount /newroot
  else
    mount --move /dev /newroot/dev
    mount --move /sys /newroot/sys
    mount --move /run /newroot/run
    umount /proc/xen 2>/dev/null
    mount --move /proc /newroot/proc
    exec switch_root /newroot "$init"
  fi
fi

(
  set -- /sys/bus/xen/devices/vif-*
  [ -e "$1" ] || exit
  await [ -e /sys/class/net/eth0 ] || exit
  ip link set eth0 up
  exec udhcpc -i eth0 -s /etc/udhcpc.script -t 5 -A 120 -b -S
) >/dev/null 2>&1 </dev/null &

[ -z "$script" ] || echo "$script" | base64 -d >/run/domus-script
[ -c /dev/hvc0 ] || sed -i s/^hvc0/console/ /etc/inittab
exec init
`;

/** Run on the console by busybox's init, again each time it ends. */
export const CONSOLE_SCRIPT = `#!/bin/sh
if [ -e /run/domus-script ]; then
  sh /run/domus-script
  echo "domus: script ended with $?"
  # stty waits until the terminal has sent everything before it changes a setting.
  stty sane
  exec poweroff -f
fi
echo '${SHELL_MARKER}'
cd /root
exec sh -l
`;
