import { expect, it } from 'vitest';
import { RBX } from '../../machine/vcpu-block.ts';
import { EXIT_EXCEPTION } from '../engine.ts';
import { CODE_VA, PTE_RW, pteOffset, setPte } from '../kvm/test-guest.ts';
import { createWasmGuest } from './test-guest.ts';

const UD = [0x0f, 0x0b];
/** Two addresses of one frame, beside the code that stores. */
const ONE = CODE_VA + 0x3000;
const OTHER = CODE_VA + 0x5000;

const word = (value: number): number[] => [value & 255, (value >> 8) & 255, (value >> 16) & 255, (value >> 24) & 255];
/** mov byte [address], value */
const store = (address: number, value: number): number[] => [0xc6, 0x04, 0x25, ...word(address), value];

it('a store into code is seen at each address of its frame, whoever stored there before there was code', () => {
  const guest = createWasmGuest();
  setPte(guest.machine, pteOffset(OTHER), ONE / 4096, PTE_RW);
  // mov ebx, 1; ud2
  guest.machine.u8.set([0xbb, ...word(1), ...UD], ONE);
  let next = CODE_VA;
  const run = (...code: readonly (readonly number[])[]): void => {
    const bytes = code.flat();
    next += 64;
    expect(guest.run(bytes, next)).toBe(EXIT_EXCEPTION);
  };
  const ebx = (): number => {
    expect(guest.runAt(ONE)).toBe(EXIT_EXCEPTION);
    return guest.gpr(RBX);
  };
  run(store(ONE + 0x800, 1), store(OTHER + 0x900, 1), store(ONE + 0x801, 1), UD);
  expect(ebx()).toBe(1);
  run(store(ONE + 1, 7), UD);
  expect(ebx()).toBe(7);
  run(store(OTHER + 1, 9), UD);
  expect(ebx()).toBe(9);
  run(store(ONE + 1, 11), UD);
  expect(ebx()).toBe(11);
});
