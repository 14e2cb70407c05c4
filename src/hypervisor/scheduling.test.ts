/** vCPUs on simulated CPUs: each ms, the vCPUs that may run share a CPU of the host as its kernel would share it among threads. */
import { describe, expect, it } from 'vitest';
import { createMachineMemory } from '../machine/memory.ts';
import { VCPU } from '../machine/vcpu-block.ts';
import { createDomain, DOMAIN, type Domain } from './domain.ts';
import { VcpuSchedule, type VcpuShares } from './scheduling.ts';
import { RUNSTATE_blocked, RUNSTATE_offline, RUNSTATE_runnable, RUNSTATE_running } from './time.ts';

const MS = 1e6;

interface Said {
  nowNs: number;
  virtualNs: number;
  rate: number;
  wants: boolean;
  cpus: number;
}

class Board {
  readonly said = new Map<object, Said>();

  of(owner: object): VcpuShares {
    const said = this.said;
    const shares = {
      count: 0,
      virtualNs: new Float64Array(16),
      cpus: new Uint32Array(16),
      read: (nowNs: number) => {
        const others = [...said].filter(([other, { wants }]) => other !== owner && wants);
        shares.count = others.length;
        others.forEach(([, { virtualNs, rate, nowNs: saidNs, cpus }], i) => {
          shares.virtualNs[i] = virtualNs + rate * (nowNs - saidNs);
          shares.cpus[i] = cpus;
        });
      },
      write: (nowNs: number, virtualNs: number, rate: number, wants: boolean, cpus: number) => {
        said.set(owner, { nowNs, virtualNs, rate, wants, cpus });
      },
    };
    return shares;
  }
}

class SimulatedVcpu {
  usedNs = 0;
  ranNs = 0;
  slept = false;
  readonly schedule: VcpuSchedule;
  readonly domain: Domain;
  readonly id: number;
  /** Of ten ms, it wants to run so many. */
  busyMs = 10;
  /** For so long, its toolstack has it paused. */
  pausedMs = 0;

  constructor(domain: Domain, id: number, board: Board | null, now: () => number) {
    this.domain = domain;
    this.id = id;
    this.schedule = new VcpuSchedule(domain, id, {
      monotonicNs: now,
      log: () => {},
      foreign: null,
      threadCpuNs: () => this.usedNs,
      shares: board?.of(this) ?? null,
      tellCode: () => {},
      discard: () => false,
    });
  }

  setState(state: number, nowNs: number): void {
    const { f64, u32 } = this.domain.vcpus[this.id];
    const old = u32[VCPU.runstate >> 2];
    f64[(VCPU.runstateTimeNs >> 3) + old] += nowNs - f64[VCPU.runstateEntryNs >> 3];
    f64[VCPU.runstateEntryNs >> 3] = nowNs;
    u32[VCPU.runstate >> 2] = state;
  }

  get cpus(): number {
    return this.domain.vcpus[this.id].u32[VCPU.affinity >> 2];
  }
}

class Simulation {
  nowNs = 1e12;
  readonly board = new Board();
  readonly vcpus: SimulatedVcpu[] = [];
  readonly cpus: number;

  constructor(cpus: number) {
    this.cpus = cpus;
  }

  domain(weight: number, cap: number, vcpus = 1): SimulatedVcpu[] {
    const domain = createDomain(createMachineMemory(16, 16), 1, vcpus, new Uint8Array(16));
    domain.i32[DOMAIN.weight >> 2] = weight;
    domain.i32[DOMAIN.cap >> 2] = cap;
    domain.f64[DOMAIN.bootNs >> 3] = this.nowNs;
    for (const { u32 } of domain.vcpus) {
      u32[VCPU.affinity >> 2] = 2 ** this.cpus - 1;
      u32[VCPU.affinityCount >> 2] = this.cpus;
    }
    const made = Array.from({ length: vcpus }, (_, id) => {
      return new SimulatedVcpu(domain, id, this.board, () => this.nowNs);
    });
    this.vcpus.push(...made);
    return made;
  }

