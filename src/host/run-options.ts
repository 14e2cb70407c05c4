/** What somebody who runs a domain says of it, and hears of its end. */

import {
  SHUTDOWN_crash,
  SHUTDOWN_poweroff,
  SHUTDOWN_reboot,
  SHUTDOWN_soft_reset,
  SHUTDOWN_suspend,
  SHUTDOWN_watchdog,
} from '../abi/xen.ts';
import type { ConfigAndText, MovedDisk } from '../toolstack/config/device-specs.ts';
import type { DomainConfig, ShutdownAction } from '../toolstack/config/domain-config.ts';
import type { ConsoleEnds } from './console-ends.ts';
import type { XenstoreChoice } from './domain-xenstore.ts';
import type { EarlyThreads } from './early-threads.ts';
import type { RestorableDomain } from './forked-domain.ts';
import type { LiveDomain, LiveHooks } from './live-domain.ts';

export type EndReason = 'poweroff' | 'reboot' | 'suspend' | 'crash' | 'watchdog' | 'destroyed' | 'detached';

export interface RunOptions {
  readonly console: ConsoleEnds | null;
  readonly log: (line: string) => void;
  readonly quiet: boolean;
  /** Whose xenstore the domain uses; 'private' if left out. */
  readonly xenstore?: XenstoreChoice;
  /** Called once, when the domain has been built and is about to run: nothing that the user gave can be wrong any more. */
  readonly onStart?: () => void;
  /** Called once, for a domain that was restored and is not paused: when its first vCPU went on, in ns of the host's monotonic clock. */
  readonly onWentOn?: (atNs: number) => void;
  /** The vCPUs do not run before somebody unpauses the domain. Not so after a restart. */
  readonly paused?: boolean;
  /** Whatever ends the domain, it stays as it is until it is destroyed: no on_* action is done. */
  readonly preserve?: boolean;
  /** Called for each domid before it runs; all that takes time is done there. */
  readonly onLive?: (domain: LiveDomain) => Promise<LiveHooks>;
  /** Called with each domid before anything is made for it. */
  readonly onAllocated?: (domid: number) => void;
  /** The config for the next start, if it may have changed. */
  readonly nextConfig?: () => DomainConfig;
  /** What xl notes of the domain's life. */
  readonly note?: (line: string) => void;
  /** Ends the domain at once. */
  readonly signal?: AbortSignal;
  /** The config as it is now, for who saves the domain, with the text that it was read from; without, it cannot be saved. */
  readonly written?: () => ConfigAndText;
  /** A saved domain, which goes on instead of being built. Read once. */
  readonly restore?: RestorableDomain;
  /** Its guest stands still, here or elsewhere, until this one goes on with it. */
  readonly standsStill?: boolean;
  /** Threads that have been started for its vCPUs. */
  readonly threads?: EarlyThreads;
  /** Called when a disk is in another image from now on, before anything is written to that. */
  readonly onDiskMoved?: (moved: MovedDisk) => void;
  /** It goes on even where the CPU lacks what its guest has seen. */
  readonly force?: boolean;
  /** The saved domain is still at another host, and is kept below another name until that gives it away. */
  readonly incoming?: Incoming;
}

export interface Incoming {
  readonly name: string;
  /** Resolves when the domain may have its devices, its name, and run. @throws HostError */
  permission(): Promise<void>;
}

export interface DomainEnd {
  readonly reason: EndReason;
  readonly exitCode: number;
}

const REASONS: Readonly<Record<number, EndReason>> = {
  [SHUTDOWN_poweroff]: 'poweroff',
  [SHUTDOWN_reboot]: 'reboot',
  [SHUTDOWN_suspend]: 'suspend',
  [SHUTDOWN_crash]: 'crash',
  [SHUTDOWN_watchdog]: 'watchdog',
  [SHUTDOWN_soft_reset]: 'reboot',
};

/** `shutdown`: SHUTDOWN_*, any number. */
export function endReason(shutdown: number): EndReason {
  return REASONS[shutdown] ?? 'crash';
}

export function actionFor(config: DomainConfig, reason: EndReason): ShutdownAction {
  switch (reason) {
    case 'reboot':
      return config.onReboot;
    case 'crash':
      return config.onCrash;
    case 'watchdog':
      return config.onWatchdog;
    default:
      return config.onPoweroff;
  }
}

/** The domain is started again then. */
export function restarts(action: ShutdownAction): boolean {
  return ['restart', 'rename-restart', 'coredump-restart', 'soft-reset'].includes(action);
}
