/**
 * console_io: Xen's emergency console, which a kernel uses before its own is up. Source: xen/include/public/xen.h;
 * xen/drivers/char/console.c (behaviour).
 *
 * Text goes to a ring in the domain's shared state; the main thread takes it out and writes it to the domain's log. The producer
 * counts bytes and never waits: a reader that finds more than consoleIoSize bytes outstanding has lost the oldest ones.
 * Deviation: Xen refuses a DomU unless it was built for debugging; Domus takes its text.
 */

import { CONSOLEIO_read, CONSOLEIO_write } from '../../abi/console-io.ts';
import { E2BIG, EFAULT, ENOSYS } from '../../abi/errno.ts';
import { DOMAIN, type Domain } from '../domain.ts';
import type { Vcpu } from '../vcpu.ts';
import { handleHi, handleLo, stopRequested } from './guest-handle.ts';

/** Bytes read from the guest at a time: below one page, so that a fault comes late rather than never. */
const CHUNK = 1024;
const RING_MASK = DOMAIN.consoleIoSize - 1;
const PRODUCER = DOMAIN.consoleIoProducer >> 2;

/** Printable ASCII, tab and newline: what Xen lets through. */
function isText(byte: number): boolean {
  return (byte >= 0x20 && byte < 0x7f) || byte === 0x09 || byte === 0x0a;
}

function write(v: Vcpu, count: number, bufferLo: number, bufferHi: number): number {
  const { domain, access } = v;
  let lo = bufferLo;
  let hi = bufferHi;
  let rc = 0;
  for (let left = count; left > 0 && !stopRequested(v); ) {
    const n = Math.min(left, CHUNK);
    if (!access.copyIn(lo, hi, n)) {
      rc = -EFAULT;
      break;
    }
    domain.lock();
    let producer = domain.u32[PRODUCER];
    for (let i = 0; i < n; i++) {
      const byte = access.bytes[i];
      if (!isText(byte)) continue;
      domain.u8[DOMAIN.consoleIoRing + (producer & RING_MASK)] = byte;
      producer = (producer + 1) >>> 0;
    }
    Atomics.store(domain.u32, PRODUCER, producer);
    domain.unlock();
    hi = handleHi(lo, hi, n);
    lo = handleLo(lo, n);
    left -= n;
  }
  domain.ringDoorbell();
  return rc;
}

/** (cmd, count, buffer) */
export function consoleIo(v: Vcpu): number {
  const count = v.args[2];
  switch (v.args[0]) {
    case CONSOLEIO_write:
      return count === 0 ? 0 : write(v, count, v.args[4], v.args[5]);
    case CONSOLEIO_read:
      // Nobody types there.
      return count > 0x7fffffff ? -E2BIG : 0;
    default:
      return -ENOSYS;
  }
}

/** What the guest wrote by console_io since the last call: for the main thread. */
export function takeConsoleIo(domain: Domain): Uint8Array {
  const prod = Atomics.load(domain.i32, DOMAIN.consoleIoProducer >> 2);
  let cons = domain.i32[DOMAIN.consoleIoConsumer >> 2];
  if ((prod - cons) >>> 0 > DOMAIN.consoleIoSize) cons = (prod - DOMAIN.consoleIoSize) | 0;
  const length = (prod - cons) >>> 0;
  const bytes = new Uint8Array(length);
  for (let i = 0; i < length; i++)
    bytes[i] = domain.u8[DOMAIN.consoleIoRing + ((cons + i) & (DOMAIN.consoleIoSize - 1))];
  domain.i32[DOMAIN.consoleIoConsumer >> 2] = prod;
  return bytes;
}