  run(ms: number): void {
    for (let i = 0; i < ms; i++) {
      const systemNs = (vcpu: SimulatedVcpu): number => this.nowNs - vcpu.domain.f64[DOMAIN.bootNs >> 3];
      const ready = this.vcpus.filter((vcpu) => {
        const { schedule } = vcpu;
        if (vcpu.pausedMs > 0) {
          vcpu.pausedMs--;
          vcpu.setState(RUNSTATE_offline, systemNs(vcpu));
          return false;
        }
        const busy = i % 10 < vcpu.busyMs;
        if (!busy) {
          schedule.sleeps(this.nowNs);
          vcpu.slept = true;
          vcpu.setState(RUNSTATE_blocked, systemNs(vcpu));
          return false;
        }
        if (vcpu.slept) schedule.wakes(this.nowNs);
        vcpu.slept = false;
        if (schedule.holdUntilNs !== 0 && this.nowNs >= schedule.holdUntilNs) schedule.account(this.nowNs);
        else if (schedule.holdUntilNs === 0 && this.nowNs >= schedule.nextNs) schedule.account(this.nowNs);
        vcpu.setState(schedule.holdUntilNs !== 0 ? RUNSTATE_runnable : RUNSTATE_running, systemNs(vcpu));
        return schedule.holdUntilNs === 0;
      });
      // Each CPU takes the one that has not run for the longest time.
      const taken = new Set<SimulatedVcpu>();
      for (let cpu = 0; cpu < this.cpus; cpu++) {
        const able = ready.filter((vcpu) => !taken.has(vcpu) && (vcpu.cpus & (1 << cpu)) !== 0);
        const next = able.sort((a, b) => a.ranNs - b.ranNs)[0];
        if (next !== undefined) taken.add(next);
      }
      for (const vcpu of taken) {
        vcpu.usedNs += MS;
        vcpu.ranNs = this.nowNs;
      }
      this.nowNs += MS;
    }
  }

  /** CPU time in ms that each vCPU gets in that time. */
  measure(ms: number): number[] {
    const before = this.vcpus.map(({ usedNs }) => usedNs);
    this.run(ms);
    return this.vcpus.map(({ usedNs }, i) => (usedNs - before[i]) / MS);
  }
}

const near = (ms: number, wanted: number): void => {
  expect(ms).toBeGreaterThan(wanted * 0.95);
  expect(ms).toBeLessThan(wanted * 1.05);
};

describe('cap', () => {
  for (const cap of [10, 50, 90])
    it(`${cap} % of a CPU is what a busy vCPU gets`, () => {
      const simulation = new Simulation(1);
      simulation.domain(256, cap);
      const [ms] = simulation.measure(60_000);
      near(ms, 600 * cap);
    });

  it('is shared by all vCPUs of a domain, and does not touch others', () => {
    const simulation = new Simulation(4);
    simulation.domain(256, 150, 2);
    simulation.domain(256, 0);
    const [first, second, free] = simulation.measure(20_000);
    near(first + second, 30_000);
    near(free, 20_000);
  });

  it('can be set and taken away while the domain runs', () => {
    const simulation = new Simulation(1);
    const [vcpu] = simulation.domain(256, 0);
    near(simulation.measure(10_000)[0], 10_000);
    Atomics.store(vcpu.domain.i32, DOMAIN.cap >> 2, 20);
    simulation.run(200);
    near(simulation.measure(10_000)[0], 2000);
    Atomics.store(vcpu.domain.i32, DOMAIN.cap >> 2, 0);
    simulation.run(200);
    near(simulation.measure(10_000)[0], 10_000);
  });

  it('holds beside others that want the CPU', () => {
    const simulation = new Simulation(1);
    simulation.domain(256, 25);
    simulation.domain(256, 0);
    simulation.run(1000);
    const [capped, free] = simulation.measure(20_000);
    near(capped, 5000);
    near(free, 15_000);
  });
});

