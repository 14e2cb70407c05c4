/**
 * A domain among others of this state folder: its process answers those of other domains at a socket, and asks them at theirs
 * (hypervisor/peer-protocol.ts). Who may connect there may also do anything else with the domain, so a process is believed when it says
 * for which domain it asks; what that domain may have is checked in the grant table and the event channels of this one.
 *
 * A connection that ends, for whatever reason, gives back all that went over it. One that does not answer is ended.
 */
import { closeSync } from 'node:fs';
import type { Socket } from 'node:net';
import * as gnttab from '../abi/grant-table.ts';
import type { Dom0Channels } from '../hypervisor/dom0-channels.ts';
import type { Domain } from '../hypervisor/domain.ts';
import { GRANT_WORDS } from '../hypervisor/foreign-domains.ts';
import type { GrantMappings } from '../hypervisor/grant-mappings.ts';
import type { PageArrivals } from '../hypervisor/page-transfer.ts';
import { PeerClient } from '../hypervisor/peer-client.ts';
import * as peer from '../hypervisor/peer-protocol.ts';
import { PeerServer } from '../hypervisor/peer-server.ts';
import { PAGE_SIZE } from '../machine/memory.ts';
import { answerForeignCall, type ForeignCall, refuseForeignCall } from './foreign-calls.ts';
import { connectLocally, type Listen, listenLocally } from './local-socket.ts';
import { ForeignFrames, openRemoteMemory, type RemoteMemory } from './shared-memory.ts';
import { peerPath } from './state-dir.ts';

export interface PeersOptions {
  readonly domain: Domain;
  readonly channels: Dom0Channels;
  readonly grants: GrantMappings;
  readonly arrivals: PageArrivals;
  /** Descriptor of what other processes can map of its memory, once `share` has resolved; -1 if they cannot. */
  readonly memoryFd: number;
  /** Called before the first page is mapped. False: the memory cannot be shared. */
  readonly share: () => Promise<boolean>;
  readonly memoryStored: (offset: number, sizeBytes: number) => void;
  readonly stateRoot: string;
  readonly log: (line: string) => void;
}

/** Another domain that this one has asked something. */
interface Remote {
  readonly client: PeerClient;
  readonly socket: Socket;
  /** Null when its pages cannot be mapped here. */
  readonly memory: RemoteMemory | null;
}

const ANSWER_LIMIT_MS = 10_000;
const DOMID_MAX = 0x7fef;
/** Connections of other domains; more would only be a program that has lost count. */
const PEERS_MAX = 1024;

/** Beyond, events wait. */
const BACKLOG_BYTES = 256 << 10;

const isCongested = (socket: Socket): boolean => socket.writableLength > BACKLOG_BYTES;

export class Peers {
  readonly #options: PeersOptions;
  readonly #frames: ForeignFrames | null;
  readonly #remotes = new Map<number, Promise<Remote | null>>();
  readonly #sockets = new Set<Socket>();
  readonly #servers = new Set<PeerServer>();
  #server: { close(): void } | null = null;
  #toldOfMemory = false;

  constructor(options: PeersOptions) {
    this.#options = options;
    this.#frames = ForeignFrames.create(options.domain.machine);
  }

  /** From now on, other domains can reach this one. */
  async listen(listen: Listen = listenLocally): Promise<void> {
    const { stateRoot, domain } = this.#options;
    this.#server = await listen(peerPath(stateRoot, domain.domid), (socket) => this.#serveSocket(socket));
  }

