import { describe, expect, it } from 'vitest';
import { CodeMappings } from './code-mappings.ts';

const KERNEL_ROOT = 1;
const OTHER_ROOT = 9;
/** Tables: frame 1 and 9 roots, 2 level 3, 3 level 2, 4 level 1. */
function setUp(): { u32: Uint32Array; mappings: CodeMappings; walk: (root: number, lo: number, hi: number) => void } {
  const u32 = new Uint32Array(16 * 1024);
  const path = new Uint32Array(4);
  const mappings = new CodeMappings(u32, path);
  const set = (frame: number, index: number, value: number): void => {
    u32[frame * 1024 + index * 2] = value;
  };
  for (const root of [KERNEL_ROOT, OTHER_ROOT]) set(root, 511, 0x2067);
  set(2, 510, 0x3067);
  for (let i = 0; i < 8; i++) set(3, i, 0x4067);
  for (let i = 0; i < 512; i++) set(4, i, ((i + 100) << 12) | 0x65);
  const walk = (root: number, lo: number, hi: number): void => {
    path[3] = root * 1024 + 511 * 2;
    path[2] = 2 * 1024 + 510 * 2;
    path[1] = 3 * 1024 + ((lo >>> 21) & 511) * 2;
    path[0] = 4 * 1024 + ((lo >>> 12) & 511) * 2;
    mappings.add(lo, hi, 0, ((lo >>> 12) & 511) + 100);
  };
  return { u32, mappings, walk };
}

const HI = 0xffffffff;
const page = (n: number): number => (0x80000000 + n * 4096) >>> 0;
const goneOf = (mappings: CodeMappings, root = KERNEL_ROOT): number[] => {
  const gone: number[] = [];
  mappings.check(root, root, (lo) => gone.push(lo >>> 0));
  return gone;
};

describe('CodeMappings', () => {
  it('knows a page by address and mode', () => {
    const { mappings, walk } = setUp();
    walk(KERNEL_ROOT, page(5), HI);
    expect(mappings.find(page(5) + 0x123, HI, 0)).toBe(105);
    expect(mappings.find(page(5), HI, 1)).toBe(-1);
    expect(mappings.find(page(6), HI, 0)).toBe(-1);
    expect(mappings.find(page(5), HI - 1, 0)).toBe(-1);
  });

  it('keeps what is mapped as before, and forgets the page whose entry changed', () => {
    const { u32, mappings, walk } = setUp();
    for (let i = 0; i < 600; i++) walk(KERNEL_ROOT, page(i), HI);
    expect(goneOf(mappings)).toEqual([]);
    u32[4 * 1024 + 7 * 2] ^= 0x1000;
    // Pages 7 and 519 share the entry: the table stands in two places.
    expect(goneOf(mappings)).toEqual([page(7), page(519)]);
    expect(mappings.find(page(7), HI, 0)).toBe(-1);
    expect(mappings.find(page(8), HI, 0)).toBe(108);
    expect(goneOf(mappings)).toEqual([]);
  });

  it('forgets all below an entry of a higher level that changed, and an entry whose accessed bit was taken', () => {
    const { u32, mappings, walk } = setUp();
    walk(KERNEL_ROOT, page(1), HI);
    walk(KERNEL_ROOT, page(512 + 1), HI);
    u32[3 * 1024 + 1 * 2] &= ~0x20;
    expect(goneOf(mappings)).toEqual([page(512 + 1)]);
    u32[2 * 1024 + 510 * 2] = 0;
    expect(goneOf(mappings)).toEqual([page(1)]);
  });

  it('goes by the root of the day', () => {
    const { u32, mappings, walk } = setUp();
    walk(KERNEL_ROOT, page(1), HI);
    expect(goneOf(mappings, OTHER_ROOT)).toEqual([]);
    u32[OTHER_ROOT * 1024 + 511 * 2] ^= 0x1000;
    expect(goneOf(mappings, KERNEL_ROOT)).toEqual([]);
    expect(goneOf(mappings, OTHER_ROOT)).toEqual([page(1)]);
  });

  it('forgets one page, and all', () => {
    const { mappings, walk } = setUp();
    walk(KERNEL_ROOT, page(1), HI);
    walk(KERNEL_ROOT, page(2), HI);
    mappings.forgetPage(page(1) + 4, HI);
    expect([mappings.find(page(1), HI, 0), mappings.find(page(2), HI, 0)]).toEqual([-1, 102]);
    mappings.clear();
    expect(mappings.find(page(2), HI, 0)).toBe(-1);
  });
});
