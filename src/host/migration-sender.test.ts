/** A domain is handed to a target that says, or does not say, what it should: on which side it lives then. */

import { beforeEach, expect, test } from 'vitest';
import { createDomain, DOMAIN, type Domain } from '../hypervisor/domain.ts';
import { createMachineMemory } from '../machine/memory.ts';
import type { Description } from '../toolstack/saved/saved-description.ts';
import { NotSavable } from '../toolstack/saved/saved-state.ts';
import { XenstoreClient } from '../xenstore/client.ts';
import { linkToStore } from '../xenstore/link.ts';
import { createStore } from '../xenstore/store.ts';
import { DirtyTracker } from './dirty-tracker.ts';
import { createEngineDomain, createKicker } from './engines.ts';
import { LinkError, type MigrationLink } from './migration-link.ts';
import { ACCEPTED, BANNER, GO, PROTOCOL_VERSION, READY, REPORT, TAKEN } from './migration-protocol.ts';
import { type Departure, migrate } from './migration-sender.ts';
import { SavedDomain } from './restore-domain.ts';
import type { AfterFreeze, Freezer, SavableDomain } from './save-domain.ts';
import { sourceOf } from './save-stream.ts';

const VCPUS = 1;
const PAGES = 64;

let domain: Domain;
let saved: SavableDomain;
let tracker: DirtyTracker;
/** What has happened, in its order. */
let events: string[];

const facts: Pick<Description, 'knownDomid' | 'engine' | 'store' | 'console' | 'cmdline'> = {
  knownDomid: 5,
  engine: 'wasm',
  store: { pfn: 3, port: 1 },
  console: { pfn: 4, port: 2 },
  cmdline: '',
};

beforeEach(async () => {
  const machine = createMachineMemory(PAGES, PAGES);
  domain = createDomain(machine, 5, VCPUS, new Uint8Array(16));
  domain.u32[DOMAIN.tscKhz >> 2] = 1_000_000;
  const store = new XenstoreClient(linkToStore(createStore()));
  await store.write('/local/domain/5/name', 'guest');
  events = [];
  const engine = createEngineDomain('wasm', domain.machine, VCPUS);
  const kicker = createKicker(engine);
  tracker = new DirtyTracker({ domain, engine, kicker, ringFrames: [3, 4] });
  const cpu = { xcr0: 7, words: [0, 0, 0, 0, 0, 0, 0, 0, 0] };
  // Only what is read of it.
  saved = {
    ...{ domain, store, cpu, facts, kicker, connection: { watches: [] } },
    config: () => 'name="guest"\n',
  } as unknown as SavableDomain;
});

/** Stands still for as long as `act` takes, and says how it goes on. */
const freezer = {
  whileFrozen: async (act: () => Promise<AfterFreeze>): Promise<void> => {
    events.push('frozen');
    let after: AfterFreeze = 'as before';
    try {
      after = await act();
    } finally {
      events.push(after === 'stay' ? 'gone' : 'goes on');
    }
  },
} as unknown as Freezer;

/** A target that says these lines, one when it is asked for the next; null: the way to it is cut. */
class Target implements MigrationLink {
  readonly sent: Uint8Array[] = [];
  patienceMs = 0;
  readonly #lines: (string | null)[];
  readonly #cutAtGo: 'no' | 'before' | 'perhaps';

  constructor(lines: readonly (string | null)[], cutAtGo: 'no' | 'before' | 'perhaps' = 'no') {
    this.#lines = [...lines];
    this.#cutAtGo = cutAtGo;
  }

  async send(bytes: Uint8Array): Promise<void> {
    this.sent.push(Uint8Array.from(bytes));
  }

