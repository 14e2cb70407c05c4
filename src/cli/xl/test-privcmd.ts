/**
 * The hypercalls of Debian's xl, answered from the state that our own xl shows: what libxl asks Xen for when it lists and pauses domains. They
 * arrive from test-privcmd.c.
 *
 * Source: xen/include/public/{sysctl,domctl,version}.h of Xen 4.17 (numbers and layouts).
 */

import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { cpus, freemem, totalmem } from 'node:os';
import { setPaused } from '../../host/domain-client.ts';
import { hypervisorLogPath, stateRoot } from '../../host/state-dir.ts';
import { hypervisorFacts } from '../../toolstack/hypervisor-facts.ts';
import type { XenstoreClient } from '../../xenstore/client.ts';
import { type DomainReport, domainReport } from './domain-report.ts';
import { allDomains } from './domains.ts';

const [EINVAL, ENOENT, ESRCH, ENOSYS] = [-22, -2, -3, -38];
const HYPERCALL = { xen_version: 17, sysctl: 35, domctl: 36 };
const SYSCTL = { readconsole: 1, physinfo: 3, sched_id: 4, getdomaininfolist: 6, cpupool_op: 18 };
const DOMCTL = { pausedomain: 3, unpausedomain: 4, getdomaininfo: 5, getvcpuinfo: 14, getvcpuaffinity: 25 };
const INTERFACE_VERSION = 0x15;
const DOMAININFO_SIZE = 112;
const DOMINF = { dying: 1, shutdown: 4, paused: 8, blocked: 16, running: 32, shutdownShift: 16 };
const CPUPOOL_OP_INFO = 3;
const SCHEDULER_NULL = 9;

/** The memory of the process that calls. */
class Caller {
  readonly #socket: Socket;
  #input = Buffer.alloc(0);
  #wake: () => void = () => {};
  #ended = false;

  constructor(socket: Socket) {
    this.#socket = socket;
    socket.on('data', (bytes: Buffer) => {
      this.#input = Buffer.concat([this.#input, bytes]);
      this.#wake();
    });
    socket.on('error', () => {});
    socket.on('close', () => {
      this.#ended = true;
      this.#wake();
    });
  }

