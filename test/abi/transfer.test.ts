/**
 * GNTTABOP_transfer between two guests that are not Linux, each in a process of its own: the one gives back a page and accepts another, which
 * it finds by its entry, maps and reads. Source: xen/include/public/grant_table.h.
 */

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { stopDaemon } from '../../src/host/domusd.ts';
import type { EngineKind } from '../../src/host/engines.ts';
import { MFN_BASE } from '../../src/machine/memory.ts';
import { consoleLog, consoleSays, endDomains, killDomain } from '../boot/domains.ts';
import { xl } from '../boot/guest.ts';
import { ENGINES, whyUnusable } from '../guests/engines.ts';
import { DONE } from '../guests/hostile.ts';
import { DOMID_SELF, H, Program, RAM_PAGES, SHARED_INFO_MFN } from '../guests/program.ts';

const LIMIT_MS = 30_000;
const root = mkdtempSync(join(tmpdir(), 'domus-transfer-'));
const env = { ...process.env, DOMUS_STATE_DIR: root };
afterAll(async () => {
  await endDomains(root);
  await stopDaemon(root);
  rmSync(root, { recursive: true });
});

const GREF = 9;
const READY = 0x4ead1n;
const GTF_accept_transfer = 2;
const COMPLETED = 0xe;
const GNTTABOP_transfer = 4;
const WORDS = 512;
const [YIELD, DECREASE, CURRENT] = [0, 1, 3];

let created = 0;

async function create(name: string, engine: EngineKind, program: Program): Promise<number> {
  const kernel = join(root, `${name}-kernel`);
  const config = join(root, `${name}.cfg`);
  writeFileSync(kernel, program.elf());
  const cmdline = 'cmdline = "earlyprintk=xen"\non_poweroff = "destroy"\n';
  writeFileSync(config, `kernel = "${kernel}"\nmemory = 16\nengine = "${engine}"\n${cmdline}`);
  expect(await xl(['create', '-q', config, `name="${name}"`], LIMIT_MS, env)).toEqual({
    code: 0,
    console: '',
    log: '',
  });
  created++;
  return Number((await xl(['domid', name], LIMIT_MS, env)).console);
}

/** Words that a guest has reported, up to one of them. */
async function reported(name: string, last: bigint): Promise<bigint[]> {
  await consoleSays(root, name, new RegExp(last.toString(16).padStart(16, '0')), LIMIT_MS);
  const lines = consoleLog(root, name).split('\n');
  return lines.filter((line) => /^[0-9a-f]{16}$/.test(line)).map((word) => BigInt.asIntN(64, BigInt(`0x${word}`)));
}

/** Pages that the domain has, as a line. */
function reportPages(p: Program): void {
  p.check(H.memory_op, CURRENT, p.words([DOMID_SELF]));
}

/** A page that is mapped nowhere, given back to Xen or not; its PFN. */
function withoutPage(p: Program, fill: bigint[], giveBack: boolean): number {
  const va = p.words(fill);
  const mfn = p.mfn(va);
  p.unmap(va);
  if (giveBack) p.check(H.memory_op, DECREASE, p.words([p.words([mfn]), 1, 0, DOMID_SELF]));
  return mfn - MFN_BASE;
}

/** Accepts a page of `from` and, when it is there, reports its first and last word, and what its entry says. */
function receiver(from: number): { program: Program; pfn: number } {
  const p = new Program();
  const [table, seen] = [p.page(), p.page()];
  p.mapFrame(table, SHARED_INFO_MFN + 1);
  const pfn = withoutPage(p, new Array<bigint>(WORDS).fill(1n), true);
  p.movImm('rbp', table);
  p.movImm('rax', BigInt(GTF_accept_transfer | (from << 16)) | (BigInt(pfn) << 32n));
  p.store('rbp', GREF * 8, 'rax');
  reportPages(p);
  p.movImm('rax', READY);
  p.report();
  p.label('wait');
  p.hypercall(H.sched_op, YIELD, 0);
  p.load('rax', 'rbp', GREF * 8);
  p.alu('and', 'rax', COMPLETED);
  p.alu('cmp', 'rax', COMPLETED);
  p.jmpIf('notEqual', 'wait');
  p.load('r12', 'rbp', GREF * 8);
  p.mov('rax', 'r12');
  p.report();
  p.shift('right', 'r12', 32);
  p.shift('left', 'r12', 12);
  p.alu('add', 'r12', 3);
  p.hypercall(H.update_va_mapping, seen, 'r12', 2);
  p.report();
  p.movImm('rbp', seen);
  for (const word of [0, WORDS - 1]) {
    p.load('rax', 'rbp', word * 8);
    p.report();
  }
  reportPages(p);
  p.movImm('rax', DONE);
  p.report();
  p.loop();
  return { program: p, pfn };
}

