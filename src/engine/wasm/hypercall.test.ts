import { describe, expect, it } from 'vitest';
import { FLAG_EVENT, RAX, RBX, VCPU } from '../../machine/vcpu-block.ts';
import { EXIT_EXCEPTION, EXIT_HANDLED, EXIT_INTERRUPTED, EXIT_SYSCALL } from '../engine.ts';
import { CODE_VA } from '../kvm/test-guest.ts';
import { createWasmGuest } from './test-guest.ts';

/** mov eax, 5; syscall; lea ebx, [rax + 1]; ud2 */
const CODE = [0xb8, 5, 0, 0, 0, 0x0f, 0x05, 0x8d, 0x58, 0x01, 0x0f, 0x0b];
const BEHIND = CODE_VA + 7;
/** stc before and setc bl behind it, with the flags that the hypervisor left. */
const FLAGS_CODE = [0xf9, 0x0f, 0x05, 0x0f, 0x92, 0xc3, 0x0f, 0x0b];
const CF = 1;

function setUp(handle: (guest: ReturnType<typeof createWasmGuest>) => boolean) {
  const guest = createWasmGuest();
  const seen: number[] = [];
  guest.vcpu.onHypercall = () => {
    seen.push(guest.gpr(RAX), guest.word(VCPU.rip), guest.word(VCPU.inGuest));
    return handle(guest);
  };
  /** One run, whatever comes of it. */
  const runOnce = (code: readonly number[]): number => {
    guest.machine.u8.set(code, CODE_VA);
    guest.block.u32[VCPU.rip / 4] = CODE_VA;
    guest.block.u32[VCPU.rip / 4 + 1] = 0;
    return guest.vcpu.run();
  };
  return { guest, seen, runOnce };
}

describe('a hypercall', () => {
  it('does not leave the guest when it goes on behind it', () => {
    const { guest, seen, runOnce } = setUp(() => {
      guest.setGpr(RAX, 41);
      return true;
    });
    expect(runOnce(CODE)).toBe(EXIT_EXCEPTION);
    expect(seen).toEqual([5, BEHIND, 0]);
    expect(guest.gpr(RBX)).toBe(42);
    expect(guest.word(VCPU.exitVector)).toBe(6);
  });

  it('has the flags that the hypervisor leaves', () => {
    const { guest, runOnce } = setUp(() => {
      guest.block.u32[VCPU.rflags / 4] &= ~CF;
      return true;
    });
    guest.setGpr(RBX, 7);
    runOnce(FLAGS_CODE);
    expect(guest.gpr(RBX)).toBe(0);
  });

  it('leaves when the hypervisor does not let the guest go on, with the block as it is', () => {
    const { guest, runOnce } = setUp(() => {
      guest.block.u32[VCPU.rip / 4] = 0x1234;
      guest.block.u32[VCPU.rflags / 4] |= CF;
      return false;
    });
    expect(runOnce(CODE)).toBe(EXIT_HANDLED);
    expect(guest.word(VCPU.rip)).toBe(0x1234);
    expect(guest.word(VCPU.rflags) & CF).toBe(CF);
  });

  it('leaves when somebody wants the vCPU meanwhile', () => {
    const { guest, runOnce } = setUp(() => {
      Atomics.or(guest.block.i32, VCPU.flags >> 2, FLAG_EVENT);
      return true;
    });
    expect(runOnce(CODE)).toBe(EXIT_INTERRUPTED);
    expect(guest.word(VCPU.rip)).toBe(BEHIND);
  });

  it('is an exit in user mode', () => {
    const { guest, seen, runOnce } = setUp(() => true);
    guest.block.u32[VCPU.userMode / 4] = 1;
    guest.block.u32[VCPU.userRoot / 4] = guest.block.u32[VCPU.kernelRoot / 4];
    expect(runOnce(CODE)).toBe(EXIT_SYSCALL);
    expect(seen).toEqual([]);
  });
});
