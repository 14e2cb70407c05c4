/** A WebAssembly module, section by section. Source: WebAssembly Core Specification 2.0, 5.5. */

import { ByteWriter, giveBack, takeWriter } from './byte-writer.ts';
import type { BranchHint, FunctionBuilder } from './function-builder.ts';
import type { ValueType } from './nodes.ts';

const EXTERNAL_FUNCTION = 0;
const EXTERNAL_TABLE = 1;
const EXTERNAL_MEMORY = 2;
const EXTERNAL_GLOBAL = 3;
const FUNCREF = 0x70;

/** Pages of 64 KiB of the largest memory: what a module imports may be as large. V8 checks no bounds of memories that 32 bits address. */
export const MEMORY_PAGES_MAX = 65536;

/**
 * When V8 compiles a module's functions, and how. It is 'when called' if nothing is said: by the quick compiler when a function is called for the
 * first time, and by the optimizing one in another thread when it has run for some while. Others: before there is a module, all of them.
 */
export type Compilation = 'when called' | 'at once' | 'optimized';

/** Strategy eager; tiers of the first and the last code, two bits each: 1 baseline, 2 optimized. Source: V8, src/wasm/wasm-module.h, WasmCompilationHint. */
const HINTS = { 'at once': 2 | (1 << 2), optimized: 2 | (2 << 2) | (2 << 4) } as const;

export class ModuleBuilder {
  readonly #types: string[] = [];
  readonly #typeBytes = new ByteWriter();
  readonly #imports = new ByteWriter();
  #importCount = 0;
  #importedFunctions = 0;
  #importedMemories = 0;
  #importedGlobals = 0;
  /** Type, and where the body is in `#bodies`; `end` 0 until it is defined. */
  readonly #functions: { readonly type: number; start: number; end: number; hints: readonly BranchHint[] }[] = [];
  readonly #bodies = takeWriter();
  readonly #exports = new ByteWriter();
  #exportCount = 0;
  readonly #elements = new ByteWriter();
  #elementCount = 0;

  /** Index of a function type. */
  type(parameters: readonly ValueType[], results: readonly ValueType[]): number {
    const key = `${parameters.join()}:${results.join()}`;
    const known = this.#types.indexOf(key);
    if (known >= 0) return known;
    this.#types.push(key);
    const out = this.#typeBytes;
    out.u8(0x60);
    out.u32(parameters.length);
    for (const type of parameters) out.u8(type);
    out.u32(results.length);
    for (const type of results) out.u8(type);
    return this.#types.length - 1;
  }

