import { expect, test } from 'vitest';
import { EACCES, ENOSYS, EOPNOTSUPP, EPERM } from '../../abi/errno.ts';
import { HYPERCALL } from '../../abi/xen.ts';
import { TestGuest, UNMAPPED_VA, va } from '../testing.ts';
import { notImplemented } from './refused.ts';
import { HYPERCALL_HANDLERS, HYPERCALLS } from './table.ts';

test('each hypercall stands in the table once, by its number', () => {
  expect(HYPERCALLS.map(({ nr }) => nr)).toEqual([...Object.values(HYPERCALL)].sort((a, b) => a - b));
  for (const { nr, name, handler } of HYPERCALLS) {
    expect(HYPERCALL[name as keyof typeof HYPERCALL]).toBe(nr);
    expect(HYPERCALL_HANDLERS[nr]).toBe(handler);
  }
});

test('gaps are -ENOSYS', () => {
  const guest = new TestGuest();
  expect(HYPERCALL_HANDLERS).toHaveLength(64);
  for (const nr of [11, 43, 47, 49, 63]) expect(HYPERCALL_HANDLERS[nr]).toBe(notImplemented);
  expect(guest.call(notImplemented, 0)).toBe(-ENOSYS);
});

test('sub-operations have numbers of their own, and notes where there is something to say', () => {
  for (const { name, subOps = [] } of HYPERCALLS) {
    const numbers = subOps.map(({ nr }) => nr);
    expect(new Set(numbers).size, name).toBe(numbers.length);
    for (const op of subOps) if (op.state !== 'done') expect(op.note, op.name).toBeTruthy();
  }
});

test('refused hypercalls answer with the errno of their note', () => {
  const guest = new TestGuest();
  const errnos: Readonly<Record<string, number>> = { EACCES, ENOSYS, EOPNOTSUPP, EPERM };
  for (const { name, state, note = '', handler } of HYPERCALLS) {
    if (state !== 'refused') continue;
    const errno = /^-(E[A-Z]+)/.exec(note)?.[1] ?? '';
    expect(guest.call(handler, 0, va(UNMAPPED_VA), va(UNMAPPED_VA)), name).toBe(-errnos[errno]);
  }
});