  async sendFinal(bytes: Uint8Array, said: string, commit: () => void): Promise<void> {
    if (this.#cutAtGo === 'before') throw new LinkError('cut', true);
    commit();
    if (this.#cutAtGo === 'perhaps') throw new LinkError('cut');
    events.push(said, `said ${new TextDecoder().decode(bytes).trim()}`);
  }

  async line(what: string): Promise<string> {
    // It takes what comes.
    if (what === 'round message') return TAKEN;
    const line = this.#lines.shift() ?? null;
    if (line === null) throw new LinkError(`file/stream truncated reading ${what} from migration receiver stream`);
    return line;
  }

  tell(line: string): void {
    events.push(line);
  }

  detail(): void {}

  hangUp(): void {
    events.push('hung up');
  }

  result(exitCode: number): void {
    events.push(`code ${exitCode}`);
  }
}

/** A domain that gives up nothing. */
const NOTHING: Departure = {
  rename: async () => {},
  leave: async () => {},
  forget: () => {},
  comeBack: async () => {},
  named: async () => {},
};

async function handOver(
  link: Target,
  departure: Partial<Pick<Departure, 'leave' | 'comeBack' | 'named'>> = {},
): Promise<boolean> {
  return await migrate({
    ...{
      saved,
      freezer,
      tracker,
      link,
      isMapped: () => false,
      notedCode: async () => [],
      command: 'ssh b xl migrate-receive',
      debug: false,
      note: (line: string) => void events.push(`noted: ${line}`),
    },
    departure: {
      rename: async () => {
        events.push('renamed');
      },
      leave: async () => {
        events.push('left');
        await departure.leave?.();
      },
      forget: () => {
        events.push('forgotten');
      },
      comeBack: async () => {
        await departure.comeBack?.();
        events.push('came back');
      },
      named: async () => {
        await departure.named?.();
      },
    },
  });
}

const NO_GO = 'Migration failed, resuming at sender.';
const ACKNOWLEDGED = 'migration sender: Target has acknowledged transfer.';
const GIVING = 'migration sender: Giving target permission to start.';
const FAILED = 'migration sender: libxl_domain_suspend failed (rc=-3)';
const truncated = (what: string): string =>
  `libxl: error: file/stream truncated reading ${what} from migration receiver stream`;

test('the source gives up what it has before it says go, and is gone when the target runs', async () => {
  expect(await handOver(new Target([BANNER, ACCEPTED, READY, REPORT, '0']))).toBe(true);
  expect(events).toEqual([
    ...['frozen', 'renamed', ACKNOWLEDGED, 'left', 'forgotten', GIVING, `said ${GO}`],
    ...['migration sender: Target reports successful startup.', 'gone'],
  ]);
});

test('no memory is sent to a target that does not accept the domain', async () => {
  domain.machine.u8.fill(0xa5, 10 * 4096, 20 * 4096);
  const target = new Target([BANNER, null]);
  expect(await handOver(target)).toBe(false);
  expect(events).toEqual([truncated('answer'), FAILED, 'hung up', NO_GO, 'code 1']);
  const reader = sourceOf(chunks(target.sent)).source;
  // The stream has the header, the description and the domain part, and ends there.
  const opened = await SavedDomain.open(reader);
  expect(opened.description.config).toBe('name="guest"\n');
  expect((await reader(1)).length).toBe(0);
});

test.each([
  [[null], [truncated('banner')]],
  [
    ['domus migration receiver, version 9: send the domain'],
    [`migration target has version 9 of the migration stream, and this Domus has ${PROTOCOL_VERSION}`],
  ],
  [
    ['xl migration receiver ready, send binary domain data.'],
    [
      'migration receiver stream contained unexpected data instead of banner',
      '(command run was: ssh b xl migrate-receive )',
    ],
  ],
])('a target that begins with %j gets nothing', async (lines, told) => {
  const target = new Target(lines);
  expect(await handOver(target)).toBe(false);
  expect(target.sent).toEqual([]);
  expect(events).toEqual([...told, 'hung up', 'code 1']);
});

test('until go is said, it goes on at the source', async () => {
  expect(await handOver(new Target([BANNER, ACCEPTED, null]))).toBe(false);
  expect(events).toEqual([
    ...['frozen', 'renamed', truncated('ready message'), 'hung up', 'came back', 'goes on', NO_GO, 'code 1'],
  ]);

  events = [];
  const cannot = { leave: () => Promise.reject(new Error('the disk is full')) };
  expect(await handOver(new Target([BANNER, ACCEPTED, READY]), cannot)).toBe(false);
  expect(events).toEqual([
    ...['frozen', 'renamed', ACKNOWLEDGED, 'left', 'libxl: error: the disk is full'],
    ...['hung up', 'came back', 'goes on', NO_GO, 'code 1'],
  ]);

  events = [];
  expect(await handOver(new Target([BANNER, ACCEPTED, READY], 'before'))).toBe(false);
  expect(events).toEqual([
    ...['frozen', 'renamed', ACKNOWLEDGED, 'left', 'libxl: error: cut'],
    ...['hung up', 'came back', 'goes on', NO_GO, 'code 1'],
  ]);
});

test('the user hears that it stays when it has its name again, for which the guest does not wait', async () => {
  const named = async (): Promise<void> => void events.push('named');
  expect(await handOver(new Target([BANNER, ACCEPTED, null]), { named })).toBe(false);
  expect(events.slice(-5)).toEqual(['came back', 'goes on', 'named', NO_GO, 'code 1']);

  events = [];
  expect(await handOver(new Target([BANNER, ACCEPTED, READY, REPORT, '3', GO]), { named })).toBe(false);
  expect(events.slice(-3)).toEqual(['code 1', 'goes on', 'named']);
});

test('a target that cannot run it gives it back', async () => {
  expect(await handOver(new Target([BANNER, ACCEPTED, READY, REPORT, '3', GO]))).toBe(false);
  expect(events.slice(7)).toEqual([
    'migration sender: Target reports startup failure (status code 3).',
    ...['migration sender: Trying to resume at our end.', 'came back', 'migration sender: Resumed OK.'],
    ...['Migration failed due to problems at target.', 'hung up', 'code 1', 'goes on'],
  ]);
});

test.each([
  ['nothing', [], 'perhaps'],
  ['no report', [null], 'no'],
  ['no status', [REPORT, null], 'no'],
  ['a failure without permission', [REPORT, '3', null], 'no'],
] as const)('after go and %s, it stands still until the user resumes it', async (_, lines, cutAtGo) => {
  const migrating = handOver(new Target([BANNER, ACCEPTED, READY, ...lines], cutAtGo));
  const index = DOMAIN.suspended >> 2;
  while (Atomics.load(domain.i32, index) === 0) await new Promise(setImmediate);
  expect(events).toContain('** Migration failed during final handshake **');
  expect(events.slice(-2)).toEqual([
    'code 1',
    expect.stringMatching(
      /^noted: Domain 5 stands still: the target had permission to start, and it is not known here whether it has: .*\. Look there, then xl resume 5 or xl destroy 5$/,
    ),
  ]);
  expect(events).not.toContain('goes on');
  expect(events).not.toContain('came back');
  Atomics.store(domain.i32, index, 0);
  Atomics.notify(domain.i32, index);
  expect(await migrating).toBe(false);
  expect(events.slice(-2)).toEqual(['came back', 'goes on']);
});

test('a domain that cannot have its devices any more stands still until it is resumed, and tries again then', async () => {
  let tries = 0;
  const comeBack = async (): Promise<void> => {
    if (tries++ === 0) throw new Error('d.img: is in use');
  };
  const migrating = handOver(new Target([BANNER, ACCEPTED, null]), { comeBack });
  const index = DOMAIN.suspended >> 2;
  while (Atomics.load(domain.i32, index) === 0) await new Promise(setImmediate);
  expect(events.slice(-3)).toEqual([
    'libxl: error: Domain 5 cannot go on: d.img: is in use; it stands still until xl resume',
    'code 1',
    'noted: Domain 5 cannot go on: d.img: is in use. It stands still: xl resume 5 tries again',
  ]);
  Atomics.store(domain.i32, index, 0);
  Atomics.notify(domain.i32, index);
  expect(await migrating).toBe(false);
  expect(tries).toBe(2);
  expect(events).toContain('goes on');
});

test('what cannot be frozen stays, as xl says it', async () => {
  const never = {
    whileFrozen: () => Promise.reject(new NotSavable('its devices do not let go')),
  } as unknown as Freezer;
  const link = new Target([BANNER, ACCEPTED]);
  const rest = {
    saved,
    tracker,
    link,
    isMapped: () => false,
    notedCode: async () => [],
    command: '',
    debug: false,
    note: () => {},
  };
  const departure = NOTHING;
  expect(await migrate({ ...rest, freezer: never, departure })).toBe(false);
  expect(events).toEqual([
    ...['libxl: error: its devices do not let go', 'migration sender: libxl_domain_suspend failed (rc=-8)'],
    ...['hung up', 'Migration failed, failed to suspend at sender.', 'code 1'],
  ]);
});

test('what is written while pages are sent comes again, and the target has the last of it', async () => {
  const { u8 } = domain.machine;
  for (let frame = 8; frame < 40; frame++) u8.fill(frame, frame * 4096, (frame + 1) * 4096);
  const target = new Target([BANNER, ACCEPTED, READY, REPORT, '0']);
  const send = target.send.bind(target);
  let writes = 0;
  let runs = true;
  target.send = async (bytes) => {
    await send(bytes);
    if (!runs) return;
    // A page that has been sent, one that becomes zero, and one that was zero: by turns, and each is marked.
    const frame = [8, 20, 50][writes % 3];
    u8.fill(writes % 3 === 1 ? 0 : 0x40 + writes, frame * 4096, (frame + 1) * 4096);
    domain.machine.dirty.mark(frame);
    writes++;
  };
  const frozen = {
    whileFrozen: async (act: () => Promise<AfterFreeze>): Promise<void> => {
      runs = false;
      await act();
    },
  } as unknown as Freezer;
  const departure = NOTHING;
  const rest = {
    saved,
    tracker,
    link: target,
    isMapped: () => false,
    notedCode: async () => [],
    command: '',
    debug: true,
    note: () => {},
  };
  expect(await migrate({ ...rest, freezer: frozen, departure })).toBe(true);
  expect(writes).toBeGreaterThan(6);

  const there = createMachineMemory(PAGES, PAGES);
  const copy = createDomain(there, 5, VCPUS, new Uint8Array(16));
  const opened = await SavedDomain.open(sourceOf(chunks(target.sent)).source);
  let wanted = 0;
  opened.onWanted = async () => void wanted++;
  await opened.load(copy.machine, copy, Promise.resolve());
  expect(wanted).toBe(1);
  expect(opened.lateNs()).toBeGreaterThan(0);
  const ram = PAGES * 4096;
  expect(Buffer.compare(copy.machine.u8.subarray(0, ram), u8.subarray(0, ram))).toBe(0);
});

test('a target whose copy differs refuses it', async () => {
  domain.machine.u8.fill(1, 9 * 4096, 10 * 4096);
  const target = new Target([BANNER, ACCEPTED, READY, REPORT, '0']);
  const changing = {
    whileFrozen: async (act: () => Promise<AfterFreeze>): Promise<void> => {
      // Nobody has marked it.
      domain.machine.u8[9 * 4096 + 7] = 2;
      await act();
    },
  } as unknown as Freezer;
  const departure = NOTHING;
  const rest = {
    saved,
    tracker,
    link: target,
    isMapped: () => false,
    notedCode: async () => [],
    command: '',
    debug: true,
    note: () => {},
  };
  await migrate({ ...rest, freezer: changing, departure });
  const copy = createDomain(createMachineMemory(PAGES, PAGES), 5, VCPUS, new Uint8Array(16));
  const opened = await SavedDomain.open(sourceOf(chunks(target.sent)).source);
  await expect(opened.load(copy.machine, copy, Promise.resolve())).rejects.toThrow(
    'frame 9 is not what it is at the source',
  );
});

async function* chunks(sent: readonly Uint8Array[]): AsyncIterableIterator<Uint8Array> {
  yield* sent;
}
