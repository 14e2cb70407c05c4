import type { Meaning } from './common.ts';

export const AVX: Readonly<Record<string, Meaning>> = {};
