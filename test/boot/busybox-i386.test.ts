/** A guest whose init, shell and tools are Debian's 32-bit busybox, under a 64-bit kernel. */

import { expect, test } from 'vitest';
import { buildGuest } from '../../src/toolstack/guest-image/build.ts';
import { xl } from './guest.ts';

const SCRIPT = `od -An -tx1 -N5 /bin/busybox
busybox head -c 1000000 /dev/zero | busybox sha256sum
busybox seq 1 1000 | busybox awk '{s+=$1*1.5}END{print s}'
busybox sh -c 'i=0; while [ $i -lt 20 ]; do i=$((i+1)); busybox true || echo FORK FAILED; done; echo "ran $i"'
dmesg | busybox grep -iE 'segfault|traps:|oops|BUG:' && echo KERNEL TROUBLE`;
/** SHA-256 of a million zeros. Source: FIPS 180-4; `sha256sum` of any Linux. */
const ZEROS = 'd29751f2649b32ff572b5e0a9f541ea660a50f94ff0beedfb0b692b924cc8025';
const MINUTE_MS = 60_000;

// A KVM with hardware virtualisation is expected to do it too; it has not been tried.
for (const vcpus of [1, 2])
  test(`32-bit busybox runs on wasm with ${vcpus} vCPU(s)`, { timeout: 5 * MINUTE_MS }, async () => {
    const guest = await buildGuest({ packages: ['busybox-static:i386'] });
    const run = Buffer.from(SCRIPT).toString('base64');
    const words = ['create', '-c', guest.config, `cmdline="console=hvc0 domus.run=${run}"`, 'engine="wasm"'];
    const { console: text, log, code } = await xl([...words, `vcpus=${vcpus}`], 4 * MINUTE_MS);
    expect(text, log).toContain('7f 45 4c 46 01');
    for (const line of [ZEROS, '750750', 'ran 20']) expect(text, log).toContain(line);
    expect(text).not.toMatch(/KERNEL TROUBLE|FORK FAILED/);
    expect(code).toBe(0);
  });
