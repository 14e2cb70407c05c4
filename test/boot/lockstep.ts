/**
 * A whole boot in one thread with a clock that only the guest's own doings move: two such boots execute the same instructions, so
 * the vCPU's state at each exit can be compared between the interpreter alone and the interpreter with translated regions.
 */

import { ConsoleBackend } from '../../src/backends/console.ts';
import type { Engine, ExitKind, Kicker } from '../../src/engine/engine.ts';
import { EXIT_HANDLED, EXIT_INTERRUPTED, EXIT_SYSCALL } from '../../src/engine/engine.ts';
import type { KeptRegions } from '../../src/engine/wasm/kept-regions.ts';
import { STATE } from '../../src/engine/wasm/layout.ts';
import { createWasmDomain, type TranslatedCode } from '../../src/engine/wasm/wasm-domain.ts';
import { WasmVcpu } from '../../src/engine/wasm/wasm-vcpu.ts';
import { createDomain, DOMAIN } from '../../src/hypervisor/domain.ts';
import { ECS_INTERDOMAIN, setPending, setPort, takeDom0Pending } from '../../src/hypervisor/event-channels.ts';
import { adoptPageTables } from '../../src/hypervisor/mmu.ts';
import { runVcpu } from '../../src/hypervisor/run-vcpu.ts';
import { startClock, writeTimeInfo } from '../../src/hypervisor/time.ts';
import { Vcpu } from '../../src/hypervisor/vcpu.ts';
import { createMachineMemory, PAGE_SIZE } from '../../src/machine/memory.ts';
import { VCPU, VCPU_STATE_UP, type VcpuBlock } from '../../src/machine/vcpu-block.ts';
import { buildDomain } from '../../src/toolstack/builder/build-domain.ts';
import { parseXenElf } from '../../src/toolstack/builder/elf.ts';
import { introduceControlDomain, introduceDomain } from '../../src/toolstack/xenstore-nodes.ts';
import { XenstoreClient } from '../../src/xenstore/client.ts';
import { linkToStore } from '../../src/xenstore/link.ts';
import { createRingServer } from '../../src/xenstore/ring-server.ts';
import { createStore } from '../../src/xenstore/store.ts';

const STORE_PORT = 1;
const CONSOLE_PORT = 2;
const RAM_PAGES = 256 * 256;
/** What a look at the clock costs. */
const LOOK_NS = 2000;
/** And while the vCPU sleeps, which it does in real time. */
const SLEEP_NS = 5_000_000;
const WALL_NS = 1.7e18;
const UUID = Uint8Array.from({ length: 16 }, (_, i) => i);

export interface LockstepGuest {
  readonly kernel: Uint8Array;
  readonly name: string;
  readonly ramdisk: Uint8Array;
  readonly cmdline: string;
}

/** Called at each exit with a hash of the vCPU's state; says whether to go on. */
export type AtExit = (exit: ExitKind, hash: number, block: VcpuBlock) => boolean;

/** Registers, flags, segments and their bases, XMM and x87 state. FNV-1a over words. */
function hashOf({ u32 }: VcpuBlock): number {
  let hash = 0x811c9dc5;
  const add = (from: number, to: number): void => {
    for (let i = from >>> 2; i < to >>> 2; i++) hash = Math.imul(hash ^ u32[i], 0x01000193);
  };
  add(VCPU.gpr, VCPU.gs + 4);
  add(STATE.xmm, STATE.xmm + 256);
  add(STATE.x87, STATE.x87 + 160);
  add(STATE.mxcsr, STATE.mxcsr + 4);
  return hash >>> 0;
}

/** An engine whose interruptions nobody sees: they come at times that depend on the host. */
function quiet(engine: WasmVcpu, block: VcpuBlock, atExit: (exit: ExitKind) => void): Engine {
  const run = (): ExitKind => {
    for (;;) {
      const exit = engine.run();
      if (exit === EXIT_INTERRUPTED) {
        // Nothing but what an exit did sets a flag here: the run loop must see it.
        if (block.i32[VCPU.flags >> 2] !== 0) return exit;
        continue;
      }
      if (exit !== EXIT_HANDLED) atExit(exit);
      return exit;
    }
  };
  return new Proxy(engine, {
    get: (target, name) => {
      if (name === 'run') return run;
      if (name === 'setRunDeadline') return () => {};
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === 'function' ? value.bind(target) : value;
    },
    // Hypercalls in the middle of a run are exits too.
    set: (target, name, value: () => boolean) => {
      if (name !== 'onHypercall') throw new Error(`nobody sets ${String(name)} of an engine`);
      target.onHypercall = () => {
        atExit(EXIT_SYSCALL);
        return value();
      };
      return true;
    },
  });
}

