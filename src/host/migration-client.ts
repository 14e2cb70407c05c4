/**
 * What `xl migrate` does: opens the way to the target (migration-carrier.ts), and carries bytes between that and the process of the domain,
 * which does the rest (migration-sender.ts). When this ends, or the way does, both of them notice.
 */

import type { Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { LineReader } from './control-protocol.ts';
import { connectLocally } from './local-socket.ts';
import { lowerPriority } from './low-priority.ts';
import { type Carrier, CarrierError, commandCarrier, type TlsTarget, tlsCarrier } from './migration-carrier.ts';
import {
  FRAME_BEGIN,
  FRAME_BYTES,
  FRAME_DETAIL,
  FRAME_ENDED,
  FRAME_GO,
  FRAME_HANG_UP,
  FRAME_LINE,
  FRAME_LOST,
  FRAME_RESULT,
  FrameReader,
  frame,
  type MigrationOptions,
  textFrame,
} from './migration-frames.ts';
import { REPORT } from './migration-protocol.ts';
import { migrationPath, stateRoot } from './state-dir.ts';

export interface MigrationRequest {
  readonly domid: number;
  /** A command that reaches the target, or where its daemon listens. */
  readonly way: string | Omit<TlsTarget, 'root'>;
  /** Config text for the target instead of the domain's own; null: its own. */
  readonly config: string | null;
  /** All pages are compared at the target. */
  readonly debug: boolean;
  readonly tell: (line: string) => void;
  readonly detail: (line: string) => void;
}

/** Of a way that takes nothing: longer than the domain's patience (migration-server.ts). What the domain says then lies behind what the way does not take. */
const STUCK_LIMIT_MS = 65_000;
/** How long the target's report is waited for when the domain's process is gone that would. */
const REPORT_LIMIT_MS = 30_000;

/** Resolves with xl's exit code when the domain is gone, or stays; null: there is no such domain. */
export async function migrateDomain(
  request: MigrationRequest,
  root: string = stateRoot(),
  stuckLimitMs = STUCK_LIMIT_MS,
): Promise<number | null> {
  const { way, config, debug, tell } = request;
  const socket = await connectLocally(migrationPath(root, request.domid));
  if (socket === null) return null;
  let carrier: Carrier;
  try {
    carrier = typeof way === 'string' ? commandCarrier(way, tell) : await tlsCarrier({ ...way, root }, tell);
  } catch (error) {
    if (!(error instanceof CarrierError)) throw error;
    socket.destroy();
    tell(`libxl: error: ${error.message}`);
    return 1;
  }
  const command = typeof way === 'string' ? way : '';
  socket.write(textFrame(FRAME_BEGIN, JSON.stringify({ command, config, debug } satisfies MigrationOptions)));
  const report = new TargetReport();
  carrier.answers.on('data', (bytes: Uint8Array) => {
    report.take(bytes);
    socket.write(frame(FRAME_BYTES, bytes));
  });
  carrier.answers.on('end', () => {
    report.end();
    socket.write(frame(FRAME_ENDED, new Uint8Array(0)));
  });
  const { code, saidGo } = await carry(request, socket, carrier, stuckLimitMs);
  const known = code ?? (await afterItsEnd(request, saidGo ? report : null));
  carrier.close();
  return known;
}

/** What the target says of the start of the domain. */
class TargetReport {
  readonly #reader = new LineReader();
  readonly #known = Promise.withResolvers<string | null>();
  #isNext = false;

  take(bytes: Uint8Array): void {
    const lines = this.#reader.take(bytes);
    if (lines === null) this.end();
    for (const line of lines ?? []) {
      if (this.#isNext) this.#known.resolve(line);
      this.#isNext = line === REPORT;
    }
  }

  /** Nothing more comes. */
  end(): void {
    this.#known.resolve(null);
  }

  /** '0': it runs. Null: nothing was heard within the limit. */
  async status(): Promise<string | null> {
    return await Promise.race([this.#known.promise, sleep(REPORT_LIMIT_MS, null, { ref: false })]);
  }
}

/** The domain is not here any more, and has not said what became of it elsewhere. `report`: of a target that had permission to start; null: it had none. */
async function afterItsEnd({ domid, tell }: MigrationRequest, report: TargetReport | null): Promise<number> {
  const ended = `Domain ${domid}: it has ended here meanwhile`;
  if (report === null) {
    tell(`libxl: error: ${ended}; the target had no permission to start, and throws its copy away`);
    return 1;
  }
  const status = await report.status();
  if (status === '0') {
    tell(`libxl: info: ${ended}; the target reports successful startup`);
    return 0;
  }
  tell(
    `libxl: error: ${ended}${status === null ? '; the target had permission to start: look there' : `, and the target could not start it (status code ${Number.parseInt(status, 10) || 1})`}`,
  );
  return 1;
}

/**
 * Does what the domain says, in its order; its result, or null when its process ends without one. `saidGo`: the target has been given the permission to
 * start, as far as that can be known here.
 */
async function carry(
  { tell, detail }: MigrationRequest,
  socket: Socket,
  carrier: Carrier,
  stuckLimitMs: number,
): Promise<{ readonly code: number | null; readonly saidGo: boolean }> {
  let stuck: NodeJS.Timeout | undefined;
  let code: number | null = null;
  let doing: Promise<void> = Promise.resolve();
  let hasHungUp = false;
  let saidGo = false;
  const text = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);
  const inTurn = (act: () => void | Promise<void>): void => {
    doing = doing.then(act);
  };
  const reader = new FrameReader((kind, bytes) => {
    if ((kind === FRAME_BYTES || kind === FRAME_GO) && !hasHungUp) {
      const isGo = kind === FRAME_GO;
      if (isGo) saidGo = true;
      const onLost = (): void => {
        if (isGo) saidGo = false;
        socket.write(frame(FRAME_LOST, new Uint8Array(0)));
      };
      if (!carrier.send(Uint8Array.from(bytes), onLost)) {
        socket.pause();
        stuck ??= setTimeout(() => carrier.close(), stuckLimitMs);
      }
    } else if (kind === FRAME_LINE || kind === FRAME_DETAIL) {
      const line = text(bytes);
      inTurn(() => (kind === FRAME_LINE ? tell : detail)(line));
    } else if (kind === FRAME_HANG_UP) {
      hasHungUp = true;
      inTurn(() => carrier.hangUp());
    } else if (kind === FRAME_RESULT) {
      const [said] = bytes;
      inTurn(() => {
        code = said;
        if (said === 0) lowerPriority(false);
        // A domain that has gone ends the connection itself, when nothing is left of it.
        if (said !== 0) socket.destroy();
      });
    }
  });
  carrier.onRoom(() => {
    clearTimeout(stuck);
    stuck = undefined;
    socket.resume();
  });
  socket.on('data', (bytes) => {
    if (!reader.push(bytes)) socket.destroy();
  });
  await new Promise<void>((resolve) => {
    socket.on('close', () => resolve());
    if (socket.destroyed) resolve();
  });
  clearTimeout(stuck);
  await doing;
  return { code, saidGo };
}
