import { expect, test } from 'vitest';
import { NotSavable } from '../toolstack/saved/saved-state.ts';
import { DomainWriter, type DomainWriterOptions } from './domain-writer.ts';
import type { MigrationOptions } from './migration-frames.ts';
import type { MigrationLink } from './migration-link.ts';
import type { Departure } from './migration-sender.ts';

const NOTHING = { leave: async () => {}, comeBack: () => {} };

test('who writes a domain says what is being done with it already', async () => {
  const ended = Promise.withResolvers<never>();
  const asked: (readonly [string, string | null, boolean])[] = [];
  const writer = new DomainWriter({
    freezable: { domain: { shutdownReason: -1 } },
    workers: { ready: ended.promise },
    isMapped: () => false,
    config: (name, other = null, moves = false) => {
      asked.push([name, other, moves]);
      return 'name="a"';
    },
  } as Pick<DomainWriterOptions, 'config' | 'isMapped'> as DomainWriterOptions);
  const migrating = writer.migrate({} as MigrationLink, { config: null } as MigrationOptions, {} as Departure);
  await expect(writer.save('/x', 'run', null, NOTHING)).rejects.toThrow(new NotSavable('it is being moved already'));
  await expect(writer.dumpCore('/x')).rejects.toThrow('it is being moved already');
  expect(asked).toEqual([['', null, true]]);
  ended.reject(new Error('over'));
  await expect(migrating).rejects.toThrow('over');
  await expect(writer.save('/x', 'run', null, NOTHING)).rejects.toThrow('over');
});
