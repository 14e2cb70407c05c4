import { describe, expect, it } from 'vitest';
import { configJson, readDomainConfig, readStated, VCPUS_MAX } from './domain-config.ts';
import { ConfigError } from './xl-cfg.ts';

const UUID = '12345678-9abc-def0-1234-56789abcdef0';
const HEAD = `name = "b1"\nkernel = "/root/vmlinux"\nramdisk = "/root/domu.initrd"\nmemory = 64\nvcpus = 1\nuuid = "${UUID}"\n`;

function read(text: string, hostCpus?: number) {
  const lines: string[] = [];
  const options = { warn: (line: string) => lines.push(line), ...(hostCpus === undefined ? {} : { hostCpus }) };
  const config = readDomainConfig('f.cfg', text, options);
  return { config, lines };
}

function refused(text: string): string {
  try {
    readDomainConfig('f.cfg', text, { warn: () => {} });
  } catch (error) {
    if (error instanceof ConfigError) return error.message;
    throw error;
  }
  throw new Error('was accepted');
}

describe('readDomainConfig()', () => {
  it('reads a whole config', () => {
    const text = `${HEAD}maxmem = 128\nvcpus = 2\nmaxvcpus = 4\nroot = "/dev/xvda"\nextra = "ro quiet"\non_crash = "preserve"\nengine = "wasm"\n`;
    const { config, lines } = read(text);
    expect(lines).toEqual([]);
    expect(config).toEqual({
      name: 'b1',
      uuid: Uint8Array.of(
        0x12,
        0x34,
        0x56,
        0x78,
        0x9a,
        0xbc,
        0xde,
        0xf0,
        0x12,
        0x34,
        0x56,
        0x78,
        0x9a,
        0xbc,
        0xde,
        0xf0,
      ),
      type: 'pv',
      memoryMiB: 64,
      maxmemMiB: 128,
      vcpus: 2,
      maxvcpus: 4,
      cpus: [],
      cpusSoft: [],
      cpuWeight: 256,
      cap: 0,
      limits: { maxGrantFrames: null, maxMaptrackFrames: null, maxGrantVersion: null, maxEventChannels: null },
      kernel: '/root/vmlinux',
      ramdisk: '/root/domu.initrd',
      bootloader: null,
      bootloaderArgs: [],
      cmdline: 'root=/dev/xvda ro quiet',
      onPoweroff: 'destroy',
      onReboot: 'restart',
      onWatchdog: 'destroy',
      onCrash: 'preserve',
      onSoftReset: 'soft-reset',
      engine: 'wasm',
      engineMayChange: false,
      cpuid: { cpuid: [], msr: [] },
      disks: [],
      vifs: [],
      vfbs: [],
      channels: [],
      driverDomain: false,
    });
  });

  it('has the defaults of libxl', () => {
    const { config } = read('name = "d"\nkernel = "k"');
    expect(config).toMatchObject({
      memoryMiB: 32,
      maxmemMiB: 32,
      vcpus: 1,
      maxvcpus: 1,
      ramdisk: null,
      cmdline: '',
      engine: 'auto',
      engineMayChange: false,
    });
    expect(read('name = "d"\nkernel = "k"\nengine_may_change = 1').config.engineMayChange).toBe(true);
    expect(config.uuid.length).toBe(16);
    expect(config.uuid[6] >> 4).toBe(4);
    expect(config.uuid[8] >> 6).toBe(2);
    expect(read('name = "d"\nkernel = "k"').config.uuid).not.toEqual(config.uuid);
  });

  it('takes a bootloader instead of a kernel, with arguments as a list or, with a warning, as a string', () => {
    const { config, lines } = read('name = "d"\nbootloader = "pygrub"\nbootloader_args = [ "--entry=1", "-q" ]');
    expect(config).toMatchObject({ kernel: null, bootloader: 'pygrub', bootloaderArgs: ['--entry=1', '-q'] });
    expect(lines).toEqual([]);
    const old = read('name = "d"\nbootloader = "pygrub"\nbootloader_args = " --entry=1\t-q"');
    expect(old.config.bootloaderArgs).toEqual(['--entry=1', '-q']);
    expect(old.lines).toEqual([
      'WARNING: Specifying "bootloader_args" as a string is deprecated. Please use a list of arguments.',
    ]);
  });

  it('makes one VCPU of vcpus = 0, and takes memory = 4', () => {
    expect(read(`${HEAD}vcpus = 0\nmemory = 4`).config).toMatchObject({ vcpus: 1, maxvcpus: 1, memoryMiB: 4 });
    expect(read(`${HEAD}vcpus = 0\nmaxvcpus = 3`).config).toMatchObject({ vcpus: 1, maxvcpus: 3 });
    expect(read(`${HEAD}vcpus = ${VCPUS_MAX}`).config.maxvcpus).toBe(VCPUS_MAX);
  });

  it('lets cmdline win over root and extra, with a warning', () => {
    const { config, lines } = read(`${HEAD}cmdline = "a b"\nextra = "c"`);
    expect(config.cmdline).toBe('a b');
    expect(lines).toEqual(['Warning: ignoring root= and extra= in favour of cmdline=']);
    expect(read(`${HEAD}root = "/dev/xvda"`).config.cmdline).toBe('root=/dev/xvda');
    expect(read(`${HEAD}extra = "console=hvc0 "`).config.cmdline).toBe('console=hvc0 ');
  });

  it('passes over keys that xl does not know, or that mean nothing to a PV guest', () => {
    expect(read(`${HEAD}nosuchkey = 1\nhap = 1\nboot = "c"`).lines).toEqual([]);
  });

  it('takes weight, cap and CPUs, for all vCPUs or for each', () => {
    const { config } = read(
      `${HEAD}vcpus = 2\nmaxvcpus = 3\ncpu_weight = 512\ncap = 50\ncpus = "1-2"\ncpus_soft = [ "2", "all" ]`,
      4,
    );
    expect(config).toMatchObject({
      cpuWeight: 512,
      cap: 50,
      cpus: [
        [1, 2],
        [1, 2],
        [1, 2],
      ],
      cpusSoft: [[2], [0, 1, 2, 3]],
    });
    const stated = readStated('f.cfg', `${HEAD}cpus = "0"\ncap = 50`, { warn: () => {}, hostCpus: 2 });
    expect(JSON.parse(configJson(stated)).b_info).toMatchObject({
      vcpu_hard_affinity: [[0]],
      numa_placement: 'False',
      sched_params: { cap: 50 },
    });
    // As xl 4.17 on a host with 2 CPUs.
    expect(() => read(`${HEAD}cpus = "99"`, 2)).toThrow('vcpu hard affinity map is empty');
    expect(() => read(`${HEAD}cpus = "one"`)).toThrow('f.cfg:7: parameter `cpus\' is "one", but CPUs are named as in');
    expect(() => read(`${HEAD}cpu_weight = 0`)).toThrow(
      "f.cfg:7: parameter `cpu_weight' is 0, but lies between 1 and 65535",
    );
  });

  it('warns of a key that it does not honour, once and in the order of the file', () => {
    const { lines } = read(`${HEAD}usbdev = [ "a" ]\nvtpm = [ "a" ]\nvtpm += [ "b" ]\ntsc_mode = "native"\npci = []`);
    expect(lines).toEqual([
      "f.cfg:7: warning: `usbdev' is not supported yet and ignored",
      "f.cfg:9: warning: `vtpm' is not supported yet and ignored",
      "f.cfg:10: warning: `tsc_mode' is not supported yet and ignored",
    ]);
  });

  it('warns as xl does of a disk that is no list, and of memory that is no number', () => {
    expect(read(`${HEAD}disk = "phy:/dev/loop0,xvda,w"`).lines).toEqual([
      "f.cfg:7: warning: parameter `disk' is a single value but should be a list",
    ]);
    const { config, lines } = read(`${HEAD}memory = "abc"`);
    expect(lines).toEqual(["f.cfg:7: warning: parameter `memory' is not a valid number"]);
    expect(config.memoryMiB).toBe(32);
  });

  // The upper ones are what xl 4.17 printed.
  it.each([
    ['', 'Domain name must be specified.'],
    ['kernel="/root/vmlinuz"\nmemory=64\n', 'Domain name must be specified.'],
    ['name = "b1"\nmemory = 64\n', 'Neither kernel nor bootloader specified'],
    [`${HEAD}on_crash = "blah"`, 'Unknown on_crash action "blah" specified'],
    [`${HEAD}type = "blah"`, 'Invalid domain type blah.'],
    [`${HEAD}uuid = "xyz"`, 'Failed to parse UUID: xyz'],
    [`${HEAD}vcpus = 2\nmaxvcpus = 1`, 'xl: maxvcpus < vcpus'],
    [`${HEAD}vcpus = -1\n`, "f.cfg:7: config parsing error near `-1': lexical error"],
    [`${HEAD}vcpus = "-1"`, 'Unable to allocate cpumap'],
    [`${HEAD}type = "pv"\nbuilder = "hvm"`, 'Contradicting "builder" and "type" options specified.'],
    [`${HEAD}type = "pvh"`, 'f.cfg:7: domain type "pvh" is not supported: Domus runs PV guests, type="pv"'],
    [`${HEAD}vcpus = 10000`, "f.cfg:7: parameter `vcpus' is 10000, but a domain can have at most 32 VCPUs"],
    [
      `${HEAD}memory = "-1"`,
      "f.cfg:7: parameter `memory' is -1, but memory is given in MiB and lies between 0 and 1099511627776",
    ],
    [`${HEAD}maxmem = 32`, 'maxmem (32 MiB) is less than memory (64 MiB)'],
    [`${HEAD}engine = "qemu"`, 'f.cfg:7: parameter `engine\' is "qemu", but the engines are auto, kvm, wasm'],
  ])('refuses %j', (text, message) => {
    expect(refused(text).split('\n')[0]).toBe(message);
  });

  it('throws nothing but ConfigError for mutated configs', () => {
    const keys = [
      'name',
      'type',
      'memory',
      'maxmem',
      'vcpus',
      'maxvcpus',
      'kernel',
      'cmdline',
      'root',
      'on_crash',
      'uuid',
      'engine',
      'engine_may_change',
      'disk',
      'cpus',
    ];
    const values = [
      '"pv"',
      '""',
      '[]',
      '[ "x", [ 1 ] ]',
      '0',
      '"-1"',
      '0xffffffffffffffff',
      '99999',
      '"auto"',
      '"restart"',
      '"\\n"',
      '"',
      '08',
    ];
    let seed = 7;
    const random = (below: number) => {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      return Math.floor((seed / 2 ** 32) * below);
    };
    let good = 0;
    for (let i = 0; i < 5000; i++) {
      let text = random(8) === 0 ? '' : HEAD;
      for (let n = random(5); n >= 0; n--) {
        text += `${keys[random(keys.length)]} ${random(4) === 0 ? '+=' : '='} ${values[random(values.length)]}\n`;
      }
      try {
        JSON.parse(configJson(readStated('f.cfg', text, { warn: () => {} })));
        const { config } = read(text);
        expect(config.vcpus).toBeGreaterThan(0);
        expect(config.vcpus).toBeLessThanOrEqual(config.maxvcpus);
        good++;
      } catch (error) {
        if (!(error instanceof ConfigError)) throw new Error(`for ${JSON.stringify(text)}`, { cause: error });
      }
    }
    expect(good).toBeGreaterThan(100);
  });
});

