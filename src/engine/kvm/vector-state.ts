/**
 * The vector state of a vCPU, between KVM and an XSAVE area in the standard form. Where the components beyond SSE lie in such an area
 * is the CPU's affair (CPUID leaf 0xd), and it does differ: AMD's CPUs leave no hole where MPX was. The area of the others is as on
 * Intel's.
 *
 * Source: Intel SDM vol. 1, 13.4 and 13.5; Linux, Documentation/virt/kvm/api.rst, KVM_GET_XSAVE.
 */

import type { CpuidResult } from '../engine.ts';
import { KVM_GET_XSAVE, KVM_SET_XSAVE, XSAVE_BYTES } from './abi.ts';
import type { VcpuFile } from './vcpu-file.ts';

/** Legacy region and header. */
const COMMON_BYTES = 576;
const LEGACY_USED_BYTES = 416;
const XSTATE_BV_W = 512 / 4;
const X87_AND_SSE = 3;

interface Component {
  readonly number: number;
  /** On Intel's CPUs. */
  readonly offset: number;
  readonly bytes: number;
}

/** AVX; opmask, upper halves of ZMM0-15, ZMM16-31. */
const COMPONENTS: readonly Component[] = [
  { number: 2, offset: 576, bytes: 256 },
  { number: 5, offset: 1088, bytes: 64 },
  { number: 6, offset: 1152, bytes: 512 },
  { number: 7, offset: 1664, bytes: 1024 },
];

export class VectorState {
  readonly #file: VcpuFile;
  readonly #cpuid: (component: number) => CpuidResult;
  readonly #bytes = new Uint8Array(XSAVE_BYTES);
  readonly #words = new Uint32Array(this.#bytes.buffer);

  /** `cpuid`: leaf 0xd of a component. */
  constructor(file: VcpuFile, cpuid: (component: number) => CpuidResult) {
    this.#file = file;
    this.#cpuid = cpuid;
  }

  save(area: Uint8Array): void {
    const bytes = this.#bytes;
    this.#ioctl(KVM_GET_XSAVE, 'KVM_GET_XSAVE');
    area.fill(0);
    area.set(bytes.subarray(0, COMMON_BYTES));
    let states = this.#words[XSTATE_BV_W] & X87_AND_SSE;
    this.#eachComponent(({ number, offset, bytes: size }, here) => {
      if ((this.#words[XSTATE_BV_W] & (1 << number)) === 0) return;
      states |= 1 << number;
      area.set(bytes.subarray(here, here + size), offset);
    });
    // What software may use of the legacy region, and the rest of the header.
    area.fill(0, LEGACY_USED_BYTES, COMMON_BYTES);
    area[XSTATE_BV_W * 4] = states;
  }

  load(area: Uint8Array): void {
    const bytes = this.#bytes;
    const asked = area[XSTATE_BV_W * 4];
    bytes.fill(0);
    bytes.set(area.subarray(0, XSTATE_BV_W * 4));
    let states = asked & X87_AND_SSE;
    this.#eachComponent(({ number, offset, bytes: size }, here) => {
      if ((asked & (1 << number)) === 0) return;
      states |= 1 << number;
      bytes.set(area.subarray(offset, offset + size), here);
    });
    this.#words[XSTATE_BV_W] = states;
    this.#ioctl(KVM_SET_XSAVE, 'KVM_SET_XSAVE');
  }

  /** Those that the CPU has, and where. */
  #eachComponent(visit: (component: Component, offset: number) => void): void {
    for (const component of COMPONENTS) {
      const { eax, ebx } = this.#cpuid(component.number);
      if (eax === component.bytes && ebx >= COMMON_BYTES && ebx + eax <= XSAVE_BYTES) visit(component, ebx);
    }
  }

  #ioctl(request: number, name: string): void {
    const { host, fd } = this.#file;
    if (host.ioctl(fd, request, host.addressOf(this.#bytes)) !== 0)
      throw new Error(`${name} failed with errno ${host.errno()}`);
  }
}
