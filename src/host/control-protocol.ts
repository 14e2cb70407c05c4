/**
 * What a domain's process is asked on its control socket: JSON-RPC 2.0, one message a line. A method that takes any has named parameters.
 *
 *   state            -> ControlState
 *   pause, unpause   -> null
 *   nmi              { vcpu } -> null; an error if there is no such vCPU
 *   resume           -> null, of a guest that has suspended itself; an error if it has not
 *   wait             -> SHUTDOWN_*, when the domain has shut down; no answer if it never does
 *   destroy          -> null; the connection ends when the domain is gone
 *   save             { path, absolute; then: 'end', 'pause' or 'run'; config?: text that goes with it instead of its own } -> ControlSaved,
 *                    when it is written. After 'end' the connection ends when the domain is gone. An error leaves the domain as it was.
 *   dump-core        { path, absolute } -> null, when it is written
 *   outline          -> Outline: what a process has to know to get ready for a copy of the domain
 *   fork             { ticket } -> Fork: the domain has been copied as it is now; its disks have got a layer each. It goes on
 *   fork-early       -> FrozenMemory or null: what a copy's process may map before the domain is copied; it is not what will be there
 *   fork-start       { ticket } -> ForkStart, when the domain is copied with that ticket: for the processes of copies, which ask for it before
 *   fork-memory      { ticket } -> FrozenMemory, or null if ForkStart has it, soon after that
 *   fork-end         { key } -> null: all copies have what they need of that
 *   snapshot         { path, absolute } -> ControlSnapshot, when it is written; its disks have got a layer each. It goes on
 *   schedule         { weight?, cap? } -> null
 *   pin              { vcpu, hard?, soft? } -> null; lists of CPU numbers
 *   memory           { targetKiB } -> null: so much and no more may the domain have
 *   devices          -> ControlDevices
 *
 * What cannot be done is answered with an error of one line.
 */
import type { DiskTraffic, NetworkTraffic } from '../backends/traffic.ts';
import type { DomainState, VcpuState } from '../hypervisor/domain-state.ts';
import type { FrozenMemory } from './copied-memory.ts';
import type { FrozenDisk } from './disk-layers.ts';
import type { Fork, ForkStart } from './domain-copies.ts';
import type { Outline } from './forked-domain.ts';
import type { VcpuPlace } from './vcpu-placement.ts';

export const CONTROL_METHODS = [
  ...(['state', 'pause', 'unpause', 'resume', 'nmi', 'wait', 'destroy'] as const),
  ...(['outline', 'fork', 'fork-early', 'fork-start', 'fork-memory', 'fork-end', 'snapshot'] as const),
  ...(['save', 'dump-core', 'schedule', 'pin', 'memory', 'devices'] as const),
] as const;
export type ControlMethod = (typeof CONTROL_METHODS)[number];
export type ControlParameters = Readonly<Record<string, unknown>>;

export interface ControlState extends DomainState {
  readonly pid: number;
  readonly vcpus: readonly (VcpuState & VcpuPlace)[];
  /** What the domain's process uses besides its vCPUs: CPU time in ns, and memory that it has in all, the guest's included, in bytes. */
  readonly backendTimeNs: number;
  readonly residentBytes: number;
}

export interface ControlDevices {
  /** `id` is the number of the virtual device. */
  readonly disks: readonly (DiskTraffic & { readonly id: number })[];
  readonly vifs: readonly (NetworkTraffic & { readonly id: number })[];
}

export interface ControlSaved {
  /** One line about a guest that was asked to suspend in vain; null: there is nothing to say. */
  readonly remark: string | null;
}

export interface ControlSnapshot extends ControlSaved {
  readonly disks: readonly FrozenDisk[];
}

export type ControlAnswer =
  | ControlState
  | ControlDevices
  | ControlSaved
  | ControlSnapshot
  | Outline
  | Fork
  | ForkStart
  | FrozenMemory
  | null;

/** A longer line is no message of ours. */
export const LINE_BYTES_MAX = 1 << 16;

/** Cuts a stream into lines. `take` gives the complete ones; null when one is too long. */
export class LineReader {
  #rest = '';
  readonly #decoder = new TextDecoder();

  take(bytes: Uint8Array): string[] | null {
    const lines = (this.#rest + this.#decoder.decode(bytes, { stream: true })).split('\n');
    this.#rest = lines.pop() ?? '';
    return this.#rest.length > LINE_BYTES_MAX || lines.some((line) => line.length > LINE_BYTES_MAX) ? null : lines;
  }
}