describe('configJson()', () => {
  const json = (text: string) =>
    configJson(readStated('f.cfg', text, { warn: () => {}, newUuid: () => new Uint8Array(16) }));

  it('prints what xl create -n prints', () => {
    expect(json(HEAD)).toBe(`{
    "c_info": {
        "type": "pv",
        "name": "b1",
        "uuid": "${UUID}",
        "run_hotplug_scripts": "True"
    },
    "b_info": {
        "max_vcpus": 1,
        "avail_vcpus": [
            0
        ],
        "max_memkb": 65536,
        "target_memkb": 65536,
        "sched_params": {

        },
        "claim_mode": "True",
        "kernel": "/root/vmlinux",
        "ramdisk": "/root/domu.initrd",
        "type.pv": {

        },
        "arch_arm": {

        },
        "arch_x86": {

        }
    },
    "on_reboot": "restart",
    "on_soft_reset": "soft_reset"
}
`);
  });

  it('leaves out what was not stated', () => {
    const value: unknown = JSON.parse(
      json('name = "{}"\nkernel = "k"\nvcpus = 0\non_poweroff = "rename-restart"\non_reboot = "destroy"'),
    );
    expect(value).toEqual({
      c_info: { type: 'pv', name: '{}', uuid: '00000000-0000-0000-0000-000000000000', run_hotplug_scripts: 'True' },
      b_info: { sched_params: {}, claim_mode: 'True', kernel: 'k', 'type.pv': {}, arch_arm: {}, arch_x86: {} },
      on_poweroff: 'restart_rename',
      on_soft_reset: 'soft_reset',
    });
  });
});