  #import(module: string, name: string, kind: number): ByteWriter {
    this.#importCount++;
    this.#imports.name(module);
    this.#imports.name(name);
    this.#imports.u8(kind);
    return this.#imports;
  }

  /** Imports come before the first `declare`. Returns the function's index. */
  importFunction(
    module: string,
    name: string,
    parameters: readonly ValueType[],
    results: readonly ValueType[] = [],
  ): number {
    const type = this.type(parameters, results);
    this.#import(module, name, EXTERNAL_FUNCTION).u32(type);
    return this.#importedFunctions++;
  }

  /** A shared memory32; sizes in pages of 64 KiB. */
  importMemory(module: string, name: string, minimum: number, maximum: number): number {
    const out = this.#import(module, name, EXTERNAL_MEMORY);
    out.u8(0x03);
    out.u32(minimum);
    out.u32(maximum);
    return this.#importedMemories++;
  }

  importTable(module: string, name: string, minimum: number): void {
    const out = this.#import(module, name, EXTERNAL_TABLE);
    out.u8(FUNCREF);
    out.u8(0x00);
    out.u32(minimum);
  }

  /** An immutable global. */
  importGlobal(module: string, name: string, type: ValueType): number {
    const out = this.#import(module, name, EXTERNAL_GLOBAL);
    out.u8(type);
    out.u8(0x00);
    return this.#importedGlobals++;
  }

  /** A function of this module, to be defined later. Returns its index. */
  declare(parameters: readonly ValueType[], results: readonly ValueType[]): number {
    this.#functions.push({ type: this.type(parameters, results), start: 0, end: 0, hints: [] });
    return this.#importedFunctions + this.#functions.length - 1;
  }

  define(index: number, builder: FunctionBuilder): void {
    const body = this.#functions[index - this.#importedFunctions];
    body.start = this.#bodies.length;
    body.hints = builder.finish(this.#bodies);
    body.end = this.#bodies.length;
  }

  export(name: string, functionIndex: number): void {
    this.#exportCount++;
    this.#exports.name(name);
    this.#exports.u8(EXTERNAL_FUNCTION);
    this.#exports.u32(functionIndex);
  }

  /** Puts functions of this module into table 0 from `first` on. */
  element(first: number, functionIndexes: readonly number[]): void {
    this.#elementCount++;
    const out = this.#elements;
    out.u32(0);
    out.u8(0x41);
    out.s32(first);
    out.u8(0x0b);
    out.u32(functionIndexes.length);
    for (const index of functionIndexes) out.u32(index);
  }

  /** Which branches are likely: engines that do not know the section pass it over. Source: branch hinting proposal. */
  #branchHints(out: ByteWriter): void {
    const hinted = this.#functions.filter(({ hints }) => hints.length > 0);
    if (hinted.length === 0) return;
    const content = takeWriter();
    content.name('metadata.code.branch_hint');
    content.u32(hinted.length);
    this.#functions.forEach(({ hints }, i) => {
      if (hints.length === 0) return;
      content.u32(this.#importedFunctions + i);
      content.u32(hints.length);
      for (const { at, likely } of hints) {
        content.u32(at);
        content.u32(1);
        content.u8(likely ? 1 : 0);
      }
    });
    out.u8(0);
    out.u32(content.length);
    out.append(content.view());
    giveBack(content);
  }

  /** How each function is to be compiled: a custom section of V8's behind a flag (host/wasm-hints.ts), passed over like the other one. */
  #compilationHints(out: ByteWriter, compilation: Compilation): void {
    if (compilation === 'when called') return;
    const content = takeWriter();
    content.name('compilationHints');
    content.u32(this.#functions.length);
    for (let i = 0; i < this.#functions.length; i++) content.u8(HINTS[compilation]);
    out.u8(0);
    out.u32(content.length);
    out.append(content.view());
    giveBack(content);
  }

  /** The module's bytes. The builder is done then. */
  finish(compilation: Compilation = 'when called'): Uint8Array<ArrayBuffer> {
    const out = takeWriter();
    out.append(Uint8Array.of(0, 0x61, 0x73, 0x6d, 1, 0, 0, 0));
    const body = takeWriter();
    const section = (id: number, count: number, content: Uint8Array): void => {
      if (count === 0) return;
      const prefix = takeWriter();
      prefix.u32(count);
      out.u8(id);
      out.u32(prefix.length + content.length);
      out.append(prefix.view());
      out.append(content);
      giveBack(prefix);
    };
    section(1, this.#types.length, this.#typeBytes.view());
    section(2, this.#importCount, this.#imports.view());
    for (const { type } of this.#functions) body.u32(type);
    section(3, this.#functions.length, body.view());
    section(7, this.#exportCount, this.#exports.view());
    section(9, this.#elementCount, this.#elements.view());
    this.#branchHints(out);
    this.#compilationHints(out, compilation);
    body.clear();
    const bodies = this.#bodies.view();
    for (const { start, end } of this.#functions) {
      if (end === 0) throw new Error('bug: a declared function was not defined');
      body.append(bodies.subarray(start, end));
    }
    section(10, this.#functions.length, body.view());
    const bytes = out.view().slice();
    for (const writer of [out, body, this.#bodies]) giveBack(writer);
    return bytes;
  }
}
