import { expect, test } from 'vitest';
import { type CpuProfile, sortProfile } from './profile.ts';

const VCPU = 'file:///domus/src/engine/wasm/wasm-vcpu.ts';

/** A chain of calls from the root, `function url`; each node gets one sample of 10 us. */
function profile(...chains: readonly (readonly [string, string])[][]): CpuProfile {
  const nodes: { id: number; callFrame: { functionName: string; url: string }; children: number[] }[] = [];
  const add = (functionName: string, url: string): number =>
    nodes.push({ id: nodes.length + 1, callFrame: { functionName, url }, children: [] });
  const root = add('(root)', '');
  const samples: number[] = [];
  for (const chain of chains) {
    let caller = root;
    for (const [name, url] of chain) {
      const id = add(name, url);
      nodes[caller - 1].children.push(id);
      caller = id;
    }
    samples.push(caller);
  }
  return { nodes, samples, timeDeltas: samples.map(() => 10) };
}

const RUN: [string, string] = ['#interpret', VCPU];
const INTERPRETER: [string, string] = ['wasm-function[9]', 'wasm://wasm/1'];
const REGION: [string, string] = ['wasm-function[4]', 'wasm://wasm/2'];

test('a module that TypeScript calls is the interpreter, any other is translated code', () => {
  expect(
    sortProfile(profile([RUN, ['js-to-wasm:ii:i', ''], INTERPRETER], [RUN, INTERPRETER, REGION, REGION], [RUN])),
  ).toEqual({ interpreter: 10, 'translated code': 10, 'entering and leaving the engine': 10 });
});

test('a helper belongs to whoever called it', () => {
  const decode: [string, string] = ['decode', 'file:///domus/src/engine/x86/decoder.ts'];
  const cache: [string, string] = ['#decodeRun', 'file:///domus/src/engine/wasm/code-cache.ts'];
  const request: [string, string] = ['request', 'file:///domus/src/engine/wasm/region-cache.ts'];
  const toScript: [string, string] = ['wasm-to-js', ''];
  expect(
    sortProfile(
      profile(
        [RUN, INTERPRETER, toScript, ['resolve', VCPU], cache, decode],
        [RUN, INTERPRETER, toScript, ['hot', VCPU], request, decode],
        [RUN, ['#translate', VCPU], ['#translate', request[1]], ['Module', '']],
        [['(garbage collector)', '']],
        [['main', 'file:///domus/src/host/vcpu-worker.ts']],
      ),
    ),
  ).toEqual({
    'decoding and lookup of code': 10,
    translation: 10,
    'compilation of modules': 10,
    'garbage collection': 10,
    other: 10,
  });
});
