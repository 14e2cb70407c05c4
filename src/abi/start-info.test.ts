import { expect, test } from 'vitest';
import { MAX_GUEST_CMDLINE, START_INFO, START_INFO_MAGIC } from './start-info.ts';

test('fields of start_info follow each other without overlap', () => {
  // offset, size, as the C structure has them.
  const sizes = {
    magic: 32,
    nr_pages: 8,
    shared_info: 8,
    flags: 8, // u32 and padding
    store_mfn: 8,
    store_evtchn: 8, // u32 and padding
    console_mfn: 8,
    console_evtchn: 8, // u32 and padding
    pt_base: 8,
    nr_pt_frames: 8,
    mfn_list: 8,
    mod_start: 8,
    mod_len: 8,
    cmd_line: MAX_GUEST_CMDLINE,
    first_p2m_pfn: 8,
    nr_p2m_frames: 8,
  } as const;
  let at = 0;
  for (const field of Object.keys(sizes) as (keyof typeof sizes)[]) {
    expect(START_INFO[field], field).toBe(at);
    at += sizes[field];
  }
  expect(at).toBe(START_INFO.SIZE);
  expect(START_INFO_MAGIC.length).toBeLessThan(32);
});
