/** What a guest does that is saved or moved in the middle of it. */

/**
 * A script for its console that works in rounds: each writes another place of the disk and reads it back from there, pings the gateway of its NAT, and looks for
 * trouble in the kernel's log. Memory is written all the time. `said`: what it says of a round behind its result, in the shell's words.
 */
export const checkedRounds = (said: string): string => `
i=0; until ip -4 address show eth0 | grep -q inet || [ $i = 200 ]; do usleep 100000; i=$((i+1)); done
dmesg -n 1
n=0
while :; do
  n=$((n+1))
  head -c 100000 /dev/urandom >/tmp/a
  dd if=/tmp/a of=/dev/xvda bs=4096 seek=$((n % 20 * 25)) conv=fsync,notrunc 2>/dev/null
  echo 3 >/proc/sys/vm/drop_caches
  dd if=/dev/xvda bs=4096 skip=$((n % 20 * 25)) count=25 2>/dev/null | head -c 100000 | cmp -s - /tmp/a && d=same || d=CHANGED
  ping -c 1 -W 10 10.0.2.2 >/dev/null && p=answered || p=SILENT
  t=$(dmesg | grep -c -iE 'soft lockup|detected stalls|BUG:|Oops|blkfront.*error|netfront.*error')
  echo "round $n $d $p trouble=$t${said}"
done
`;