/** Boots to the guest's end, or until `atExit` says stop. Returns what the console showed, and what the engine counted. */
export async function bootInLockstep(
  guest: LockstepGuest,
  interpretOnly: boolean,
  atExit: AtExit,
  translated: TranslatedCode | null = null,
): Promise<{ console: string; counts: readonly string[]; kept: KeptRegions }> {
  const machine = createMachineMemory(RAM_PAGES, RAM_PAGES);
  const domain = createDomain(machine, 1, 1, UUID);
  const [block] = domain.vcpus;
  const elf = parseXenElf(guest.kernel, guest.name);
  const built = buildDomain(
    machine,
    block,
    { elf, bytes: guest.kernel, name: guest.name },
    { ramdisk: guest.ramdisk, cmdline: guest.cmdline, storePort: STORE_PORT, consolePort: CONSOLE_PORT },
  );
  adoptPageTables(domain, built.pageTableFrames);
  block.u32[VCPU.vcpuInfo >> 2] = machine.layout.sharedInfoOffset;
  block.u32[VCPU.initialised >> 2] = 1;
  setPort(domain, STORE_PORT, ECS_INTERDOMAIN, 0, 0, STORE_PORT);
  setPort(domain, CONSOLE_PORT, ECS_INTERDOMAIN, 0, 0, CONSOLE_PORT);
  const kicker: Kicker = { kick: () => {} };
  const store = createStore();
  const client = new XenstoreClient(linkToStore(store));
  await introduceControlDomain(client);
  await introduceDomain(client, {
    domid: 1,
    uuid: '00010203-0405-0607-0809-0a0b0c0d0e0f',
    name: 'lockstep',
    memoryKiB: RAM_PAGES * 4,
    maxMemKiB: RAM_PAGES * 4,
    vcpus: 1,
    vcpusMax: 1,
    storePort: STORE_PORT,
    storeMfn: built.storeMfn,
    consolePort: CONSOLE_PORT,
    consoleMfn: built.consoleMfn,
    startTimeSeconds: WALL_NS / 1e9,
  });
  const page = (pfn: number): Uint8Array => machine.u8.subarray(pfn * PAGE_SIZE, (pfn + 1) * PAGE_SIZE);
  const ring = createRingServer({
    page: page(built.storePfn),
    connection: store.connect(1),
    notify: () => setPending(domain, STORE_PORT, kicker),
  });
  let text = '';
  const decoder = new TextDecoder('latin1');
  const console = new ConsoleBackend({
    page: page(built.consolePfn),
    notify: () => setPending(domain, CONSOLE_PORT, kicker),
    output: (bytes) => {
      text += decoder.decode(bytes);
    },
  });
  let clockNs = 1e9;
  let isAsleep = (): boolean => false;
  const look = (): number => {
    clockNs += isAsleep() ? SLEEP_NS : LOOK_NS;
    return clockNs;
  };
  const inner = new WasmVcpu(createWasmDomain(machine, 1, undefined, translated), machine, domain.vcpus, 0, {
    monotonicNs: look,
    interpretOnly,
  });
  const engine = quiet(inner, block, (exit) => {
    if (!atExit(exit, hashOf(block), block)) domain.shutdown(0);
    if (takeDom0Pending(domain, CONSOLE_PORT)) while (console.service());
    if (takeDom0Pending(domain, STORE_PORT)) while (ring.service());
  });
  const v = new Vcpu(domain, 0, engine, kicker, {
    monotonicNs: look,
    foreign: null,
    log: (line) => {
      text += `${line}\n`;
    },
    // The same on both sides.
    threadCpuNs: () => 0,
    shares: null,
    tellCode: () => {},
    discard: () => false,
  });
  isAsleep = () => v.blocked;
  engine.prepareRoot(block.u32[VCPU.kernelRoot >> 2] * PAGE_SIZE);
  startClock(domain, engine, WALL_NS);
  writeTimeInfo(v);
  Atomics.store(block.i32, VCPU.state >> 2, VCPU_STATE_UP);
  domain.i32[DOMAIN.vcpusUp >> 2] = 1;
  runVcpu(v);
  if (takeDom0Pending(domain, CONSOLE_PORT)) console.service();
  return { console: text.replaceAll('\r', ''), counts: inner.statistics(), kept: inner.keptRegions() };
}
