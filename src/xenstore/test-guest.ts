/** For the tests: a guest's end of the xenstore ring page. */
import { XENSTORE_RING_SIZE, XENSTORE_DOMAIN_INTERFACE as XSDI } from '../abi/io/xs-wire.ts';
import { type Message, MessageDecoder } from './wire.ts';

export class TestGuest {
  readonly page = new Uint8Array(new SharedArrayBuffer(3 * 4096), 4096, 4096);
  readonly words = new Uint32Array(this.page.buffer, 4096 + XSDI.req_cons, 8);
  readonly decoder = new MessageDecoder();
  notified = 0;

  word(offset: number): number {
    return Atomics.load(this.words, (offset - XSDI.req_cons) / 4);
  }

  setWord(offset: number, value: number): void {
    Atomics.store(this.words, (offset - XSDI.req_cons) / 4, value);
  }

  /** Writes what fits; how much. */
  write(bytes: Uint8Array): number {
    const prod = this.word(XSDI.req_prod);
    const free = XENSTORE_RING_SIZE - ((prod - this.word(XSDI.req_cons)) >>> 0);
    const count = Math.min(free, bytes.length);
    for (let i = 0; i < count; i++) this.page[XSDI.req + ((prod + i) & (XENSTORE_RING_SIZE - 1))] = bytes[i];
    this.setWord(XSDI.req_prod, (prod + count) >>> 0);
    return count;
  }

  /** Reads up to `max` bytes; the messages that became whole. */
  read(max = XENSTORE_RING_SIZE): Message[] {
    const messages: Message[] = [];
    let cons = this.word(XSDI.rsp_cons);
    const count = Math.min(max, (this.word(XSDI.rsp_prod) - cons) >>> 0);
    for (let i = 0; i < count; i++, cons++) {
      const decoded = this.decoder.push(this.page.slice(XSDI.rsp + (cons & 1023), XSDI.rsp + (cons & 1023) + 1));
      if (decoded.kind === 'violation') throw new Error('the server broke the protocol');
      if (decoded.kind === 'message') messages.push(decoded.message);
    }
    this.setWord(XSDI.rsp_cons, cons >>> 0);
    return messages;
  }
}
