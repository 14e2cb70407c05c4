import { describe, expect, it } from 'vitest';
import { breachOf, importSites } from './check-imports.ts';

describe('importSites()', () => {
  it('finds static, type, re-exported, dynamic and worker imports with their lines', () => {
    const source = [
      "import { a } from './a.ts';",
      'import type {',
      '  B,',
      "} from '../b/b.ts';",
      "import 'node:fs';",
      "export { c } from './c.ts';",
      "const d = await import('./d.ts');",
      "new Worker(new URL(import.meta.url.endsWith('.ts') ? './w.ts' : './w.js', import.meta.url));",
    ].join('\n');
    expect(importSites(source)).toEqual([
      { specifier: './a.ts', line: 1 },
      { specifier: '../b/b.ts', line: 4 },
      { specifier: 'node:fs', line: 5 },
      { specifier: './c.ts', line: 6 },
      { specifier: './d.ts', line: 7 },
      { specifier: './w.ts', line: 8 },
    ]);
  });

  it('passes over imports in comments', () => {
    expect(importSites("// import('./a.ts')\n/**\n * import { b } from './b.ts';\n */\n")).toEqual([]);
  });
});

describe('breachOf()', () => {
  it.each([
    ['machine/memory.ts', '../abi/xen.ts'],
    ['hypervisor/domain.ts', '../engine/engine.ts'],
    ['hypervisor/hypercalls/sched.ts', '../domain.ts'],
    ['host/vcpu-worker.ts', '../engine/kvm/kvm-engine.ts'],
    ['host/daemon.ts', 'node:net'],
    ['storage/raw.ts', 'some-package'],
  ])('lets %s import %s', (file, specifier) => {
    expect(breachOf(file, specifier, false)).toBeUndefined();
  });

  it.each([
    ['abi/xen.ts', '../machine/memory.ts', 'abi/ may import only itself'],
    ['hypervisor/domain.ts', '../engine/kvm/kvm-engine.ts', 'hypervisor/ may import'],
    ['toolstack/life-cycle.ts', '../host/daemon.ts', 'toolstack/ may import'],
    ['cli/xl/create.ts', '../../hypervisor/domain.ts', 'cli/ may import'],
    ['attic/a.ts', '../abi/xen.ts', 'not in the table'],
    ['abi/xen.ts', '../../scripts/ok.ts', 'outside src/'],
    ['abi/xen.ts', './xen.test.ts', 'imports the test'],
  ])('stops %s from importing %s', (file, specifier, message) => {
    expect(breachOf(file, specifier, false)).toContain(message);
  });

  it('stops browser-safe code from importing node: modules', () => {
    expect(breachOf('hypervisor/domain.ts', 'node:fs', true)).toContain('browser-safe');
  });
});