describe('a vCPU that sleeps much', () => {
  it('is accounted for all the same', () => {
    const simulation = new Simulation(1);
    const [vcpu] = simulation.domain(256, 0);
    vcpu.busyMs = 3;
    near(simulation.measure(10_000)[0], 3000);
    expect(vcpu.domain.vcpus[0].f64[VCPU.cpuNs >> 3]).toBeGreaterThan(2900 * MS);
  });

  it('keeps to its cap', () => {
    const simulation = new Simulation(1);
    simulation.domain(256, 10)[0].busyMs = 3;
    near(simulation.measure(20_000)[0], 2000);
  });
});

describe('weight', () => {
  it('vCPUs of equal weight get equal time', () => {
    const simulation = new Simulation(1);
    simulation.domain(256, 0);
    simulation.domain(256, 0);
    simulation.run(1000);
    for (const ms of simulation.measure(20_000)) near(ms, 10_000);
  });

  it('double the weight is double the time', () => {
    const simulation = new Simulation(1);
    simulation.domain(512, 0);
    simulation.domain(256, 0);
    simulation.run(1000);
    const [heavy, light] = simulation.measure(20_000);
    near(heavy, 13_333);
    near(light, 6667);
  });

  it('three domains on two CPUs: nobody gets more than a CPU, the rest goes by weight', () => {
    const simulation = new Simulation(2);
    for (const weight of [4096, 512, 256]) simulation.domain(weight, 0);
    simulation.run(1000);
    const [first, second, third] = simulation.measure(20_000);
    expect(first + second + third).toBeGreaterThan(38_000);
    expect(first).toBeGreaterThan(18_000);
    near(second / third, 2);
  });

  it('means nothing where there are CPUs enough', () => {
    const simulation = new Simulation(2);
    simulation.domain(1024, 0);
    simulation.domain(64, 0);
    for (const ms of simulation.measure(5000)) expect(ms).toBe(5000);
  });

  it('a vCPU that sleeps holds up nobody, whatever its weight', () => {
    const simulation = new Simulation(1);
    const [sleeper] = simulation.domain(4096, 0);
    sleeper.busyMs = 2;
    simulation.domain(256, 0);
    simulation.run(1000);
    const [, busy] = simulation.measure(10_000);
    expect(busy).toBeGreaterThan(7900);
  });

  it('vCPUs that are pinned to different CPUs do not wait for each other', () => {
    const simulation = new Simulation(2);
    for (const [weight, cpus] of [
      [256, 1],
      [256, 1],
      [4096, 2],
      [4096, 2],
      [4096, 2],
    ]) {
      const [vcpu] = simulation.domain(weight, 0);
      vcpu.domain.vcpus[0].u32[VCPU.affinity >> 2] = cpus;
      vcpu.domain.vcpus[0].u32[VCPU.affinityCount >> 2] = 1;
    }
    simulation.run(1000);
    const [a, b, c, d, e] = simulation.measure(10_000);
    near(a, 5000);
    near(b, 5000);
    for (const ms of [c, d, e]) near(ms, 3333);
  });

  it('a vCPU that comes late does not get what it has missed', () => {
    const simulation = new Simulation(1);
    simulation.domain(256, 0);
    simulation.run(60_000);
    simulation.domain(256, 0);
    simulation.run(1000);
    for (const ms of simulation.measure(2000)) near(ms, 1000);
  });

  it('a domain that was paused to be copied gets its part beside the copies', () => {
    for (const ms of [10, 30, 60, 95]) {
      const simulation = new Simulation(2);
      const [copied] = simulation.domain(256, 0);
      simulation.run(60_000 - ms);
      copied.pausedMs = 30;
      simulation.run(30);
      for (let i = 0; i < 4; i++) simulation.domain(256, 0);
      // Two fifths of a second.
      for (let second = 0; second < 3; second++)
        expect(simulation.measure(1000)[0], `second ${second}`).toBeGreaterThan(300);
    }
  });

  it('the first account is due soon after the start, so that a vCPU without exits is interrupted', () => {
    const domain = createDomain(createMachineMemory(16, 16), 1, 1, new Uint8Array(16));
    const { schedule } = new SimulatedVcpu(domain, 0, null, () => 5e9);
    expect(schedule.nextNs).toBeGreaterThan(5e9);
    expect(schedule.nextNs).toBeLessThan(6e9);
  });
});