  /** Another domain has pages of this one mapped. */
  get isMapped(): boolean {
    return [...this.#servers].some((server) => server.isMapped);
  }

  /** The domain has ended: the others get back what it holds of them, and it what they hold. */
  close(): void {
    this.#server?.close();
    for (const socket of this.#sockets) socket.destroy();
    this.#sockets.clear();
  }

  #serveSocket(socket: Socket): void {
    const { domain, memoryFd } = this.#options;
    if (this.#sockets.size >= PEERS_MAX) {
      socket.destroy();
      return;
    }
    const send = (message: Uint8Array): void => void socket.write(message);
    let server: PeerServer | null = null;
    let isShared = false;
    const handle = (message: peer.PeerMessage): boolean => {
      const asked = server;
      if (asked !== null && message.kind === peer.PEER_MAP && !isShared) {
        void this.#options.share().then((done) => {
          isShared = done;
          if (!socket.destroyed && !(done && asked.handle(message))) socket.destroy();
        });
        return true;
      }
      if (asked !== null) return asked.handle(message);
      const [peerDomid, askedDomid] = peer.wordsOf(message.body);
      if (message.kind !== peer.PEER_HELLO || askedDomid !== domain.domid) return false;
      if (!(peerDomid > 0 && peerDomid <= DOMID_MAX) || peerDomid === domain.domid) return false;
      const served = new PeerServer({ ...this.#options, peerDomid, send, isCongested: () => isCongested(socket) });
      server = served;
      this.#servers.add(served);
      send(peer.encodePeerMessage(peer.PEER_ANSWER, message.id, [process.pid, memoryFd + 1]));
      return true;
    };
    this.#attach(socket, handle, () => {
      if (server === null) return;
      this.#servers.delete(server);
      server.close();
    });
  }

  /** Cuts what comes into messages; false from `handle` ends the connection. */
  #attach(socket: Socket, handle: (message: peer.PeerMessage) => boolean, onClose: () => void): void {
    const reader = new peer.PeerReader();
    this.#sockets.add(socket);
    socket.on('error', () => {});
    socket.on('data', (chunk) => {
      for (const message of reader.take(chunk) ?? [null]) {
        if (socket.destroyed) return;
        if (message === null || !handle(message)) socket.destroy();
      }
    });
    socket.once('close', () => {
      this.#sockets.delete(socket);
      onClose();
    });
  }

  #remote(domid: number): Promise<Remote | null> {
    let remote = this.#remotes.get(domid);
    if (remote === undefined) {
      remote = this.#connect(domid);
      this.#remotes.set(domid, remote);
      void remote.then((found) => {
        if (found === null) this.#remotes.delete(domid);
      });
    }
    return remote;
  }

  async #connect(domid: number): Promise<Remote | null> {
    const { domain, channels, stateRoot } = this.#options;
    const socket = await connectLocally(peerPath(stateRoot, domid));
    if (socket === null) return null;
    const client = new PeerClient(
      domid,
      channels,
      (message) => void socket.write(message),
      () => isCongested(socket),
    );
    let memory: RemoteMemory | null = null;
    this.#attach(
      socket,
      (message) => client.handle(message),
      () => {
        this.#remotes.delete(domid);
        client.close();
        // What is mapped stays so: the pages live as long as somebody has them.
        if (memory !== null) closeSync(memory.fd);
      },
    );
    const body = await new Promise<Uint8Array<ArrayBuffer> | null>((resolve) =>
      this.#request({ client, socket, memory }, peer.PEER_HELLO, [domain.domid, domid], undefined, resolve),
    );
    if (body === null) return null;
    const [pid, fdPlusOne] = peer.wordsOf(body);
    if (fdPlusOne > 0 && !client.isGone) memory = openRemoteMemory(pid, fdPlusOne - 1);
    return { client, socket, memory };
  }

  /** Asks; ends a connection that does not answer. */
  #request(
    { client, socket }: Remote,
    kind: number,
    words: ArrayLike<number>,
    bytes: Uint8Array | undefined,
    onAnswer: (body: Uint8Array<ArrayBuffer> | null) => void,
  ): void {
    const timer = setTimeout(() => socket.destroy(), ANSWER_LIMIT_MS);
    client.request(kind, words, bytes, (body) => {
      clearTimeout(timer);
      onAnswer(body);
    });
  }

  /** Does what a vCPU asks of another domain, and answers it. */
  async serve(call: ForeignCall): Promise<void> {
    const remote = await this.#remote(call.domid);
    if (remote === null) {
      // What was mapped of a domain that is gone.
      if (call.kind === 'release') this.#dropFrames(call.frames);
      refuseForeignCall(call);
      return;
    }
    switch (call.kind) {
      case 'bind': {
        const timer = setTimeout(() => remote.socket.destroy(), ANSWER_LIMIT_MS);
        remote.client.bind(call.words[0], call.words[1], (rc) => {
          clearTimeout(timer);
          answerForeignCall(call, [rc]);
        });
        return;
      }
      case 'map':
        return this.#map(call, remote);
      case 'release':
        this.#dropFrames(call.frames);
        return this.#request(remote, peer.PEER_RELEASE, call.words, undefined, () => answerForeignCall(call, []));
      case 'read':
        return this.#copy(call, remote, peer.PEER_READ, call.words, undefined);
      case 'write': {
        const words = [call.words.length / 3, ...call.words];
        return this.#copy(call, remote, peer.PEER_WRITE, words, call.bytes);
      }
      case 'transfer':
        return this.#request(remote, peer.PEER_TRANSFER, call.words, call.bytes, (body) => {
          if (body === null || body.length !== 4) return refuseForeignCall(call);
          answerForeignCall(call, new Int32Array(body.buffer, 0, 1));
        });
    }
  }

  #copy(
    call: ForeignCall,
    remote: Remote,
    kind: number,
    words: ArrayLike<number>,
    bytes: Uint8Array | undefined,
  ): void {
    const count = call.words.length / 3;
    this.#request(remote, kind, words, bytes, (body) => {
      if (body === null || body.length < count * 4) return refuseForeignCall(call);
      answerForeignCall(call, new Int32Array(body.buffer, 0, count), body.subarray(count * 4));
    });
  }

  #map(call: ForeignCall, remote: Remote): void {
    const { memory } = remote;
    const frames = this.#frames;
    const count = call.words.length / GRANT_WORDS;
    if (memory === null || frames === null) {
      if (!this.#toldOfMemory) {
        this.#toldOfMemory = true;
        this.#options.log(
          `xl: domain ${this.#options.domain.domid}: pages of other domains cannot be mapped here: this needs Linux and the package koffi`,
        );
      }
      answerForeignCall(call, new Array<number>(count).fill(gnttab.GNTST_general_error));
      return;
    }
    this.#request(remote, peer.PEER_MAP, call.words, undefined, (body) => {
      if (body === null || body.length < count * 4) return refuseForeignCall(call);
      const results = new Int32Array(body.buffer, 0, count);
      const refused: number[] = [];
      for (let i = 0; i < count; i++) {
        if (results[i] < 0) continue;
        const [gref, writable] = call.words.subarray(i * GRANT_WORDS);
        const frame = frames.map(memory, results[i], writable !== 0);
        if (frame < 0) refused.push(gref, writable);
        else this.#options.memoryStored(frame * PAGE_SIZE, PAGE_SIZE);
        results[i] = frame < 0 ? gnttab.GNTST_no_device_space : frame;
      }
      const answer = (): void => {
        if (!answerForeignCall(call, results)) this.#release(call, remote, results);
      };
      if (refused.length === 0) return answer();
      this.#request(remote, peer.PEER_RELEASE, refused, undefined, answer);
    });
  }

  /** Gives back what was mapped for a vCPU that has not waited for it. */
  #release(call: ForeignCall, remote: Remote, results: Int32Array): void {
    const mapped = Array.from({ length: results.length }, (_, i) => i).filter((i) => results[i] >= 0);
    if (mapped.length === 0) return;
    this.#dropFrames(Int32Array.from(mapped, (i) => results[i]));
    const words = mapped.flatMap((i) => [...call.words.subarray(i * GRANT_WORDS, (i + 1) * GRANT_WORDS)]);
    this.#request(remote, peer.PEER_RELEASE, words, undefined, () => {});
  }

  #dropFrames(frames: Int32Array): void {
    for (const frame of frames) {
      this.#frames?.unmap(frame);
      this.#options.memoryStored(frame * PAGE_SIZE, PAGE_SIZE);
    }
  }
}
