/** What user programs can see of the CPU's vector state survives the guest's context switches. */

import { gzipSync } from 'node:zlib';
import { expect, test } from 'vitest';
import { probeKvm } from '../../src/engine/kvm/self-test.ts';
import { runGuest } from './guest.ts';

const LOAD_ADDRESS = 0x400000;

/**
 * An ELF program that fills ymm0-ymm15 with its process id, and 400 times yields the CPU, computes a while and compares all
 * 512 bytes. Exit code 0: nothing was lost; 1: something was. Encodings: Intel SDM vol. 2.
 */
function ymmProgram(): Uint8Array {
  const code: number[] = [];
  const jumpsToFail: number[] = [];
  const imm32 = (value: number): number[] => [0, 8, 16, 24].map((shift) => (value >>> shift) & 0xff);
  const patch = (at: number, target: number): void => {
    code.splice(at, 4, ...imm32(target - (at + 4)));
  };
  code.push(0xb8, ...imm32(39), 0x0f, 0x05); // getpid
  code.push(0x48, 0x89, 0xc3); // mov rbx, rax
  code.push(0xc4, 0xe1, 0xf9, 0x6e, 0xc0); // vmovq xmm0, rax
  code.push(0xc4, 0xe2, 0x7d, 0x59, 0xc0); // vpbroadcastq ymm0, xmm0
  for (let n = 1; n < 16; n++) code.push(0xc5, n < 8 ? 0xfd : 0x7d, 0x6f, 0xc0 | ((n & 7) << 3)); // vmovdqa ymmN, ymm0
  code.push(0x41, 0xbc, ...imm32(400)); // mov r12d, 400
  const again = code.length;
  code.push(0xb8, ...imm32(24), 0x0f, 0x05); // sched_yield
  code.push(0xb9, ...imm32(200_000), 0xff, 0xc9, 0x75, 0xfc); // mov ecx; dec ecx; jnz
  for (let n = 0; n < 16; n++) {
    code.push(0xc5, n < 8 ? 0xfe : 0x7e, 0x7f, 0x44 | ((n & 7) << 3), 0x24, 0xc0); // vmovdqu [rsp-64], ymmN
    for (const displacement of [0xc0, 0xc8, 0xd0, 0xd8]) {
      code.push(0x48, 0x3b, 0x5c, 0x24, displacement, 0x0f, 0x85, 0, 0, 0, 0); // cmp rbx, [rsp+d]; jne fail
      jumpsToFail.push(code.length - 4);
    }
  }
  code.push(0x41, 0xff, 0xcc, 0x0f, 0x85, 0, 0, 0, 0); // dec r12d; jnz again
  patch(code.length - 4, again);
  code.push(0x31, 0xff, 0xb8, ...imm32(60), 0x0f, 0x05); // exit(0)
  for (const at of jumpsToFail) patch(at, code.length);
  code.push(0xbf, ...imm32(1), 0xb8, ...imm32(60), 0x0f, 0x05); // fail: exit(1)

  const bytes = new Uint8Array(120 + code.length);
  const view = new DataView(bytes.buffer);
  bytes.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  view.setUint16(16, 2, true); // ET_EXEC
  view.setUint16(18, 62, true); // EM_X86_64
  view.setUint32(20, 1, true);
  view.setBigUint64(24, BigInt(LOAD_ADDRESS + 120), true);
  view.setBigUint64(32, 64n, true);
  view.setUint16(52, 64, true);
  view.setUint16(54, 56, true);
  view.setUint16(56, 1, true);
  view.setUint32(64, 1, true); // PT_LOAD
  view.setUint32(68, 5, true);
  view.setBigUint64(80, BigInt(LOAD_ADDRESS), true);
  view.setBigUint64(88, BigInt(LOAD_ADDRESS), true);
  view.setBigUint64(96, BigInt(bytes.length), true);
  view.setBigUint64(104, BigInt(bytes.length), true);
  view.setBigUint64(112, 0x1000n, true);
  bytes.set(code, 120);
  return bytes;
}

const probe = probeKvm();
const kvm = !probe.usable ? probe.reason : (probe.facts.xcr0Mask & 4) === 0 ? 'this CPU has no AVX' : null;
const ENGINES = [
  { engine: 'kvm', unusable: kvm },
  { engine: 'wasm', unusable: null },
] as const;

for (const { engine, unusable } of ENGINES)
  test(`two processes that hold YMM registers keep them over context switches on ${engine}`, async (context) => {
    if (unusable !== null) return context.skip(unusable);
    // gzip keeps the script below what a kernel command line holds.
    const program = gzipSync(ymmProgram(), { level: 9 }).toString('base64');
    const script = `echo ${program} | base64 -d | gzip -d > /tmp/ymm; chmod +x /tmp/ymm
/tmp/ymm & a=$!; /tmp/ymm & b=$!
wait $a; echo "first: $?"; wait $b; echo "second: $?"`;
    const run = await runGuest({ script, overrides: ['vcpus=1', `engine="${engine}"`] });
    expect(run.console, run.log).toContain('first: 0');
    expect(run.console).toContain('second: 0');
    expect(run.code).toBe(0);
  });
