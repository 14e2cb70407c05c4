/**
 * Writes docs/support.md: every hypercall and sub-operation with its state, from src/hypervisor/hypercalls/table.ts.
 * With `--check` it only compares, and exits with 1 when the file is stale.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { HYPERCALLS, type SubOperation } from '../src/hypervisor/hypercalls/table.ts';

const FILE = 'docs/support.md';

const HEAD = `# Hypercalls

<!-- Written by scripts/generate-support.ts from src/hypervisor/hypercalls/table.ts. Do not edit. -->

What a guest gets when it calls the hypervisor. The interface is that of Xen 4.17 for an unprivileged 64-bit PV domain.

- **done**: works as under Xen, as far as a domain can tell
- **partly**: works, but for what the note says
- **refused**: answers with an errno, or a status in each entry: Xen's own for such a domain, or the one in the note
`;

function row(nr: string, name: string, { state, note }: SubOperation): string {
  return `| ${nr} | ${name} | ${state} | ${(note ?? '').replaceAll('<', '&lt;').replaceAll('|', '\\|')} |`;
}

function count(of: readonly SubOperation[]): string {
  const by = (state: string): number => of.filter((op) => op.state === state).length;
  return `${of.length}: ${by('done')} done, ${by('partly')} partly, ${by('refused')} refused`;
}

export function supportMarkdown(): string {
  const subOps = HYPERCALLS.flatMap((call) => call.subOps ?? []);
  const lines = [HEAD, `Hypercalls ${count(HYPERCALLS)}. Sub-operations ${count(subOps)}.`, ''];
  lines.push('| # | hypercall | state | note |', '| ---: | --- | --- | --- |');
  for (const call of HYPERCALLS) {
    const name = call.subOps === undefined ? `\`${call.name}\`` : `[\`${call.name}\`](#${call.name})`;
    lines.push(row(String(call.nr), name, call));
  }
  for (const call of HYPERCALLS) {
    if (call.subOps === undefined) continue;
    lines.push('', `## ${call.name}`, '', '| # | sub-operation | state | note |', '| ---: | --- | --- | --- |');
    for (const op of call.subOps) lines.push(row(String(op.nr), `\`${op.name}\``, op));
  }
  return `${lines.join('\n')}\n`;
}

if (import.meta.main) {
  const path = join(dirname(dirname(fileURLToPath(import.meta.url))), FILE);
  const text = supportMarkdown();
  if (process.argv.includes('--check')) {
    let current = '';
    try {
      current = readFileSync(path, 'utf8').replaceAll('\r\n', '\n');
    } catch {
      // Not there: stale.
    }
    if (current !== text) {
      console.error(`${FILE} is stale: run node scripts/generate-support.ts`);
      process.exitCode = 1;
    }
  } else {
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, text);
  }
}