  /** Null when the process is gone. */
  async take(length: number): Promise<Buffer | null> {
    while (this.#input.length < length) {
      if (this.#ended) return null;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    const taken = this.#input.subarray(0, length);
    this.#input = this.#input.subarray(length);
    return taken;
  }

  async read(address: bigint, length: number): Promise<Buffer> {
    this.#send('r', address, BigInt(length));
    const bytes = await this.take(length);
    if (bytes === null) throw new Error('the caller is gone');
    return bytes;
  }

  write(address: bigint, bytes: Uint8Array): void {
    this.#send('w', address, BigInt(bytes.length));
    this.#socket.write(bytes);
  }

  done(result: number): void {
    this.#send('d', 0n, BigInt(result));
  }

  #send(what: string, first: bigint, second: bigint): void {
    const message = Buffer.alloc(17);
    message.write(what);
    message.writeBigUInt64LE(first, 1);
    message.writeBigInt64LE(second, 9);
    this.#socket.write(message);
  }
}

/** Listens at `path` for processes that were started with DOMUS_PRIVCMD. */
export async function servePrivcmd(path: string, store: XenstoreClient): Promise<Server> {
  rmSync(path, { force: true });
  const server = createServer((socket) => void serve(new Caller(socket), store));
  await new Promise<void>((resolve) => server.listen(path, resolve));
  return server;
}

async function serve(caller: Caller, store: XenstoreClient): Promise<void> {
  for (;;) {
    const call = await caller.take(48);
    if (call === null) return;
    const op = Number(call.readBigUInt64LE(0));
    const args = [8, 16].map((at) => call.readBigUInt64LE(at));
    if (op === HYPERCALL.xen_version) caller.done(xenVersion(caller, Number(args[0]), args[1]));
    else if (op === HYPERCALL.sysctl) caller.done(await sysctl(caller, args[0], store));
    else if (op === HYPERCALL.domctl) caller.done(await domctl(caller, args[0], store));
    else caller.done(ENOSYS);
  }
}

function xenVersion(caller: Caller, command: number, at: bigint): number {
  const facts = hypervisorFacts();
  const text = (size: number, ...fields: readonly (readonly [offset: number, value: string])[]): number => {
    const bytes = Buffer.alloc(size);
    for (const [offset, value] of fields) bytes.write(value, offset);
    caller.write(at, bytes);
    return 0;
  };
  switch (command) {
    case 0:
      return (facts.major << 16) | facts.minor;
    case 1:
      return text(16, [0, facts.extraversion]);
    case 2:
      return text(144, [0, facts.compiler], [64, facts.compileBy], [80, facts.compileDomain], [112, facts.compileDate]);
    case 3:
      return text(1024, [0, facts.capabilities]);
    case 4:
      return text(64);
    case 5: {
      const bytes = Buffer.alloc(8);
      bytes.writeBigUInt64LE(facts.virtualStart);
      caller.write(at, bytes);
      return 0;
    }
    case 7:
      return facts.pageSize;
    case 9:
      return text(1024);
    default:
      return ENOSYS;
  }
}

async function reports(store: XenstoreClient): Promise<DomainReport[]> {
  const found: DomainReport[] = [];
  for (const { domid } of await allDomains(store)) {
    const report = await domainReport(store, domid);
    if (report !== null) found.push(report);
  }
  return found;
}

/** struct xen_domctl_getdomaininfo. */
function domainInfo(report: DomainReport): Buffer {
  const info = Buffer.alloc(DOMAININFO_SIZE);
  const { shutdownReason } = report;
  info.writeUInt16LE(report.domid, 0);
  let flags = 0;
  if (report.dying) flags |= DOMINF.dying;
  if (report.paused) flags |= DOMINF.paused;
  if (report.blocked) flags |= DOMINF.blocked;
  if (report.running) flags |= DOMINF.running;
  if (shutdownReason !== -1) flags |= DOMINF.shutdown | (shutdownReason << DOMINF.shutdownShift);
  info.writeUInt32LE(flags, 4);
  info.writeBigUInt64LE(BigInt(report.memoryKiB / 4), 8);
  info.writeBigUInt64LE(BigInt(report.memoryKiB / 4), 16);
  info.writeBigUInt64LE(BigInt(Math.round(report.seconds * 1e9)), 56);
  info.writeUInt32LE(report.vcpus.filter(({ online }) => online).length, 64);
  info.writeUInt32LE(report.vcpus.length - 1, 68);
  Buffer.from(report.uuid.replaceAll('-', ''), 'hex').copy(info, 76);
  return info;
}

async function sysctl(caller: Caller, at: bigint, store: XenstoreClient): Promise<number> {
  const request = await caller.read(at, 136);
  const command = request.readUInt32LE(0);
  if (request.readUInt32LE(4) !== INTERFACE_VERSION) return EINVAL;
  let result = 0;
  switch (command) {
    case SYSCTL.readconsole: {
      let log: Buffer;
      try {
        log = readFileSync(hypervisorLogPath(stateRoot()));
      } catch {
        log = Buffer.alloc(0);
      }
      const [clear, incremental] = [request[8], request[9]];
      const from = incremental === 0 ? 0 : Math.min(request.readUInt32LE(12), log.length);
      const part = log.subarray(from, from + request.readUInt32LE(24));
      caller.write(request.readBigUInt64LE(16), part);
      // What has been read is cleared, and the caller comes back for the rest.
      request.writeUInt32LE(clear === 0 ? from + part.length : 0, 12);
      request.writeUInt32LE(part.length, 24);
      if (clear !== 0) writeFileSync(hypervisorLogPath(stateRoot()), log.subarray(from + part.length));
      break;
    }
    case SYSCTL.physinfo: {
      request.writeUInt32LE(1, 8);
      request.writeUInt32LE(cpus().length, 12);
      request.writeUInt32LE(cpus().length, 16);
      request.writeUInt32LE(cpus().length - 1, 20);
      request.writeUInt32LE(1, 24);
      request.writeUInt32LE((cpus()[0]?.speed ?? 0) * 1000, 32);
      request.writeBigUInt64LE(BigInt(Math.floor(totalmem() / 4096)), 48);
      request.writeBigUInt64LE(BigInt(Math.floor(freemem() / 4096)), 56);
      break;
    }
    case SYSCTL.sched_id:
      request.writeUInt32LE(SCHEDULER_NULL, 8);
      break;
    case SYSCTL.getdomaininfolist: {
      const first = request.readUInt16LE(8);
      const wanted = (await reports(store)).filter(({ domid }) => domid >= first).slice(0, request.readUInt32LE(12));
      caller.write(request.readBigUInt64LE(16), Buffer.concat(wanted.map(domainInfo)));
      request.writeUInt32LE(wanted.length, 24);
      break;
    }
    case SYSCTL.cpupool_op: {
      if (request.readUInt32LE(8) !== CPUPOOL_OP_INFO) return ENOSYS;
      if (request.readUInt32LE(12) !== 0) return ENOENT;
      request.writeUInt32LE(SCHEDULER_NULL, 16);
      request.writeUInt32LE((await reports(store)).length, 28);
      writeAllSet(caller, request.readBigUInt64LE(32), request.readUInt32LE(40));
      break;
    }
    default:
      result = ENOSYS;
  }
  caller.write(at, request);
  return result;
}

/** A bitmap of the host's CPUs, as far as there is room: all of them. */
function writeAllSet(caller: Caller, at: bigint, bits: number): void {
  const map = Buffer.alloc(Math.ceil(bits / 8));
  for (let bit = 0; bit < Math.min(bits, cpus().length); bit++) map[bit >> 3] |= 1 << (bit & 7);
  if (map.length > 0) caller.write(at, map);
}

async function domctl(caller: Caller, at: bigint, store: XenstoreClient): Promise<number> {
  const request = await caller.read(at, 144);
  const command = request.readUInt32LE(0);
  if (request.readUInt32LE(4) !== INTERFACE_VERSION) return EINVAL;
  const report = await domainReport(store, request.readUInt16LE(8));
  if (report === null) return ESRCH;
  switch (command) {
    case DOMCTL.pausedomain:
    case DOMCTL.unpausedomain:
      if (report.domid === 0) return EINVAL;
      return (await setPaused(report.domid, command === DOMCTL.pausedomain)) ? 0 : ESRCH;
    case DOMCTL.getdomaininfo:
      domainInfo(report).copy(request, 16);
      break;
    case DOMCTL.getvcpuinfo: {
      const vcpu = report.vcpus[request.readUInt32LE(16)];
      if (vcpu === undefined) return EINVAL;
      request[20] = Number(vcpu.online);
      request[21] = Number(vcpu.blocked);
      request[22] = Number(vcpu.running);
      request.writeBigUInt64LE(BigInt(Math.round(vcpu.seconds * 1e9)), 24);
      request.writeUInt32LE(report.domid === 0 ? request.readUInt32LE(16) : 0, 32);
      break;
    }
    case DOMCTL.getvcpuaffinity:
      for (const [flag, map] of [
        [1, 24],
        [2, 40],
      ])
        if ((request.readUInt32LE(20) & flag) !== 0)
          writeAllSet(caller, request.readBigUInt64LE(map), request.readUInt32LE(map + 8));
      break;
    default:
      return ENOSYS;
  }
  caller.write(at, request);
  return 0;
}
