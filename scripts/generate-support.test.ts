import { expect, test } from 'vitest';
import { HYPERCALLS } from '../src/hypervisor/hypercalls/table.ts';
import { supportMarkdown } from './generate-support.ts';

test('docs/support.md has a row for each hypercall and sub-operation', () => {
  const rows = supportMarkdown()
    .split('\n')
    .filter((line) => /^\| \d/.test(line));
  const subOps = HYPERCALLS.flatMap((call) => call.subOps ?? []);
  expect(rows).toHaveLength(HYPERCALLS.length + subOps.length);
  for (const row of rows) expect(row.split(/(?<!\\)\|/)).toHaveLength(6);
});
