/** `domus keys`: the key of this host and whom it trusts, for migrations by TLS. */

import { readFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { parseArgs } from 'node:util';
import { namesOf } from '../../host/keys/certificate.ts';
import {
  createKeys,
  dayOf,
  forget,
  KeyError,
  readKeys,
  readTrusted,
  shortOf,
  trust,
} from '../../host/keys/host-keys.ts';
import { stateRoot } from '../../host/state-dir.ts';

const DAYS_DEFAULT = '3650';
const DAYS_MAX = 36_500;

type Certificate = Parameters<typeof namesOf>[0];

const describe = (certificate: Certificate): string =>
  `${namesOf(certificate).join(', ')}, SHA256 ${shortOf(certificate)}, until ${dayOf(certificate.validToDate)}`;

/** `words`: behind `keys`. The exit code; `fail` is for wrong words. */
export function keys(words: readonly string[], fail: (message: string) => never): number {
  const { values, positionals } = parseArgs({
    args: [...words],
    allowPositionals: true,
    options: { days: { type: 'string' }, replace: { type: 'boolean', default: false } },
  });
  const [verb, ...operands] = positionals;
  if (verb !== 'create' && (values.days !== undefined || values.replace))
    fail('keys: --days and --replace are for "keys create"');
  const root = stateRoot();
  const out = (line: string): void => void process.stdout.write(`${line}\n`);
  const say = (line: string): void => void process.stderr.write(`domus: ${line}\n`);
  try {
    switch (verb) {
      case undefined: {
        const { certificate } = readKeys(root);
        out(`this host: ${describe(certificate)}`);
        for (const one of readTrusted(root)) out(`trusted:   ${describe(one)}`);
        return 0;
      }
      case 'create': {
        const { days = DAYS_DEFAULT } = values;
        const count = /^\d{1,6}$/.test(days) ? Number(days) : 0;
        if (count < 1 || count > DAYS_MAX)
          return fail(`keys create: --days: expected a number from 1 to ${DAYS_MAX}, found "${days}"`);
        const names = operands.length > 0 ? operands : [hostname()];
        say(`keys of this host: ${describe(createKeys(root, names, count, values.replace))}`);
        return 0;
      }
      case 'show':
        if (operands.length > 0) return fail('keys: expected "keys show"');
        process.stdout.write(readKeys(root).certificate.toString());
        return 0;
      case 'trust':
        if (operands.length === 0) return fail('keys: expected "keys trust FILE ..."; - is standard input');
        for (const file of operands) {
          const text = readFileSync(file === '-' ? 0 : file, 'utf8');
          const added = trust(root, text, file === '-' ? 'standard input' : file);
          for (const one of added) say(`trusts ${describe(one)}`);
          if (added.length === 0) say(`${file}: nothing new`);
        }
        return 0;
      case 'forget': {
        const [word, tooMany] = operands;
        if (word === undefined || tooMany !== undefined) return fail('keys: expected "keys forget NAME"');
        const gone = forget(root, word);
        for (const one of gone) say(`trusts no more ${describe(one)}`);
        if (gone.length === 0) say(`no certificate of the name or fingerprint ${word} is trusted`);
        return gone.length === 0 ? 1 : 0;
      }
      default:
        return fail(`keys: expected create, show, trust or forget, found "${verb}"`);
    }
  } catch (error) {
    if (!(error instanceof KeyError)) throw error;
    say(error.message);
    return 1;
  }
}
