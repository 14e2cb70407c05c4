/** CF that INC keeps, where flags of two kinds meet: the kind is read when the code runs. */

import { expect, it } from 'vitest';
import { CODE_VA } from '../kvm/test-guest.ts';
import { createWasmGuest } from './test-guest.ts';

const TURNS = 40_000;
const RCX = 1;
const R8 = 8;

/** Ways to come to a CF, each of another kind or size, with more in register or immediate than the size has. */
const WAYS: readonly { readonly name: string; readonly code: readonly number[]; readonly carry: 0 | 1 }[] = [
  { name: 'CMP of bytes, below', code: [0xb8, 0x01, 0xff, 0xff, 0xff, 0x3c, 0x02], carry: 1 },
  { name: 'CMP of bytes with a negative number', code: [0xb0, 0x81, 0x3c, 0x80], carry: 0 },
  { name: 'CMP of words', code: [0xb8, 0x01, 0x00, 0xff, 0xff, 0x66, 0x3d, 0x02, 0x00], carry: 1 },
  { name: 'CMP of doublewords', code: [0xb8, 0x01, 0x00, 0x00, 0x00, 0x3d, 0x02, 0x00, 0x00, 0x00], carry: 1 },
  { name: 'CMP of quadwords', code: [0xb8, 0x01, 0x00, 0x00, 0x00, 0x48, 0x3d, 0x02, 0x00, 0x00, 0x00], carry: 1 },
  { name: 'ADD', code: [0xb0, 0xff, 0x04, 0x01], carry: 1 },
  { name: 'ADD without', code: [0xb0, 0xfe, 0x04, 0x01], carry: 0 },
  { name: 'SHL', code: [0xb0, 0x80, 0xd0, 0xe0], carry: 1 },
  { name: 'AND', code: [0x24, 0x01], carry: 0 },
  { name: 'STC', code: [0xf9], carry: 1 },
  { name: 'CLC', code: [0xf8], carry: 0 },
  { name: 'STC, INC', code: [0xf9, 0xff, 0xc7], carry: 1 },
  { name: 'CLC, DEC', code: [0xf8, 0xff, 0xcf], carry: 0 },
];

/** Every other turn goes one way: TEST CL,1; JZ; one; JMP; other; then INC EDX; ADC R8,0; DEC ECX; JNZ; SYSCALL. */
function loop(one: readonly number[], other: readonly number[]): number[] {
  const head = [0xf6, 0xc1, 0x01, 0x74, one.length + 2, ...one, 0xeb, other.length, ...other];
  const body = [...head, 0xff, 0xc2, 0x49, 0x83, 0xd0, 0x00, 0xff, 0xc9];
  return [...body, 0x75, -(body.length + 2) & 0xff, 0x0f, 0x05];
}

for (const one of WAYS)
  it(`keeps CF of ${one.name} over INC, whatever the other way is`, () => {
    const guest = createWasmGuest();
    WAYS.forEach((other, i) => {
      guest.setGpr(RCX, TURNS);
      guest.setGpr(R8, 0);
      guest.run(loop(one.code, other.code), CODE_VA + i * 256);
      expect(guest.gpr(R8), other.name).toBe((TURNS / 2) * (one.carry + other.carry));
    });
    expect(guest.vcpu.statistics().join('\n')).toMatch(/regions [1-9]/);
  });
