/** A domain that runs in this process, as others in the process see it. */

import type { DomainState } from '../hypervisor/domain-state.ts';
import type { PluggedDevices } from '../toolstack/plugged-devices.ts';
import type { ControlDevices } from './control-protocol.ts';
import type { DomainCopies } from './domain-copies.ts';
import type { AfterSave } from './domain-writer.ts';
import type { MigrationOptions } from './migration-frames.ts';
import type { MigrationLink } from './migration-link.ts';
import type { VcpuPlacement } from './vcpu-placement.ts';

/** Gives up what the domain is started again from, and takes it up again. */
export interface RecordDeparture {
  leave(): void;
  comeBack(): void;
  /** The domain runs elsewhere: this process ends. */
  gone(): void;
}

/** What others may ask of a domain, from when it is built until it is gone. */
export interface LiveDomain {
  readonly domid: number;
  state(): DomainState;
  pause(): void;
  unpause(): void;
  /** Raises an NMI; false if there is no such vCPU. */
  nmi(vcpuId: number): boolean;
  setSchedule(weight: number, cap: number): void;
  /** It may have no more from now on. */
  allowMemory(pages: number): void;
  traffic(): ControlDevices;
  readonly placement: Pick<VcpuPlacement, 'places' | 'pin'>;
  /** A guest that has suspended itself goes on. False: it has not. */
  resume(): boolean;
  /** Resolves with SHUTDOWN_* when it has shut down; never if it is destroyed before. */
  readonly ended: Promise<number>;
  /** Ends it at once, and for good. */
  destroy(): void;
  /**
   * Writes it to a file, after which it does `then`. `departure`: what is to be given up beyond this process when that is its end. Resolves with a line about a guest
   * that did not do its part, or null. Rejects with one line, and the domain goes on.
   */
  save(path: string, then: AfterSave, config: string | null, departure: RecordDeparture): Promise<string | null>;
  /** Sends it to where it goes on; resolves when it does, or goes on here. `departure`: what is to be given up beyond this process. */
  migrate(link: MigrationLink, options: MigrationOptions, departure: RecordDeparture): Promise<void>;
  /** Writes a core dump to a file; it stands still meanwhile. Rejects with one line. */
  dumpCore(path: string): Promise<void>;
  /** For copies of it (domain-copies.ts). Each rejects with one line, and the domain goes on. */
  readonly copies: Pick<DomainCopies, 'outline' | 'early' | 'fork' | 'start' | 'memory' | 'release' | 'snapshot'>;
}

/** What is called when a domain begins, and at its end. */
export interface LiveHooks {
  /** It is about to run: others may find it from now on. */
  readonly onRunning: () => void;
  /** It runs. */
  readonly onRuns: () => void;
  /** Before it is taken from xenstore. `restarts`: it is started again, with another domid and, where they are known, these devices. */
  readonly onEnding: (restarts: boolean, plugged: PluggedDevices | null) => void;
  /** When it is gone from xenstore. */
  readonly onGone: () => void;
}
