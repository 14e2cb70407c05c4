/**
 * Modules of WebAssembly with the machine code that V8 has made of them, as bytes: who has them need not compile. V8 does this for browsers, and Node has no
 * name for it but V8's own test functions, which are reached with a flag. So nothing here may be taken for granted: all answer null where it cannot be.
 *
 * V8 refuses code that another version, another set of flags or another CPU has made. It does not look for damage: `fromMachineCode` must be
 * given what `toMachineCode` has made.
 */

import { setFlagsFromString } from 'node:v8';

type Natives = {
  readonly serialize: (module: WebAssembly.Module) => ArrayBuffer | undefined;
  readonly deserialize: (code: ArrayBuffer, bytes: Uint8Array) => WebAssembly.Module | undefined;
};

/** The versions that this has been tried with: the functions check their arguments with a crash. */
const V8_VERSIONS = /^13\.6\./;

export const hasMachineCode = (): boolean => V8_VERSIONS.test(process.versions.v8);

/** While `body` runs, V8 knows its own functions. It compiles them when they are called. */
function withNatives<T>(body: (natives: Natives) => T): T | null {
  if (!hasMachineCode()) return null;
  setFlagsFromString('--allow-natives-syntax');
  try {
    const serialize = new Function('module', 'return %SerializeWasmModule(module)') as Natives['serialize'];
    const deserialize = new Function('code', 'bytes', 'return %DeserializeWasmModule(code, bytes)');
    return body({ serialize, deserialize: deserialize as Natives['deserialize'] });
  } catch (error) {
    if (error instanceof SyntaxError) return null;
    throw error;
  } finally {
    setFlagsFromString('--no-allow-natives-syntax');
  }
}

/**
 * The machine code of modules that are made to be optimized (engine/wasm/module-builder.ts), where V8 heeds that (wasm-hints.ts): it ends the process over one that
 * has no optimized function. Null where there is none to be had.
 */
export function toMachineCode(modules: readonly Uint8Array<ArrayBuffer>[]): Uint8Array[] | null {
  return withNatives(({ serialize }) => {
    const compiled = modules.map((bytes) => new WebAssembly.Module(bytes));
    const codes = compiled.flatMap((module) => serialize(module) ?? []);
    return codes.length === modules.length ? codes.map((code) => new Uint8Array(code)) : null;
  });
}

/** `bytes`: the module. */
export function fromMachineCode(code: Uint8Array, bytes: Uint8Array): WebAssembly.Module | null {
  // V8 wants a buffer to itself.
  return withNatives(({ deserialize }) => deserialize(new Uint8Array(code).buffer, bytes) ?? null);
}
