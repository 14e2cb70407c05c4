import { expect, test } from 'vitest';
import { type DomainConfig, readDomainConfig } from '../config/domain-config.ts';
import { completeConfig, type RunningSchedule } from './saved-config.ts';

const read = (text: string): DomainConfig => readDomainConfig('f.cfg', text, { warn: () => {}, hostCpus: 4 });
const absolute = (file: string): string => `/x/${file}`;
const OWN = 'name="a"\nuuid="e29e0040-db4b-4e86-9413-deddcaa5c837"\nkernel="vmlinuz"\nvcpus=2\ncpu_weight=300\n';
const asMade: RunningSchedule = {
  ...{ cpuWeight: 300, cap: 0, hostCpus: 4 },
  places: {
    cpus: [
      [0, 1, 2, 3],
      [0, 1, 2, 3],
    ],
    cpusSoft: [
      [0, 1, 2, 3],
      [0, 1, 2, 3],
    ],
  },
};

test('what is saved again is as long as before, and says what is so now', () => {
  const first = completeConfig(OWN, read(OWN), 'a', absolute, asMade);
  expect(first).toMatch(/^name="a".*\ncpu_weight=300\n\nname="a"\nuuid="[^"]*"\nkernel="\/x\/vmlinuz"\n\n$/s);
  expect(completeConfig(first, { ...read(first), kernel: 'vmlinuz' }, 'b', absolute, asMade)).toBe(
    first.replace(/name="a"(?=\nuuid="[^"]*"\nkernel="\/x)/, 'name="b"'),
  );
});

test('weight, cap and pins are those that the domain has now, each time anew', () => {
  const changed: RunningSchedule = {
    ...{ cpuWeight: 512, cap: 50, hostCpus: 4 },
    places: { cpus: [[0], [1, 2]], cpusSoft: [[0, 1, 2, 3], []] },
  };
  const text = completeConfig(OWN, read(OWN), 'a', absolute, changed);
  expect(read(text)).toMatchObject({ cpuWeight: 512, cap: 50, cpus: [[0], [1, 2]], cpusSoft: [[0, 1, 2, 3], []] });
  const back = completeConfig(text, read(text), 'a', absolute, asMade);
  expect(read(back)).toMatchObject({
    cpuWeight: 300,
    cap: 0,
    cpus: asMade.places?.cpus,
    cpusSoft: asMade.places?.cpusSoft,
  });
  // A config may have been read for any host.
  const everywhere = `${OWN}cpus="all"\n`;
  const anyHost = readDomainConfig('f.cfg', everywhere, { warn: () => {} });
  expect(completeConfig(everywhere, anyHost, 'a', absolute, asMade)).toMatch(/\nkernel="[^"]*"\n\n$/);
  // Where it moves there are other CPUs.
  expect(read(completeConfig(OWN, read(OWN), 'a', absolute, { ...changed, places: null }))).toMatchObject({
    ...{ cpuWeight: 512, cap: 50, cpus: [], cpusSoft: [] },
  });
});
