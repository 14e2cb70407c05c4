/** Writes a domain while it stands still: to be restored (save-domain.ts), or as a core dump; and to another host. One at a time. */

import { coreDump } from '../toolstack/core-dump.ts';
import { NotSavable } from '../toolstack/saved/saved-state.ts';
import type { XenstoreClient } from '../xenstore/client.ts';
import type { DirtyTracker } from './dirty-tracker.ts';
import { GuestSuspension } from './guest-suspension.ts';
import type { MigrationOptions } from './migration-frames.ts';
import type { MigrationLink } from './migration-link.ts';
import { type Departure, migrate } from './migration-sender.ts';
import {
  type AfterFreeze,
  type FreezableDomain,
  type Freezer,
  type SavableDomain,
  writeDomain,
} from './save-domain.ts';
import { type BeforeShown, writeWhole } from './save-stream.ts';
import type { VcpuWorkers } from './vcpu-workers.ts';

/** What is under way. */
type Doing = 'saved' | 'moved' | 'dumped';

/** What a domain does when it is saved. */
export type AfterSave = 'end' | 'pause' | 'run';

export interface DomainWriterOptions {
  readonly freezable: FreezableDomain;
  readonly freezer: Freezer;
  readonly workers: VcpuWorkers;
  readonly store: XenstoreClient;
  readonly facts: SavableDomain['facts'];
  /** Another domain has pages of it mapped. */
  readonly isMapped: () => boolean;
  readonly tracker: DirtyTracker;
  /** The text of its config, by the name that it has now, or of another one for it; `moves`: to another host. Null: there is none that could be saved. */
  readonly config: (name: string, other?: string | null, moves?: boolean) => string | null;
  /** It is being destroyed. */
  readonly isEnding: () => boolean;
  /** For the domain's log. */
  readonly note: (line: string) => void;
}

export class DomainWriter {
  readonly #options: DomainWriterOptions;
  #doing: Doing | null = null;

  constructor(options: DomainWriterOptions) {
    this.#options = options;
  }

  /**
   * After 'end' it stays frozen. `other`: config text that goes with it instead of its own; `departure`: what is to be given up before an 'end'. What is to be said
   * of the guest's part in it, if anything.
   * @throws NotSavable, and what writing throws; it goes on as before then
   */
  async save(path: string, then: AfterSave, other: string | null, departure: BeforeShown): Promise<string | null> {
    const { freezable, freezer, workers, store, facts, isMapped, config, isEnding } = this.#options;
    const suspension = new GuestSuspension({ domain: freezable.domain, store, isEnding });
    await this.#alone('saved', async () => {
      const text = (name: string): string | null => config(name, other);
      if (text('') === null) throw new NotSavable('it was made without a config that could be saved');
      if (freezable.domain.shutdownReason !== -1) throw new NotSavable('it has shut down');
      if (isMapped()) throw new NotSavable('another domain has pages of it mapped');
      const cpu = await workers.ready;
      const savable: SavableDomain = { ...freezable, store, facts, cpu, config: (name) => text(name) ?? '' };
      const write = async (): Promise<AfterFreeze> => {
        if (isMapped()) throw new NotSavable('another domain has pages of it mapped');
        await writeWhole(path, (sink) => writeDomain(savable, sink), then === 'end' ? departure : null);
        return then === 'end' ? 'stay' : then === 'pause' ? 'pause' : 'as before';
      };
      await freezer.whileFrozen(write, (isUnwanted) => suspension.ask(isUnwanted));
    });
    return suspension.remark;
  }

  /** True when the domain has gone to the target, and stays frozen here. @throws NotSavable; it goes on as before then */
  async migrate(link: MigrationLink, options: MigrationOptions, departure: Departure): Promise<boolean> {
    let gone = false;
    await this.#alone('moved', async () => {
      const { freezable, freezer, workers, store, facts, isMapped, tracker, config, note } = this.#options;
      const text = (name: string): string | null => config(name, options.config, true);
      if (text('') === null) throw new NotSavable('it was made without a config that could be saved');
      if (freezable.domain.shutdownReason !== -1) throw new NotSavable('it has shut down');
      const cpu = await workers.ready;
      const saved: SavableDomain = { ...freezable, store, facts, cpu, config: (name) => text(name) ?? '' };
      const { command, debug } = options;
      const { notedCode } = workers;
      gone = await migrate({ saved, freezer, tracker, link, departure, isMapped, notedCode, command, debug, note });
    });
    return gone;
  }

  /** @throws what writing throws */
  async dumpCore(path: string): Promise<void> {
    await this.#alone('dumped', () =>
      this.#options.freezer.whileParked(() =>
        writeWhole(path, async (sink) => {
          for (const bytes of coreDump(this.#options.freezable.domain)) await sink(bytes);
        }),
      ),
    );
  }

  async #alone(doing: Doing, write: () => Promise<void>): Promise<void> {
    if (this.#doing !== null) throw new NotSavable(`it is being ${this.#doing} already`);
    this.#doing = doing;
    try {
      await write();
    } finally {
      this.#doing = null;
    }
  }
}
