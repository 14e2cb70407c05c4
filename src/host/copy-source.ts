/**
 * What a copy of a domain goes on from, as its own process gets it: from the process of the domain, by the control socket of which it asks before the
 * domain is copied. What it waits for are the two answers.
 */

import type { Socket } from 'node:net';
import { createOverlay } from '../storage/host/overlay.ts';
import { type ControlMethod, type ControlParameters, LineReader } from './control-protocol.ts';
import type { FrozenMemory } from './copied-memory.ts';
import type { ForkStart } from './domain-copies.ts';
import type { CopySource, ForkRequest, ForkSource } from './forked-domain.ts';
import { HostError } from './host-error.ts';
import { connectLocally } from './local-socket.ts';
import { controlPath, overlayPath } from './state-dir.ts';

/** What the process of a domain answers to a question. */
interface Answer {
  readonly id: number;
  readonly result?: unknown;
  readonly error?: { readonly message: string };
}

export class DomainSource implements CopySource {
  readonly #request: ForkRequest;
  readonly #questions: Questions;
  /** Called when it waits for nothing but the answers. */
  readonly #onReady: () => Promise<void>;

  /** @throws HostError when the domain's process is gone */
  static async open(request: ForkRequest, root: string, onReady: () => Promise<void>): Promise<DomainSource> {
    const socket = await connectLocally(controlPath(root, request.domid));
    if (socket === null) throw gone(request.domid);
    return new DomainSource(request, new Questions(socket, request.domid), onReady);
  }

  private constructor(request: ForkRequest, questions: Questions, onReady: () => Promise<void>) {
    this.#request = request;
    this.#questions = questions;
    this.#onReady = onReady;
  }

  async early(): Promise<FrozenMemory | null> {
    return (await this.#questions.ask('fork-early')) as FrozenMemory | null;
  }

  /** The domain has been copied, and the copy's disks are made. @throws HostError, and what making them throws */
  async take(): Promise<ForkSource> {
    const { ticket, folder } = this.#request;
    const start = this.#questions.ask('fork-start', { ticket }) as Promise<ForkStart>;
    const memory = this.#questions.ask('fork-memory', { ticket }) as Promise<FrozenMemory | null>;
    // Whoever waits for them hears of it.
    for (const answer of [start, memory]) answer.catch(() => undefined);
    void memory.catch(() => undefined).then(() => this.#questions.close());
    await this.#onReady();
    const { disks: frozen, ...state } = await start;
    const disks: Record<number, string> = {};
    await Promise.all(
      frozen.map(async ({ id, vdev, base }) => {
        disks[id] = overlayPath(folder, vdev);
        await createOverlay(disks[id], base, { sync: false });
      }),
    );
    return { ...state, disks, memory };
  }

  /** Nobody answers any more. */
  close(): void {
    this.#questions.close();
  }
}

/** Several questions on one connection. */
class Questions {
  readonly #socket: Socket;
  readonly #waiting = new Map<number, PromiseWithResolvers<unknown>>();
  readonly #domid: number;
  #lastId = 0;

  constructor(socket: Socket, domid: number) {
    this.#socket = socket;
    this.#domid = domid;
    const reader = new LineReader();
    socket.on('data', (bytes) => {
      const lines = reader.take(bytes);
      if (lines === null) socket.destroy();
      for (const line of lines ?? []) this.#take(JSON.parse(line) as Answer);
    });
    socket.on('close', () => {
      for (const { reject } of this.#waiting.values()) reject(gone(domid));
      this.#waiting.clear();
    });
  }

  ask(method: ControlMethod, params: ControlParameters = {}): Promise<unknown> {
    if (this.#socket.destroyed) return Promise.reject(gone(this.#domid));
    const id = ++this.#lastId;
    const answer = Promise.withResolvers<unknown>();
    this.#waiting.set(id, answer);
    this.#socket.write(`${JSON.stringify({ jsonrpc: '2.0', id, method, params })}\n`);
    return answer.promise;
  }

  close(): void {
    this.#socket.destroy();
  }

  #take({ id, result, error }: Answer): void {
    const answer = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (error === undefined) answer?.resolve(result);
    else answer?.reject(new HostError(`Domain ${this.#domid}:${error.message}`));
  }
}

function gone(domid: number): HostError {
  return new HostError(`Domain ${domid}: its process is gone`);
}
