import { describe, expect, it } from 'vitest';
import { RunTable } from './run-table.ts';

describe('RunTable', () => {
  it('is a map: random sets, deletions and looks agree with Map', () => {
    const table = new RunTable();
    const model = new Map<number, number>();
    let seed = 12345;
    const random = (below: number): number => {
      seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
      return (seed >>> 8) % below;
    };
    for (let i = 0; i < 300_000; i++) {
      // Keys above 2 ** 31 too: a frame of the fourth GiB.
      const key = (random(200) * 0x1010101 + random(300)) >>> 0;
      switch (random(3)) {
        case 0:
          table.delete(key);
          model.delete(key);
          break;
        case 1: {
          const value = 1 + random(1 << 24);
          table.set(key, value);
          model.set(key, value);
          break;
        }
        default:
          expect(table.get(key)).toBe(model.get(key) ?? 0);
      }
    }
    for (const [key, value] of model) expect(table.get(key)).toBe(value);
    table.clear();
    for (const key of model.keys()) expect(table.get(key)).toBe(0);
  });
});
