/**
 * Tells a domain process of devices that somebody else plugs into its domain: `xl block-attach` in another process, or any
 * toolstack that makes the nodes of a device with Xen's own means. As Linux's Dom0 does it, the backend's folder is watched.
 */

import type { XenstoreClient } from '../xenstore/client.ts';

/** Folders of Dom0's `backend` that are looked at. */
export const BACKEND_KINDS: readonly string[] = ['vbd', 'qdisk', 'vif'];

export interface PlugWatcherOptions {
  readonly store: XenstoreClient;
  readonly domid: number;
  /** Called for each device that there is, again whenever devices come or go. Never twice at a time. */
  readonly onDevice: (backendKind: string, id: number) => Promise<void>;
  readonly log: (line: string) => void;
}

export class PlugWatcher {
  readonly #options: PlugWatcherOptions;
  #changed = false;
  #running: Promise<void> | null = null;
  #stopped = false;
  #isHeld = false;

  constructor(options: PlugWatcherOptions) {
    this.#options = options;
  }

  async start(): Promise<void> {
    const { store } = this.#options;
    const watch = (path: string): Promise<void> =>
      store.watch(path, this.#token, (event) => this.#onEvent(path, event));
    await Promise.all(this.#paths().map(watch));
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    const { store } = this.#options;
    for (const path of this.#paths()) store.unwatch(path, this.#token).catch(() => undefined);
    await this.#running;
  }

  /** Nothing is done about devices from when this resolves until `release`: that is done then. */
  async hold(): Promise<void> {
    this.#isHeld = true;
    await this.#running;
  }

  release(): void {
    this.#isHeld = false;
    if (this.#changed) this.#look();
  }

  get #token(): string {
    return `plug ${this.#options.domid}`;
  }

  #paths(): string[] {
    return BACKEND_KINDS.map((kind) => `/local/domain/0/backend/${kind}/${this.#options.domid}`);
  }

  /** What changes within a device is no business of ours. */
  #onEvent(folder: string, path: string): void {
    const below = path.slice(folder.length).split('/');
    if (below.length > 2 && below[2] !== 'state') return;
    this.#changed = true;
    this.#look();
  }

  #look(): void {
    if (!this.#isHeld && !this.#stopped) this.#running ??= this.#run();
  }

  async #run(): Promise<void> {
    const { store, onDevice, log } = this.#options;
    try {
      while (this.#changed && !this.#stopped && !this.#isHeld) {
        this.#changed = false;
        for (const folder of this.#paths())
          for (const name of (await store.directory(folder)) ?? []) {
            if (!/^\d{1,9}$/.test(name) || this.#stopped) continue;
            // What is left out is looked at later.
            if (this.#isHeld) this.#changed = true;
            else await onDevice(folder.split('/').at(-2) ?? '', Number(name));
          }
      }
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      log(`looking for new devices: ${error.message}`);
    } finally {
      this.#running = null;
    }
  }
}
