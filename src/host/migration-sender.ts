/**
 * The source of a migration: sends a domain that runs to where it shall go on, and hands it over.
 *
 *   1. the target says who it is, hears what comes, and accepts it
 *   2. pages, while the domain runs (live-copy.ts)
 *   3. the domain is frozen; the rest
 *   4. the source gives up its name; the target has it all, and says so
 *   5. the source gives up its disks
 *   6. it gives up what it would be started again from, and says GO: whoever kills it does so before both, or behind both, but for some microseconds
 *   7. the target reports that it runs: the source ends
 *
 * Whatever goes wrong before 6, the domain goes on here, and the target, which gets no GO, throws its copy away. From 6 on the domain
 * is the target's, and goes on here only if the target says that it may. If nothing is heard of the target any more, nobody can know
 * here whether it has it: the domain stands still until the user says resume, or destroy.
 */

import { DOMAIN, type Domain } from '../hypervisor/domain.ts';
import { isSuspended } from '../hypervisor/domain-state.ts';
import { NotSavable } from '../toolstack/saved/saved-state.ts';
import type { DirtyTracker } from './dirty-tracker.ts';
import { LiveCopy } from './live-copy.ts';
import { LinkError, type MigrationLink } from './migration-link.ts';
import { ACCEPTED, BANNER, bannerVersion, GO, PROTOCOL_VERSION, READY, REPORT, TAKEN } from './migration-protocol.ts';
import type { AfterFreeze, Freezer, SavableDomain } from './save-domain.ts';

/** What a domain gives up when it goes, and takes up again when it comes back. */
export interface Departure {
  /** Its name, while the target takes the rest. @throws Error when it cannot go; `comeBack` follows */
  rename(): Promise<void>;
  /** Its devices, when the target has it all. @throws Error when it cannot go; `comeBack` follows */
  leave(): Promise<void>;
  /** What it would be started again from. @throws Error when it cannot go; `comeBack` follows */
  forget(): void;
  /** Takes up what it can at once: the domain goes on then. @throws Error when it cannot have its devices any more; it can be tried again */
  comeBack(): Promise<void>;
  /** After `comeBack`: resolves when it has its name again, or is not to have it. Never rejects */
  named(): Promise<void>;
}

export interface Migration {
  readonly saved: SavableDomain;
  readonly freezer: Freezer;
  readonly tracker: DirtyTracker;
  readonly link: MigrationLink;
  readonly departure: Departure;
  /** Of each vCPU, what code has run since this was called last. */
  readonly notedCode: () => Promise<readonly Uint32Array[]>;
  /** Another domain has pages of it mapped. */
  readonly isMapped: () => boolean;
  /** Of what reaches the target, for messages. */
  readonly command: string;
  /** All pages are compared at the target. */
  readonly debug: boolean;
  /** For the domain's log. */
  readonly note: (line: string) => void;
}

const ACCEPT_LIMIT_MS = 120_000;
/** What is on the way when all of a round has been sent. */
const ROUND_LIMIT_MS = 120_000;
/** While the domain stands still. */
const STILL_PATIENCE_MS = 10_000;
const READY_LIMIT_MS = 30_000;
const REPORT_LIMIT_MS = 30_000;

/** libxl's codes. Source: xen/tools/libs/light/libxl_types.idl, enumeration error. */
const ERROR_FAIL = -3;
const ERROR_GUEST_TIMEDOUT = -8;

const UNDEFINED = [
  '** Migration failed during final handshake **',
  'Domain state is now undefined !',
  'Please CHECK AT BOTH ENDS for running instances, before renaming and',
  ' resuming at most one instance.  Two simultaneous instances of the domain',
  ' would probably result in SEVERE DATA LOSS and it is now your',
  ' responsibility to avoid that.  Sorry.',
];

/** Why the domain stays; the lines are for the user. Null: they are told, and the target gets nothing more. */
class StaysHere extends Error {
  override readonly name = 'StaysHere';
  readonly lines: readonly string[] | null;
  readonly last: string;

