/** A growing buffer of bytes in the WebAssembly binary format. Source: WebAssembly Core Specification 2.0, 5.2 (values). */

export class ByteWriter {
  #bytes: Uint8Array<ArrayBuffer>;
  #length = 0;

  constructor(capacity = 1024) {
    this.#bytes = new Uint8Array(capacity);
  }

  get length(): number {
    return this.#length;
  }

  /** What has been written; valid until the next write. */
  view(): Uint8Array<ArrayBuffer> {
    return this.#bytes.subarray(0, this.#length);
  }

  clear(): void {
    this.#length = 0;
  }

  #reserve(count: number): void {
    const needed = this.#length + count;
    if (needed <= this.#bytes.length) return;
    const grown = new Uint8Array(Math.max(needed, this.#bytes.length * 2));
    grown.set(this.#bytes);
    this.#bytes = grown;
  }

  u8(value: number): void {
    if (this.#length === this.#bytes.length) this.#reserve(1);
    this.#bytes[this.#length++] = value;
  }

  append(bytes: Uint8Array): void {
    this.#reserve(bytes.length);
    this.#bytes.set(bytes, this.#length);
    this.#length += bytes.length;
  }

  /** Unsigned LEB128 of a 32-bit number (a negative one is taken as unsigned). */
  u32(value: number): void {
    let rest = value >>> 0;
    while (rest >= 0x80) {
      this.u8((rest & 0x7f) | 0x80);
      rest >>>= 7;
    }
    this.u8(rest);
  }

  /** Signed LEB128 of a 32-bit number. */
  s32(value: number): void {
    let rest = value | 0;
    while (rest < -64 || rest > 63) {
      this.u8((rest & 0x7f) | 0x80);
      rest >>= 7;
    }
    this.u8(rest & 0x7f);
  }

  /** Signed LEB128 of a 64-bit number given as two words. */
  s64(lo: number, hi: number): void {
    let low = lo | 0;
    let high = hi | 0;
    while (high !== low >> 31 || low < -64 || low > 63) {
      this.u8((low & 0x7f) | 0x80);
      low = (low >>> 7) | (high << 25);
      high >>= 7;
    }
    this.u8(low & 0x7f);
  }

  name(text: string): void {
    this.u32(text.length);
    for (let i = 0; i < text.length; i++) this.u8(text.charCodeAt(i) & 0x7f);
  }
}

/** Writers that are free: a module has hundreds of functions, and a fresh buffer for each would be garbage outside of V8's heap. */
const free: ByteWriter[] = [];

/** An empty writer, which `giveBack` takes when it is no more needed. */
export function takeWriter(): ByteWriter {
  return free.pop() ?? new ByteWriter(16384);
}

export function giveBack(writer: ByteWriter): void {
  writer.clear();
  free.push(writer);
}
