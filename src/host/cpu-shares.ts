/**
 * What the vCPUs of all domains of a state folder say to each other of their CPU time (hypervisor/scheduling.ts): a small file with a record
 * for each vCPU that runs. It stays in the page cache; a vCPU that runs all the time writes and reads it some ten to fifty times a second.
 *
 * A record is a vCPU's own as long as its time is fresh. Two that take the same one see it, as the record is then the other's, and
 * take another. Whatever stands in the file, all that can come of it is that a vCPU waits for some ms.
 */

import { closeSync, constants, mkdirSync, openSync, readSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import type { VcpuShares } from '../hypervisor/scheduling.ts';

const RECORDS = 128;
/** Of a record, f64 each: whose it is, when it was written, virtual time and its rate, 1 if it wants a CPU, bits of the CPUs. */
const WORDS = 8;
const KEY = 0;
const TIME_NS = 1;
const VIRTUAL_NS = 2;
const RATE = 3;
const WANTS = 4;
const CPUS = 5;
/** What is older says nothing any more. */
const FRESH_NS = 300e6;

export class SharesFile implements VcpuShares {
  count = 0;
  readonly virtualNs = new Float64Array(RECORDS);
  readonly cpus = new Uint32Array(RECORDS);
  readonly #file: number;
  readonly #key: number;
  readonly #all = new Float64Array(RECORDS * WORDS);
  readonly #own = new Float64Array(WORDS);
  #record = -1;

  /** `key`: tells the vCPU from all others of the host; not 0. Throws what open(2) says. */
  constructor(root: string, key: number) {
    mkdirSync(root, { recursive: true, mode: 0o700 });
    this.#file = openSync(join(root, 'cpu-shares'), constants.O_RDWR | constants.O_CREAT, 0o600);
    this.#key = key;
  }

  read(nowNs: number): void {
    const all = this.#all;
    // What has not been written yet stays zeros.
    readSync(this.#file, all, 0, all.byteLength, 0);
    if (this.#record >= 0 && all[this.#record * WORDS + KEY] !== this.#key) this.#record = -1;
    let count = 0;
    // Each vCPU looks for a free record from a place of its own.
    const start = this.#key % RECORDS;
    let free = -1;
    for (let i = 0; i < RECORDS; i++) {
      const record = (start + i) % RECORDS;
      const at = record * WORDS;
      const ageNs = nowNs - all[at + TIME_NS];
      if (!(ageNs < FRESH_NS)) {
        if (free < 0) free = record;
        continue;
      }
      if (all[at + KEY] === this.#key || all[at + WANTS] === 0) continue;
      this.virtualNs[count] = all[at + VIRTUAL_NS] + all[at + RATE] * Math.max(0, ageNs);
      this.cpus[count] = all[at + CPUS];
      count++;
    }
    if (this.#record < 0) this.#record = free;
    this.count = count;
  }

  write(nowNs: number, virtualNs: number, rate: number, wants: boolean, cpus: number): void {
    if (this.#record < 0) return;
    const own = this.#own;
    own[KEY] = this.#key;
    own[TIME_NS] = nowNs;
    own[VIRTUAL_NS] = virtualNs;
    own[RATE] = rate;
    own[WANTS] = wants ? 1 : 0;
    own[CPUS] = cpus;
    writeSync(this.#file, own, 0, own.byteLength, this.#record * WORDS * 8);
  }

  close(): void {
    closeSync(this.#file);
  }
}
