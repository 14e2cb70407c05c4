/** Debian's own kernels boot to user space on every engine that this machine has. */

import { expect, test } from 'vitest';
import { probeKvm } from '../../src/engine/kvm/self-test.ts';
import { runGuest } from './guest.ts';

const KERNELS = [
  { kernelPackage: 'linux-image-cloud-amd64', version: '6.1.0' },
  { kernelPackage: 'linux-image-amd64', version: '6.1.0' },
  { kernelPackage: 'linux-image-amd64', suite: 'bookworm-backports', version: '6.12.' },
] as const;

const SCRIPT = `
echo "BEGIN"
uname -a
echo "vcpus: $(nproc)"
echo "hypervisor: $(cat /sys/hypervisor/type) $(cat /sys/hypervisor/version/major).$(cat /sys/hypervisor/version/minor)"
cat /proc/interrupts
cat /sys/hypervisor/uuid
head -c 1048576 /dev/zero | sha256sum
i=0; while [ $i -lt 50 ]; do /bin/busybox true || echo "fork failed"; i=$((i+1)); done
dmesg | grep -iE 'oops|BUG:|Call Trace|detected stall|soft lockup|WARNING: CPU' && echo "KERNEL TROUBLE"
echo "END"
`;

/** SHA-256 of 1 MiB of zeros. Source: FIPS 180-4; `sha256sum` of any Linux. */
const ZEROS = '30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58';
const UUID = '12345678-1234-4321-8765-0123456789ab';

const kvm = probeKvm();
const ENGINES = [
  { engine: 'kvm', unusable: kvm.usable ? null : kvm.reason },
  { engine: 'wasm', unusable: null },
] as const;

for (const { engine, unusable } of ENGINES)
  for (const kernel of KERNELS)
    for (const vcpus of [1, 2])
      test(`${kernel.kernelPackage} ${kernel.version} with ${vcpus} vCPU(s) runs to the shell on ${engine}`, async (context) => {
        if (unusable !== null) return context.skip(unusable);
        const overrides = [`vcpus=${vcpus}`, `uuid="${UUID}"`, `engine="${engine}"`];
        const run = await runGuest({ ...kernel, script: SCRIPT, overrides });
        const told = run.console.slice(run.console.indexOf('BEGIN'), run.console.indexOf('END'));
        expect(told, `${run.console}\n${run.log}`).toContain(`Linux domus ${kernel.version}`);
        expect(told).toContain(`vcpus: ${vcpus}`);
        expect(told).toContain('hypervisor: xen 4.17');
        expect(told).toContain(UUID);
        expect(told).toContain(ZEROS);
        expect(told).toMatch(/xen-percpu +-virq +timer0/);
        expect(told).toMatch(/-event +xenbus/);
        expect(told).toMatch(/-event +hvc_console/);
        expect(told).not.toContain('KERNEL TROUBLE');
        expect(told).not.toContain('fork failed');
        expect(run.console).toContain('Hypervisor detected: Xen PV');
        expect(run.code).toBe(0);
      });
