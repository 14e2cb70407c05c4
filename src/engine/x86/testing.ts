/**
 * Machine code for tests: random instructions that are mostly valid, and a sweep over the opcode maps. For tests only.
 *
 * Each instruction starts a slot of SLOT bytes; what comes after it is random too.
 */

/** mulberry32: 32 random bits a call. */
export function randomSource(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (t ^ (t >>> 14)) >>> 0;
  };
}

export const SLOT = 32;
const SLOTS = 2048;
const PREFIXES = [0x66, 0xf2, 0xf3, 0x66, 0xf2, 0xf3, 0xf0, 0x67, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65];

const SWEPT_PREFIXES: readonly (readonly number[])[] = [[], [0x66], [0xf3], [0xf2], [0x66, 0xf3], [0x66, 0xf2]];

/** Fills slots and hands over a block of them at a time. The same seed gives the same code. */
export class CodeGenerator {
  readonly mode: 32 | 64;
  /** Gets the slots, and how many of them there are. The bytes are used again afterwards. */
  readonly onSlots: (bytes: Uint8Array, slots: number) => void;
  readonly random: () => number;
  readonly bytes = new Uint8Array(SLOT * SLOTS + 16);
  slots = 0;

  constructor(mode: 32 | 64, seed: number, onSlots: (bytes: Uint8Array, slots: number) => void) {
    this.mode = mode;
    this.random = randomSource(seed);
    this.onSlots = onSlots;
  }

  /** The next slot, filled with random bytes. */
  slot(): number {
    if (this.slots === SLOTS) this.flush();
    const at = SLOT * this.slots++;
    for (let i = at; i < at + 16; i += 4) {
      const bits = this.random();
      this.bytes[i] = bits;
      this.bytes[i + 1] = bits >> 8;
      this.bytes[i + 2] = bits >> 16;
      this.bytes[i + 3] = bits >> 24;
    }
    return at;
  }

  /** Hands over what is there. To be called at the end. */
  flush(): void {
    this.onSlots(this.bytes, this.slots);
    this.slots = 0;
  }

  /** Puts a VEX prefix with random fields at `at`, mostly with an unused vvvv; gives where the opcode goes. */
  vexPrefix(at: number): number {
    const bits = this.random();
    const { bytes, mode } = this;
    let last = at + 1;
    if ((bits & 1) !== 0) bytes[at] = 0xc5;
    else {
      bytes[at] = 0xc4;
      bytes[at + 1] = (bytes[at + 1] & 0xe0) | (1 + ((bits >> 1) % 3));
      last = at + 2;
    }
    if (mode === 32) bytes[at + 1] |= 0xc0;
    if (((bits >> 8) & 3) !== 0) bytes[last] |= 0x78;
    return last + 1;
  }

  /** Legacy prefixes, REX, an opcode map; the rest of the slot stays as it is. */
  putRandom(): void {
    let at = this.slot();
    const bits = this.random();
    let prefixes = [0, 0, 0, 1, 1, 1, 2, 3][bits & 7];
    if (((bits >> 3) & 127) === 0) prefixes += 12;
    const kind = (bits >>> 10) % 100;
    const isVex = kind < 20;
    if (isVex && ((bits >>> 20) & 3) !== 0) prefixes = 0;
    for (let i = 0; i < prefixes; i++) this.bytes[at++] = PREFIXES[this.random() % PREFIXES.length];
    if (isVex) {
      this.vexPrefix(at);
      return;
    }
    if (this.mode === 64 && (bits & 0x80000000) !== 0) this.bytes[at++] = 0x40 | (this.random() & 15);
    if (kind < 50) return;
    this.bytes[at++] = 0x0f;
    if (kind >= 80) this.bytes[at++] = kind < 91 ? 0x38 : 0x3a;
  }

  /** Every opcode of the map behind `lead` with every mandatory prefix and digit; with mod 3 every rm where none is given. */
  sweepLegacy(lead: readonly number[]): void {
    for (let opcode = 0; opcode < 256; opcode++) {
      for (const prefixes of SWEPT_PREFIXES) {
        const everyRm = prefixes.length === 0 || opcode === 0x01 || opcode === 0x1e;
        for (let variant = 0; variant < (everyRm ? 80 : 16); variant++) {
          let at = this.slot();
          for (const byte of prefixes) this.bytes[at++] = byte;
          if (this.mode === 64 && variant < 16 && (this.random() & 1) !== 0)
            this.bytes[at++] = 0x40 | (this.random() & 15);
          for (const byte of lead) this.bytes[at++] = byte;
          this.bytes[at++] = opcode;
          // Eight digits of memory, eight of registers, then all of mod 3.
          if (variant < 8) this.bytes[at] = ((this.random() % 3) << 6) | (variant << 3) | (this.random() & 7);
          else if (variant < 16) this.bytes[at] = 0xc0 | ((variant - 8) << 3) | (this.random() & 7);
          else this.bytes[at] = 0xc0 | (variant - 16);
        }
      }
    }
    this.flush();
  }

  sweepVex(): void {
    for (let map = 1; map <= 3; map++) {
      for (let opcode = 0; opcode < 256; opcode++) {
        for (let fields = 0; fields < 16; fields++) {
          for (let variant = 0; variant < 16; variant++) {
            let at = this.slot();
            const bits = this.random();
            this.bytes[at++] = 0xc4;
            this.bytes[at++] = (this.mode === 32 ? 0xc0 : bits & 0xe0) | map;
            // W, vvvv (half the time unused), L and pp.
            this.bytes[at++] = ((fields >> 3) << 7) | ((bits & 0x100) !== 0 ? 0x78 : (bits >> 9) & 0x78) | (fields & 7);
            this.bytes[at++] = opcode;
            const low = variant < 8 && (bits & 0x10000) !== 0 ? 4 : (bits >> 17) & 7;
            this.bytes[at] = (variant < 8 ? ((bits >>> 20) % 3) << 6 : 0xc0) | ((variant & 7) << 3) | low;
          }
        }
      }
    }
    this.flush();
  }
}
