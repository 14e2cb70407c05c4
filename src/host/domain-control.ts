/** Answers what is asked on a domain's control socket (control-protocol.ts), for a domain that runs in this process. */

import { isAbsolute } from 'node:path';
import { WEIGHT_MAX } from '../toolstack/config/domain-config.ts';
import type { ControlParameters, ControlState } from './control-protocol.ts';
import { ControlError, type ControlHandlers } from './control-server.ts';
import { HostError } from './host-error.ts';
import type { LiveDomain, RecordDeparture } from './live-domain.ts';

/** `departure`: what a domain that ends in a file gives up. */
export function controlHandlers(
  live: LiveDomain,
  departure: RecordDeparture,
  log: (line: string) => void,
): ControlHandlers {
  const acting = (act: (parameters: ControlParameters) => void) => (parameters: ControlParameters) => {
    try {
      act(parameters);
    } catch (error) {
      if (error instanceof HostError) throw new ControlError(error.message);
      throw error;
    }
    return null;
  };
  const copying = async <T>(copy: () => Promise<T>): Promise<T> => {
    try {
      return await copy();
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      // The domain cannot be saved, or the file cannot be written. All else is a defect, which the guest must not suffer for.
      if (error.name !== 'NotSavable' && !('syscall' in error)) log(error.stack ?? error.message);
      throw new ControlError(error.message);
    }
  };
  const writing = <T>(path: unknown, write: (path: string) => Promise<T>): Promise<T> => {
    if (typeof path !== 'string' || !isAbsolute(path)) throw new ControlError('expected an absolute path');
    return copying(() => write(path));
  };
  return {
    state: () => controlState(live),
    pause: acting(live.pause),
    unpause: acting(live.unpause),
    nmi: acting((parameters) => {
      const vcpu = numberFor(parameters, 'vcpu', 0, Number.MAX_SAFE_INTEGER, 'vcpu');
      if (vcpu === null || !live.nmi(vcpu)) throw new ControlError('No such vCPU');
    }),
    wait: () => live.ended,
    destroy: acting(live.destroy),
    resume: () => {
      if (!live.resume()) throw new ControlError('it is not suspended');
      return null;
    },
    save: async ({ path, then, config = null }) => {
      if (then !== 'end' && then !== 'pause' && then !== 'run')
        throw new ControlError('save: expected end, pause or run');
      if (config !== null && typeof config !== 'string') throw new ControlError('save: expected the text of a config');
      return { remark: await writing(path, (checked) => live.save(checked, then, config, departure)) };
    },
    'dump-core': async ({ path }) => {
      await writing(path, (checked) => live.dumpCore(checked));
      return null;
    },
    outline: () => live.copies.outline(),
    fork: ({ ticket }) => copying(() => live.copies.fork(ticketFor(ticket))),
    'fork-early': () => copying(() => live.copies.early()),
    'fork-start': ({ ticket }) => copying(() => live.copies.start(ticketFor(ticket))),
    'fork-memory': ({ ticket }) => copying(() => live.copies.memory(ticketFor(ticket))),
    'fork-end': acting((parameters) => {
      const key = numberFor(parameters, 'key', 1, Number.MAX_SAFE_INTEGER, 'key');
      if (key !== null) live.copies.release(key);
    }),
    snapshot: ({ path }) => writing(path, (checked) => live.copies.snapshot(checked)),
    schedule: acting((parameters) => {
      const { weight, cap, vcpus } = live.state();
      live.setSchedule(
        numberFor(parameters, 'weight', 1, WEIGHT_MAX, 'Cpu weight') ?? weight,
        numberFor(parameters, 'cap', 0, vcpus.length * 100, 'Cpu cap') ?? cap,
      );
    }),
    memory: acting((parameters) => {
      const targetKiB = numberFor(parameters, 'targetKiB', 0, Number.MAX_SAFE_INTEGER, 'targetKiB');
      if (targetKiB === null) throw new ControlError('memory needs targetKiB');
      live.allowMemory(Math.ceil(targetKiB / 4));
    }),
    devices: () => live.traffic(),
    pin: acting((parameters) => {
      const places = live.placement.places();
      const vcpu = numberFor(parameters, 'vcpu', 0, places.length - 1, 'vcpu');
      if (vcpu === null) throw new ControlError('pin needs a vcpu');
      const [hard, soft] = [cpusFor(parameters, 'hard'), cpusFor(parameters, 'soft')];
      if (hard !== null && hard.length === 0) throw new ControlError('a vCPU must be left a CPU to run on');
      live.placement.pin(vcpu, hard, soft);
    }),
  };
}

function controlState(live: LiveDomain): ControlState {
  const { vcpus, ...state } = live.state();
  const places = live.placement.places();
  const { user, system } = process.cpuUsage();
  const vcpusNs = vcpus.reduce((sum, { timeNs }) => sum + timeNs, 0);
  return {
    ...state,
    vcpus: vcpus.map((vcpu, id) => ({ ...vcpu, ...places[id] })),
    pid: process.pid,
    backendTimeNs: Math.max(0, (user + system) * 1000 - vcpusNs),
    residentBytes: process.memoryUsage.rss(),
  };
}

function ticketFor(value: unknown): string {
  if (typeof value === 'string' && /^[0-9a-f-]{1,64}$/.test(value)) return value;
  throw new ControlError('expected a ticket');
}

/** Null if there is no such parameter. */
function numberFor(
  parameters: ControlParameters,
  name: string,
  least: number,
  most: number,
  called: string,
): number | null {
  const value = parameters[name];
  if (value === undefined) return null;
  if (typeof value === 'number' && Number.isInteger(value) && value >= least && value <= most) return value;
  throw new ControlError(`${called} out of range, valid values are within range from ${least} to ${most}`);
}

/** Ascending, without doubles; null if there is no such parameter. */
function cpusFor(parameters: ControlParameters, name: string): number[] | null {
  const value = parameters[name];
  if (value === undefined) return null;
  const isCpu = (cpu: unknown): cpu is number => typeof cpu === 'number' && Number.isInteger(cpu) && cpu >= 0;
  if (!Array.isArray(value) || !value.every(isCpu)) throw new ControlError(`${name} is no list of CPU numbers`);
  return [...new Set(value)].sort((a, b) => a - b);
}