  constructor(lines: readonly string[] | null, last: string) {
    super(last);
    this.lines = lines;
    this.last = last;
  }
}

/** True when the domain is the target's, and stands still here for good. False: it goes on here. */
export async function migrate(migration: Migration): Promise<boolean> {
  const { saved, freezer, tracker, link, departure, isMapped } = migration;
  const taken = (): Promise<void> => expectLine(migration, TAKEN, 'round message', ROUND_LIMIT_MS);
  const copy = new LiveCopy(saved, tracker, link.send.bind(link), taken, migration.notedCode);
  let gone = false;
  try {
    await greet(migration);
    if (isMapped()) throw new NotSavable('another domain has pages of it mapped');
    await sending(async () => {
      await copy.announce();
      await expectLine(migration, ACCEPTED, 'answer', ACCEPT_LIMIT_MS);
      await copy.copyRunning(({ number, pages, left, ms }) =>
        link.detail(`xc: detail: iteration ${number}: ${pages} pages in ${Math.round(ms)} ms, ${left} left`),
      );
    });
    await freezer.whileFrozen(async () => {
      const fromMs = performance.now();
      if (isMapped()) throw new NotSavable('another domain has pages of it mapped');
      link.patienceMs = STILL_PATIENCE_MS;
      await sending(async () => {
        const pages = await copy.copyRest(migration.debug);
        link.detail(`xc: detail: the rest: ${pages} pages in ${Math.round(performance.now() - fromMs)} ms`);
      });
      const after = await handOver(migration);
      link.detail(`xc: detail: stood still for ${Math.round(performance.now() - fromMs)} ms`);
      gone = after === 'stay';
      return after;
    });
    if (!gone) await departure.named();
  } catch (error) {
    await tellWhy(error, migration);
    return false;
  } finally {
    copy.stop();
  }
  return gone;
}

async function greet({ link, command }: Migration): Promise<void> {
  let line: string;
  try {
    // Somebody may have to type a password.
    line = await link.line('banner', Number.POSITIVE_INFINITY);
  } catch (error) {
    if (!(error instanceof LinkError)) throw error;
    throw new StaysHere([`libxl: error: ${error.message}`], '');
  }
  if (line === BANNER) return;
  const version = bannerVersion(line);
  throw new StaysHere(
    version === null
      ? unexpected('banner', command)
      : [`migration target has version ${version} of the migration stream, and this Domus has ${PROTOCOL_VERSION}`],
    '',
  );
}

function unexpected(what: string, command: string): string[] {
  return [
    `migration receiver stream contained unexpected data instead of ${what}`,
    ...(command === '' ? [] : [`(command run was: ${command} )`]),
  ];
}

async function expectLine({ link, command }: Migration, line: string, what: string, limitMs: number): Promise<void> {
  if ((await link.line(what, limitMs)) !== line) throw new LinkError(unexpected(what, command).join('\n'));
}

/** What goes wrong with sending is told as xl does. */
async function sending(act: () => Promise<void>): Promise<void> {
  try {
    await act();
  } catch (error) {
    if (!(error instanceof LinkError)) throw error;
    const failed = `migration sender: libxl_domain_suspend failed (rc=${ERROR_FAIL})`;
    throw new StaysHere([`libxl: error: ${error.message}`, failed], 'Migration failed, resuming at sender.');
  }
}

async function tellWhy(error: unknown, { link, departure }: Migration): Promise<void> {
  let told: StaysHere;
  if (error instanceof StaysHere) told = error;
  else if (error instanceof NotSavable)
    told = new StaysHere(
      [`libxl: error: ${error.message}`, `migration sender: libxl_domain_suspend failed (rc=${ERROR_GUEST_TIMEDOUT})`],
      'Migration failed, failed to suspend at sender.',
    );
  else throw error;
  if (told.lines === null) await departure.named();
  else tellAndHangUp(told.lines, link);
  if (told.last !== '') link.tell(told.last);
  link.result(1);
}

