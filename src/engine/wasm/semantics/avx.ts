/** All instructions with VEX on vector registers that have a meaning in WebAssembly; the others: rare.ts. */

import { AVX_FLOAT } from './avx-float.ts';
import { AVX_INTEGER } from './avx-integer.ts';
import { AVX_MOVES } from './avx-moves.ts';
import { AVX_SHUFFLE } from './avx-shuffle.ts';
import type { Meaning } from './common.ts';
import { FMA } from './fma.ts';

/** By name, or by a form's key where a name means several things. */
export const AVX: Readonly<Record<string, Meaning>> = {
  ...AVX_MOVES,
  ...AVX_INTEGER,
  ...AVX_SHUFFLE,
  ...AVX_FLOAT,
  ...FMA,
};
