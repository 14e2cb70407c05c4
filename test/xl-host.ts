/** For tests only: a daemon of their own, and domains that are nodes in its store and control sockets that answer what they are told. */

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { main } from '../src/cli/xl/main.ts';
import type { ControlDevices, ControlState } from '../src/host/control-protocol.ts';
import { type ControlServer, openControlServer } from '../src/host/control-server.ts';
import { controlHandlers } from '../src/host/domain-control.ts';
import { type Daemon, startDaemon } from '../src/host/domusd.ts';
import type { LiveDomain } from '../src/host/live-domain.ts';
import { controlPath, domainFolder } from '../src/host/state-dir.ts';
import { openXenstored } from '../src/host/xenstored.ts';
import { configJson, readStated } from '../src/toolstack/config/domain-config.ts';
import { introduceControlDomain, introduceDomain } from '../src/toolstack/xenstore-nodes.ts';
import { XenstoreClient } from '../src/xenstore/client.ts';

/** The CPUs of the host. */
export const HOST_CPUS: readonly number[] = cpus().map((_, cpu) => cpu);

export interface Output {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

/** A domain with one vCPU that has run for 9.7 s, if it is not paused. */
export function testState(memoryMiB: number, changed: Partial<ControlState> = {}): ControlState {
  const paused = changed.paused ?? false;
  const vcpu = { online: true, running: false, blocked: !paused, timeNs: paused ? 0 : 9.7e9 };
  return {
    paused: false,
    shutdownReason: -1,
    pages: memoryMiB * 256,
    promisedPages: memoryMiB * 256,
    weight: 256,
    cap: 0,
    vcpus: [{ ...vcpu, cpu: 1, hard: HOST_CPUS, soft: HOST_CPUS }],
    pid: process.pid,
    backendTimeNs: 1e9,
    residentBytes: (memoryMiB + 80) << 20,
    ...changed,
  };
}

/** Its folder is DOMUS_STATE_DIR until it is closed. */
function bug(message: string): never {
  throw new Error(message);
}

export class TestHost {
  readonly root: string;
  readonly store: XenstoreClient;
  /** What the domains' processes answer. */
  readonly states = new Map<number, ControlState>();
  /** Pages that `memory` allowed them. */
  readonly allowed = new Map<number, number>();
  readonly devices = new Map<number, ControlDevices>();
  readonly #daemon: Daemon;
  readonly #controls: ControlServer[] = [];
  readonly #before = process.env['DOMUS_STATE_DIR'];

  private constructor(root: string, daemon: Daemon, store: XenstoreClient) {
    this.root = root;
    this.#daemon = daemon;
    this.store = store;
    process.env['DOMUS_STATE_DIR'] = root;
  }

  static async open(): Promise<TestHost> {
    const root = mkdtempSync(join(tmpdir(), 'domus-host-'));
    const daemon = await startDaemon(root, () => {});
    const store = new XenstoreClient(await openXenstored(root));
    await introduceControlDomain(store);
    return new TestHost(root, daemon, store);
  }

  async close(): Promise<void> {
    for (const control of this.#controls) control.close();
    this.store.close();
    await this.#daemon.stop();
    if (this.#before === undefined) delete process.env['DOMUS_STATE_DIR'];
    else process.env['DOMUS_STATE_DIR'] = this.#before;
    rmSync(this.root, { recursive: true });
  }

  /** A domain of 256 MiB. `cfg`: what it was made from. */
  async addDomain(domid: number, name: string, uuid: string, cfg: string): Promise<void> {
    const ring = { storePort: 1, storeMfn: 0x100 + domid, consolePort: 2, consoleMfn: 0x200 + domid };
    const nodes = { domid, name, uuid, memoryKiB: 262144, maxMemKiB: 262144, vcpus: 1, ...ring };
    await introduceDomain(this.store, { ...nodes, startTimeSeconds: Date.now() / 1000 - 100 });
    this.states.set(domid, testState(256));
    this.#controls.push(
      await openControlServer(
        controlPath(this.root, domid),
        controlHandlers(this.#live(domid), { leave: () => {}, comeBack: () => {}, gone: () => {} }, () => {}),
      ),
    );
    const text = `name="${name}"\nuuid="${uuid}"\n${cfg}`;
    writeFileSync(
      join(domainFolder(this.root, domid), 'config.json'),
      configJson(readStated('cfg', text, { warn: () => {} })),
    );
  }

  #live(domid: number): LiveDomain {
    const now = (): ControlState => this.states.get(domid) ?? testState(256);
    const change = (changed: Partial<ControlState>): void => {
      this.states.set(domid, { ...now(), ...changed });
    };
    return {
      domid,
      state: now,
      pause: () => change({ paused: true }),
      unpause: () => change({ paused: false }),
      setSchedule: (weight, cap) => change({ weight, cap }),
      allowMemory: (pages) => this.allowed.set(domid, pages),
      traffic: () => this.devices.get(domid) ?? { disks: [], vifs: [] },
      placement: {
        places: () => [...now().vcpus],
        pin: (vcpu, hard, soft) => {
          const vcpus = now().vcpus.map((one, id) => {
            return id === vcpu ? { ...one, hard: hard ?? one.hard, soft: soft ?? one.soft } : one;
          });
          change({ vcpus });
        },
      },
      ended: new Promise(() => {}),
      destroy: () => {},
      nmi: () => true,
      resume: () => true,
      save: async () => null,
      dumpCore: async () => {},
      migrate: () => Promise.reject(new Error('no such thing here')),
      copies: {
        outline: () => bug('a domain of a test has no outline'),
        fork: () => bug('a domain of a test cannot be copied'),
        early: () => bug('a domain of a test cannot be copied'),
        start: () => bug('a domain of a test cannot be copied'),
        memory: () => bug('a domain of a test cannot be copied'),
        release: () => {},
        snapshot: () => bug('a domain of a test cannot be copied'),
      },
    };
  }

  async xl(...words: string[]): Promise<Output> {
    let out = '';
    let err = '';
    const code = await main(words, {
      out: (text) => {
        out += text;
      },
      err: (line) => {
        err += `${line}\n`;
      },
    });
    return { code, out, err };
  }
}