function tellAndHangUp(lines: readonly string[], link: MigrationLink): void {
  for (const line of lines) link.tell(line);
  link.hangUp();
}

/** The domain is frozen, and all of it is sent. */
async function handOver(migration: Migration): Promise<AfterFreeze> {
  const { link, departure } = migration;
  // Seldom later than what the target says.
  const renamed = departure.rename();
  renamed.catch(() => undefined);
  const stays = async (lines: readonly string[]): Promise<never> => {
    // A target in the same xenstore may have the name until it is gone.
    tellAndHangUp(lines, link);
    await renamed.catch(() => undefined);
    await comeBack(migration);
    throw new StaysHere(null, 'Migration failed, resuming at sender.');
  };
  try {
    await expectLine(migration, READY, 'ready message', READY_LIMIT_MS);
  } catch (error) {
    if (!(error instanceof LinkError)) throw error;
    return await stays([`libxl: error: ${error.message}`]);
  }
  link.tell('migration sender: Target has acknowledged transfer.');
  try {
    await renamed;
    await departure.leave();
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    return await stays([`libxl: error: ${error.message}`]);
  }
  let status: string;
  try {
    await link.sendFinal(line(GO), 'migration sender: Giving target permission to start.', () => departure.forget());
    await expectLine(migration, REPORT, 'success/failure report message', REPORT_LIMIT_MS);
    status = await link.line('success/failure status', REPORT_LIMIT_MS);
    if (status !== '0') {
      link.tell(`migration sender: Target reports startup failure (status code ${Number.parseInt(status, 10) || 1}).`);
      await expectLine(migration, GO, 'permission for sender to resume', REPORT_LIMIT_MS);
    }
  } catch (error) {
    if (!(error instanceof LinkError)) throw error;
    if (error.isUnsent) return await stays([`libxl: error: ${error.message}`]);
    return await undefinedState(migration, error.message);
  }
  if (status === '0') {
    link.tell('migration sender: Target reports successful startup.');
    return 'stay';
  }
  link.tell('migration sender: Trying to resume at our end.');
  await comeBack(migration);
  link.tell('migration sender: Resumed OK.');
  link.tell('Migration failed due to problems at target.');
  link.hangUp();
  link.result(1);
  return 'as before';
}

/** Nobody knows who has it: it stands still until somebody who has looked says that it is to go on. */
async function undefinedState(migration: Migration, why: string): Promise<AfterFreeze> {
  const { link, saved, note } = migration;
  const { domid } = saved.domain;
  link.tell(`libxl: error: ${why}`);
  tellAndHangUp(UNDEFINED, link);
  link.result(1);
  note(
    `Domain ${domid} stands still: the target had permission to start, and it is not known here whether it has: ${why}. Look there, then xl resume ${domid} or xl destroy ${domid}`,
  );
  await resumed(saved.domain);
  await comeBack(migration);
  return 'as before';
}

/** What it has given up, somebody else may have by now: then it stands still until somebody says `xl resume`, and tries again. */
async function comeBack({ link, saved, departure, note }: Migration): Promise<void> {
  const { domid } = saved.domain;
  for (;;) {
    try {
      await departure.comeBack();
      return;
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      const why = `Domain ${domid} cannot go on: ${error.message}`;
      link.tell(`libxl: error: ${why}; it stands still until xl resume`);
      link.result(1);
      note(`${why}. It stands still: xl resume ${domid} tries again`);
      await resumed(saved.domain);
    }
  }
}

/** Shows the domain as one that has suspended itself: `xl resume` lets it go on. */
async function resumed(domain: Domain): Promise<void> {
  const index = DOMAIN.suspended >> 2;
  Atomics.store(domain.i32, index, 1);
  while (isSuspended(domain)) {
    const wait = Atomics.waitAsync(domain.i32, index, 1);
    if (wait.async) await wait.value;
  }
}

function line(text: string): Uint8Array {
  return new TextEncoder().encode(`${text}\n`);
}
