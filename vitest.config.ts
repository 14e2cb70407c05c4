/**
 * Three projects. `unit` is the gate (`npm run ok`): beside the sources, quick, one process for many files.
 * `boot` starts whole guests; `package` packs and installs. `npm test` runs all three.
 *
 * A test that cannot run here says why: `context.skip('no /dev/kvm')`. The reasons are listed at the end of the run.
 * DOMUS_TEST_JSON names a file that gets vitest's JSON report as well.
 */
import { defineConfig } from 'vitest/config';
import type { Reporter } from 'vitest/node';

const BOOT = 'test/boot/**/*.test.ts';
const PACKAGE = 'test/package.test.ts';
const MINUTE_MS = 60_000;

const skippedTests: Reporter = {
  onTestRunEnd(modules) {
    for (const module of modules) {
      for (const test of module.children.allTests()) {
        const result = test.result();
        if (result.state !== 'skipped') continue;
        const reason = result.note ?? (module.ok() ? 'no reason given' : 'its file failed');
        console.log(`skipped: ${module.relativeModuleId}: ${test.fullName}: ${reason}`);
      }
    }
  },
};

const jsonFile = process.env['DOMUS_TEST_JSON'];

export default defineConfig({
  test: {
    reporters: ['default', skippedTests, ...(jsonFile ? [['json', { outputFile: jsonFile }] as ['json', object]] : [])],
    maxWorkers: 2,
    globalSetup: 'test/state-dir.ts',
    projects: [
      {
        test: {
          name: 'unit',
          include: ['src/**/*.test.ts', 'test/**/*.test.ts', 'scripts/**/*.test.ts'],
          exclude: [BOOT, PACKAGE],
          pool: 'forks',
          isolate: false,
          // Nothing takes a quarter of it where nothing else runs.
          testTimeout: 3 * MINUTE_MS,
          hookTimeout: 3 * MINUTE_MS,
        },
      },
      {
        test: {
          name: 'boot',
          include: [BOOT],
          pool: 'forks',
          // A KVM without hardware virtualisation fails a guest of two vCPUs now and then: docs/quirks.md, INT3.
          retry: 1,
          testTimeout: 5 * MINUTE_MS,
          hookTimeout: 5 * MINUTE_MS,
        },
      },
      {
        test: {
          name: 'package',
          include: [PACKAGE],
          pool: 'forks',
          testTimeout: 5 * MINUTE_MS,
          hookTimeout: 5 * MINUTE_MS,
        },
      },
    ],
  },
});
