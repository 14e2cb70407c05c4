/** What V8 heeds of the hints in WebAssembly that Domus makes (engine/wasm/module-builder.ts). */

import { setFlagsFromString } from 'node:v8';

/**
 * The hints of the wasm engine's branches count, which keep slow paths out of the way; and those that say when the functions of a module are compiled. Not
 * among the options that Node is started with: it would refuse to start where V8 does not know them, or knows them without being told.
 */
const FLAGS = ['--experimental-wasm-branch-hinting', '--experimental-wasm-compilation-hints'];

/** From now on, in all threads of this process. */
export function heedWasmHints(): void {
  for (const flag of FLAGS) setFlagsFromString(flag);
}
