/** A grant table of version 2, and grants of a guest to itself, from one that is not Linux. Source: xen/include/public/grant_table.h. */

import { expect, test } from 'vitest';
import { DONE, describeGuests, EINVAL, finish, withTraps } from '../guests/hostile.ts';
import { DOMID_SELF, FAULT, H, SHARED_INFO_MFN } from '../guests/program.ts';

/** A domain that is run by itself. */
const DOMID = 1;
const GREF = 9;
const GRANT_FRAMES = 64;
const STATUS_MFN = SHARED_INFO_MFN + 1 + GRANT_FRAMES;
const GTF_permit_access = 1;
const IN_USE = 0x18n;
const [MAP, UNMAP, SET_VERSION, GET_STATUS_FRAMES] = [0, 1, 8, 9];
const GNTMAP_host_map = 2n;
const EBUSY = -16n;

describeGuests('grants', (runGuest) => {
  test('version 2: the guest sees in the status frame that its grant is in use, and maps its page twice', async () => {
    const p = withTraps();
    const [table, status, page, twice] = [p.page(), p.page(), p.page(), p.page()];
    p.mapFrame(table, SHARED_INFO_MFN + 1);
    p.unmap(twice);
    const statusEntry = (BigInt(STATUS_MFN) << 12n) | 3n;
    p.check(H.update_va_mapping, status, statusEntry, 2);
    const setVersion = (version: number): void => p.check(H.grant_table_op, SET_VERSION, p.words([version]), 1);
    setVersion(2);
    // struct gnttab_get_status_frames { u32 nr_frames; u16 dom; s16 status; u64 *list; }
    const list = p.words([0]);
    p.check(H.grant_table_op, GET_STATUS_FRAMES, p.words([1n | (BigInt(DOMID_SELF) << 32n), list]), 1);
    p.movImm('rbx', list);
    p.load('rax', 'rbx', 0);
    p.report();
    p.check(H.update_va_mapping, status, statusEntry, 2);

    p.movImm('rbp', table);
    p.movImm('rax', BigInt(p.mfn(page)));
    p.store('rbp', GREF * 16 + 8, 'rax');
    p.movImm('rax', GTF_permit_access | (DOMID << 16));
    p.store('rbp', GREF * 16, 'rax');
    const reportStatus = (): void => {
      p.movImm('rbx', status);
      p.load('rax', 'rbx', 16);
      p.shift('right', 'rax', (GREF - 8) * 16);
      p.report();
    };
    // struct gnttab_map_grant_ref { u64 host_addr; u32 flags, ref; u16 dom; s16 status; u32 handle; u64 dev_bus_addr; }
    const request = p.words([twice, GNTMAP_host_map | (BigInt(GREF) << 32n), DOMID, 0]);
    p.check(H.grant_table_op, MAP, request, 1);
    reportStatus();
    p.movImm('rbx', twice);
    p.movImm('rax', 0x5a5a);
    p.store('rbx', 8, 'rax');
    p.movImm('rbx', page);
    p.load('rax', 'rbx', 8);
    p.report();
    setVersion(1);

    // struct gnttab_unmap_grant_ref { u64 host_addr, dev_bus_addr; u32 handle; s16 status; }; handles are in the upper half of a word.
    const unmap = p.words([twice, 0, 0]);
    p.movImm('rbx', request);
    p.load('rax', 'rbx', 16);
    p.shift('right', 'rax', 32);
    p.movImm('rbx', unmap);
    p.store('rbx', 16, 'rax');
    p.check(H.grant_table_op, UNMAP, unmap, 1);
    reportStatus();
    p.attempt(() => {
      p.movImm('rbx', twice);
      p.load('rax', 'rbx', 8);
    });
    // Not while the status frame is mapped.
    setVersion(1);
    p.unmap(status);
    setVersion(1);
    finish(p);
    const run = await runGuest(p);
    expect(run.words, run.log.join('\n')).toEqual([
      ...[EINVAL, 0n, 0n, BigInt(STATUS_MFN), 0n],
      ...[0n, IN_USE, 0x5a5an, EBUSY],
      ...[0n, 0n, FAULT + 14n],
      ...[EBUSY, 0n, DONE],
    ]);
  });
});
