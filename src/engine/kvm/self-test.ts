/**
 * Can this process run guests on KVM? Asks the host step by step, then runs a real guest; the first thing that is missing is told in
 * one sentence. Nothing stays open.
 */

import { execFileSync } from 'node:child_process';
import { userInfo } from 'node:os';
import { VCPU } from '../../machine/vcpu-block.ts';
import type { EngineFacts } from '../engine.ts';
import { EXIT_EXCEPTION, EXIT_INTERRUPTED, EXIT_SYSCALL, type ExitKind } from '../engine.ts';
import {
  EACCES,
  ENOENT,
  EPERM,
  KVM_API_VERSION,
  KVM_CAP_IMMEDIATE_EXIT,
  KVM_CAP_SYNC_REGS,
  KVM_CAP_USER_MEMORY,
  KVM_CHECK_EXTENSION,
  KVM_GET_API_VERSION,
  O_CLOEXEC,
  O_RDWR,
  SYNC_ALL,
} from './abi.ts';
import { loadHost } from './host.ts';
import { closeKvmDomain, createKvmDomain } from './kvm-domain.ts';
import { openKvmVcpu } from './kvm-vcpu.ts';
import {
  CODE_VA,
  createTestBlock,
  createTestMachine,
  PTE_RW,
  prepareTestRoot,
  pteOffset,
  setPte,
} from './test-guest.ts';

export type KvmProbe =
  | { readonly usable: true; readonly facts: EngineFacts }
  | { readonly usable: false; readonly reason: string };

/** Takes some 20 ms; done anew at each call, but for the facts. */
export function probeKvm(): KvmProbe {
  const loaded = loadHost();
  if ('reason' in loaded) return { usable: false, reason: loaded.reason };
  const host = loaded.host;
  const fd = host.open('/dev/kvm', O_RDWR | O_CLOEXEC);
  if (fd < 0) return { usable: false, reason: openFailure(host.errno()) };
  try {
    const version = host.ioctl(fd, KVM_GET_API_VERSION, 0);
    if (version !== KVM_API_VERSION)
      return { usable: false, reason: `KVM has API version ${version}, not ${KVM_API_VERSION}` };
    if (host.ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) <= 0) return missing('KVM_CAP_USER_MEMORY');
    if (host.ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_IMMEDIATE_EXIT) <= 0) return missing('KVM_CAP_IMMEDIATE_EXIT');
    if ((host.ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_SYNC_REGS) & SYNC_ALL) !== SYNC_ALL)
      return missing('KVM_CAP_SYNC_REGS');
  } finally {
    host.close(fd);
  }
  try {
    return runTestGuest();
  } catch (error) {
    return {
      usable: false,
      reason: `KVM cannot run a guest: ${error instanceof Error ? error.message : String(error)}`,
    };
  }
}

function missing(capability: string): KvmProbe {
  return { usable: false, reason: `KVM has no ${capability} here` };
}

function openFailure(errno: number): string {
  if (errno === ENOENT) return '/dev/kvm does not exist';
  if (errno === EACCES || errno === EPERM) {
    return `/dev/kvm cannot be opened: permission denied (${whoLacksWhat()})`;
  }
  return `/dev/kvm cannot be opened: errno ${errno}`;
}

/** The user's name, or the number of one that the system does not list (usual in containers). */
function userName(): string {
  try {
    return userInfo().username;
  } catch {
    return `${process.getuid?.() ?? 'unknown'}`;
  }
}

function whoLacksWhat(): string {
  const user = userName();
  try {
    const groups = execFileSync('id', ['-nG'], { encoding: 'utf8' }).trim().split(/\s+/);
    return groups.includes('kvm') ? `user ${user}, though in group kvm` : `user ${user} is not in group kvm`;
  } catch {
    return `user ${user}`;
  }
}

/** syscall; ud2; mov al, [DATA_VA]; int3 */
const TEST_CODE = [0x0f, 0x05, 0x0f, 0x0b, 0x8a, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00, 0xcc];
const DATA_VA = 0x200000;
const DATA_FRAME = 600;
const OTHER_FRAME = 601;
const INTERRUPTIONS_MAX = 100;

function runTestGuest(): KvmProbe {
  const machine = createTestMachine();
  const domain = createKvmDomain(machine, 1);
  try {
    const block = createTestBlock(machine, TEST_CODE);
    const vcpu = openKvmVcpu(domain, machine, block);
    prepareTestRoot(vcpu);
    const rip = VCPU.rip / 4;
    const rax = VCPU.gpr / 4;
    const vector = VCPU.exitVector / 4;
    const u32 = block.u32;
    const raised = (exit: number, expected: number): boolean => exit === EXIT_EXCEPTION && u32[vector] === expected;
    const wrong = (what: string, exit: number): KvmProbe => ({
      usable: false,
      reason: `KVM's test guest went wrong at ${what} (exit ${exit}, vector ${u32[vector]}, rip ${u32[rip].toString(16)}${
        vcpu.describeError() === '' ? '' : `, ${vcpu.describeError()}`
      })`,
    });

    // A signal that has nothing to do with us may end a run.
    const run = (): ExitKind => {
      let exit = vcpu.run();
      for (let i = 0; i < INTERRUPTIONS_MAX && exit === EXIT_INTERRUPTED; i++) exit = vcpu.run();
      return exit;
    };
    let exit = run();
    if (exit !== EXIT_SYSCALL || u32[rip] !== CODE_VA + 2) return wrong('SYSCALL', exit);
    exit = run();
    if (!raised(exit, 6) || u32[rip] !== CODE_VA + 2) return wrong('an invalid opcode', exit);

    machine.u8[DATA_FRAME * 4096] = 0x11;
    machine.u8[OTHER_FRAME * 4096] = 0x22;
    for (const [frame, expected] of [
      [DATA_FRAME, 0x11],
      [OTHER_FRAME, 0x22],
    ] as const) {
      setPte(machine, pteOffset(DATA_VA), frame, PTE_RW);
      vcpu.pageTableStored(pteOffset(DATA_VA));
      u32[rip] = CODE_VA + 4;
      exit = run();
      if (!raised(exit, 3) || (u32[rax] & 0xff) !== expected) return wrong('a changed page table', exit);
    }
    machine.u32[pteOffset(DATA_VA) / 4] = 0;
    vcpu.pageTableStored(pteOffset(DATA_VA));
    u32[rip] = CODE_VA + 4;
    exit = run();
    if (!raised(exit, 14) || u32[VCPU.cr2 / 4] !== DATA_VA) return wrong('a page fault', exit);

    vcpu.close();
    return { usable: true, facts: domain.facts };
  } finally {
    closeKvmDomain(domain);
  }
}
