/**
 * Flags of V8 that a domain's process sets when it runs: the hints of the wasm engine's branches count, which keep slow paths out of the way. Not among the options that Node
 * is started with: it would refuse to start where V8 does not know them, or knows them without being told.
 */
export const V8_FLAGS = '--experimental-wasm-branch-hinting';