/** One GNTTABOP_transfer; its status as a line. */
function give(p: Program, mfn: bigint | number, domid: number): void {
  const request = p.words([mfn, domid | 0, 0]);
  p.movImm('rbp', request);
  p.movImm('rax', BigInt(domid) | (BigInt(GREF) << 32n));
  p.store('rbp', 8, 'rax');
  p.hypercall(H.grant_table_op, GNTTABOP_transfer, request, 1);
  p.load('rax', 'rbp', 16);
  p.alu('and', 'rax', 0xffff);
  p.report();
}

const status = (gntst: number): bigint => BigInt(gntst & 0xffff);

test.for(ENGINES)('a page goes from one guest to another, on %s', { timeout: 60_000 }, async (engine, context) => {
  const unusable = whyUnusable(engine);
  if (unusable !== null) context.skip(unusable);
  // The other engine gives and takes, as far as there are two.
  const other = ENGINES.find((kind) => kind !== engine && whyUnusable(kind) === null) ?? engine;
  const [taker, giver] = [`taker-${engine}`, `giver-${engine}`];
  // The daemon counts domids up, and nobody else asks it.
  const { program, pfn } = receiver(created + 2);
  const domid = await create(taker, engine, program);
  await reported(taker, READY);

  const p = new Program();
  const contents = Array.from({ length: WORDS }, (_, i) => 0x1234_0000n + BigInt(i));
  const own = withoutPage(p, contents, false);
  const mapped = p.page();
  reportPages(p);
  // Not the caller's, or in use.
  for (const mfn of [0, SHARED_INFO_MFN, SHARED_INFO_MFN + 1, p.mfn(mapped), -1n, 1n << 52n]) give(p, mfn, domid);
  p.loadRootVa('rax');
  p.vaToMfn('rax');
  const request = p.words([0, BigInt(domid) | (BigInt(GREF) << 32n), 0]);
  p.movImm('rbp', request);
  p.store('rbp', 0, 'rax');
  p.hypercall(H.grant_table_op, GNTTABOP_transfer, request, 1);
  p.load('rax', 'rbp', 16);
  p.alu('and', 'rax', 0xffff);
  p.report();
  give(p, MFN_BASE + own, domid);
  // It is gone; and what nobody takes is gone too.
  give(p, MFN_BASE + own, domid);
  give(p, MFN_BASE + withoutPage(p, [1n], false), domid);
  give(p, MFN_BASE + withoutPage(p, [1n], false), 0x7fe0);
  reportPages(p);
  p.movImm('rax', DONE);
  p.report();
  p.loop();
  expect(await create(giver, other, p)).toBe(domid + 1);

  expect(await reported(giver, DONE)).toEqual([
    BigInt(RAM_PAGES),
    ...new Array<bigint>(7).fill(status(-9)),
    status(0),
    status(-9),
    status(-1),
    status(-2),
    BigInt(RAM_PAGES - 3),
    DONE,
  ]);
  expect(await reported(taker, DONE)).toEqual([
    1n,
    BigInt(RAM_PAGES - 1),
    READY,
    BigInt(COMPLETED | ((domid + 1) << 16)) | (BigInt(MFN_BASE + pfn) << 32n),
    0n,
    contents[0],
    contents[WORDS - 1],
    BigInt(RAM_PAGES),
    DONE,
  ]);
  await killDomain(giver, root);
  await killDomain(taker, root);
});
