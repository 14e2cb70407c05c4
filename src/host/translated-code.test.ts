import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { FunctionBuilder } from '../engine/wasm/function-builder.ts';
import { encodeKept } from '../engine/wasm/kept-regions.ts';
import { ModuleBuilder } from '../engine/wasm/module-builder.ts';
import { I32, i32, local } from '../engine/wasm/nodes.ts';
import { fromMachineCode, hasMachineCode, toMachineCode } from './machine-code.ts';
import { keepTranslated, loadTranslated, readCode, translatedFolder, untilMade, writeCode } from './translated-code.ts';
import { heedWasmHints } from './wasm-hints.ts';

// As in a domain's process.
heedWasmHints();

let folder: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'domus-translated-'));
  vi.stubEnv('DOMUS_TRANSLATED', folder);
});

afterEach(() => {
  vi.unstubAllEnvs();
  rmSync(folder, { recursive: true, force: true });
});

const parts = {
  records: Uint8Array.of(1, 2, 3, 4),
  modules: [5, 6, 7].map((n) => ({ bytes: Uint8Array.of(n), code: Uint8Array.of(n, n) })),
};

/** (i32) -> i32: one more. */
function increment(): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder();
  const f = new FunctionBuilder([I32]);
  f.return(i32.add(local(0, I32), i32.const(1)));
  const index = m.declare([I32], [I32]);
  m.define(index, f);
  m.export('f', index);
  return m.finish('optimized');
}

/** Regions that no domain has made: `mov eax, n; dec ecx; jnz back; ret`. */
const kept = (count: number) => {
  const regions = Array.from({ length: count }, (_, n) => ({
    ...{ key: n, entry: 0x100, user: false, isHot: true, unused: 0, apart: new Int32Array(0) },
    pieces: Int32Array.of(0x100, 0x10a),
    starts: Int32Array.of(0x100, 0x109),
    code: Uint8Array.of(0xb8, n, 0, 0, 0, 0xff, 0xc9, 0x75, 0xf7, 0xc3),
  }));
  return { count, made: encodeKept(regions), used: new Uint8Array(0) };
};

describe('the file of translated code', () => {
  it('is read as it was written', () => {
    writeCode(folder, parts);
    expect(readCode(folder)).toEqual(parts);
    expect(statSync(join(folder, 'code')).mode & 0o777).toBe(0o600);
  });

  it('is not used if any of its bytes is damaged, or some are missing', () => {
    writeCode(folder, parts);
    const path = join(folder, 'code');
    const whole = readFileSync(path);
    for (let i = 0; i < whole.length; i++) {
      const damaged = Buffer.from(whole);
      damaged[i] ^= 0x10;
      writeFileSync(path, damaged);
      expect(readCode(folder), `byte ${i}`).toBe(null);
      writeFileSync(path, whole.subarray(0, i));
      expect(readCode(folder), `${i} bytes`).toBe(null);
    }
    rmSync(path);
    expect(readCode(folder)).toBe(null);
  });
});

it('machine code is what a module runs by, and only that of its bytes', (context) => {
  if (!hasMachineCode()) return context.skip(`V8 ${process.versions.v8} may not give machine code away`);
  const bytes = increment();
  const codes = toMachineCode([bytes]);
  if (codes === null) throw new Error('V8 gives no machine code away');
  const module = fromMachineCode(codes[0], bytes);
  if (module === null) throw new Error('V8 does not take the code that it has made');
  const { f } = new WebAssembly.Instance(module).exports as { f(n: number): number };
  expect(f(41)).toBe(42);
  const older = Buffer.from(codes[0]);
  older[4] ^= 1;
  expect(fromMachineCode(older, bytes)).toBe(null);
});

it('what domains keep becomes code in a process of its own, for later ones', async () => {
  const mine = translatedFolder();
  if (mine === null) throw new Error('the folder cannot be used');
  expect(loadTranslated()).toBe(null);
  keepTranslated([kept(2)]);
  expect(readdirSync(mine)).toEqual([]);
  keepTranslated([kept(40)]);
  await untilMade(folder);
  const loaded = loadTranslated();
  if (!hasMachineCode()) expect(loaded).toBe(null);
  else expect(loaded?.regions.records.length).toBe(kept(40).made.length);
  expect(readdirSync(mine).filter((name) => name !== 'code')).toEqual([]);
}, 60_000);

it('is not kept where nobody wants it', () => {
  vi.stubEnv('DOMUS_TRANSLATED', 'off');
  expect(translatedFolder()).toBe(null);
  keepTranslated([kept(40)]);
  expect(loadTranslated()).toBe(null);
});
