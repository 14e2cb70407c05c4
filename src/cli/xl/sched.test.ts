import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { HOST_CPUS, TestHost } from '../../../test/xl-host.ts';

let host: TestHost;
beforeAll(async () => {
  host = await TestHost.open();
  await host.addDomain(1, 'u1', 'e29e0040-db4b-4e86-9413-deddcaa5c837', 'kernel="k"\nmemory=256\n');
});
afterAll(() => host.close());

const done = { code: 0, out: '', err: '' };

describe('xl sched-credit2', () => {
  it('sets weight and cap, one without the other', async () => {
    expect(await host.xl('sched-credit2', '-d', 'u1', '-w', '512')).toEqual(done);
    expect(await host.xl('sched-credit2', '--domain=1', '--cap=50')).toEqual(done);
    expect(host.states.get(1)).toMatchObject({ weight: 512, cap: 50 });
    expect((await host.xl('sched-credit2', '-p', 'Pool-0')).out).toContain(
      '\nu1                                   1    512   50\n',
    );
    expect(await host.xl('sched-credit2', '-s')).toEqual({ ...done, out: 'Cpupool Pool-0: ratelimit=1000us\n' });
  });

  it('refuses what is out of range, and changes nothing', async () => {
    const failed = (reason: string) => {
      return { code: 1, out: '', err: `libxl: error: Domain 1:${reason}\nlibxl_domain_sched_params_set failed.\n` };
    };
    for (const weight of ['0', '-1', '65536', 'abc', '1e9'])
      expect(await host.xl('sched-credit2', '-d', 'u1', '-w', weight)).toEqual(
        weight === '1e9' ? done : failed('Cpu weight out of range, valid values are within range from 1 to 65535'),
      );
    expect(await host.xl('sched-credit2', '-d', 'u1', '-c', '101')).toEqual(
      failed('Cpu cap out of range, valid values are within range from 0 to 100'),
    );
    expect(host.states.get(1)).toMatchObject({ weight: 1, cap: 50 });
  });

  it('refuses words that do not go together', async () => {
    for (const words of [
      ['-w', '1'],
      ['-p', 'Pool-0', '-d', 'u1'],
      ['-p', 'other'],
      ['-d', 'nosuch'],
      ['-s', '-r', '5'],
    ])
      expect(await host.xl('sched-credit2', ...words)).toMatchObject({ code: 1, out: '' });
    expect(await host.xl('sched-credit2', '-d', '0', '-w', '512')).toMatchObject({ code: 1 });
  });

  it('other schedulers have no domains', async () => {
    for (const command of ['sched-credit', 'sched-rtds']) {
      expect(await host.xl(command)).toEqual(done);
      expect(await host.xl(command, '-d', 'u1')).toMatchObject({ code: 1, out: '' });
    }
  });
});

describe('xl vcpu-pin', () => {
  const set = () => host.states.get(1)?.vcpus[0];

  it('sets what is not left alone', async () => {
    expect(await host.xl('vcpu-pin', 'u1', '0', '0', '-')).toEqual(done);
    expect(set()).toMatchObject({ hard: [0], soft: HOST_CPUS });
    expect(await host.xl('vcpu-pin', 'u1', 'all', '-', '0')).toEqual(done);
    expect(await host.xl('vcpu-pin', 'u1', 'all', 'all')).toEqual(done);
    expect(set()).toMatchObject({ hard: HOST_CPUS, soft: [0] });
    expect(await host.xl('-N', 'vcpu-pin', 'u1', '0', '0', '^0')).toEqual({
      ...done,
      out: `cpumap: ${HOST_CPUS.length === 1 ? 'all' : '0'} none\n`,
    });
    expect(set()).toMatchObject({ hard: HOST_CPUS, soft: [0] });
  });

  it('refuses what cannot be', async () => {
    expect(await host.xl('vcpu-pin', 'u1', '0', '4000')).toEqual({
      ...done,
      code: 1,
      err: 'vcpu hard affinity map is empty\n',
    });
    expect(await host.xl('vcpu-pin', 'u1', 'x', '0')).toEqual({
      ...done,
      code: 1,
      err: 'Error: Invalid argument x as VCPU.\n',
    });
    expect(await host.xl('vcpu-pin', 'u1', '1', '0')).toEqual({
      ...done,
      code: 1,
      err: "libxl: error: Domain 1:vcpu out of range, valid values are within range from 0 to 0\nCould not set affinity for vcpu `1'.\n",
    });
    for (const words of [
      ['u1', '0', 'foo'],
      ['0', '0', '0'],
      ['-f', 'u1', 'all', '0'],
      ['nosuch', '0', '0'],
    ])
      expect(await host.xl('vcpu-pin', ...words)).toMatchObject({ code: 1, out: '' });
    expect((await host.xl('vcpu-pin', 'u1', '0')).code).toBe(2);
  });
});

it('xl cpupool-list names the CPUs', async () => {
  const out = `Name               CPU list\nPool-0             ${HOST_CPUS.join(',')}\n`;
  expect(await host.xl('cpupool-list', '-c')).toEqual({ ...done, out });
  expect(await host.xl('cpupool-list', 'other')).toMatchObject({ code: 1 });
});
