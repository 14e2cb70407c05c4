import { describe, expect, it } from 'vitest';
import { configJson, readStated } from './domain-config.ts';
import { parseXlConf, withXlConf, type XlConfFile } from './xl-conf.ts';

function read(...texts: string[]) {
  const lines: string[] = [];
  const files: XlConfFile[] = texts.map((text, i) => ({ name: `${i + 1}.conf`, text }));
  return { conf: parseXlConf(files, 4, (line) => lines.push(line)), lines };
}

function create(cfg: string, conf: string, ignoreMasks = false) {
  const warn = (): void => {};
  const stated = readStated('f.cfg', `name="a"\nkernel="k"\n${cfg}`, { warn, hostCpus: 4 });
  return withXlConf(stated, read(conf).conf, ignoreMasks);
}

describe('parseXlConf()', () => {
  it('knows what is in the file that Xen comes with', () => {
    const text = [
      'autoballoon="auto"',
      'lockfile="/var/lock/xl"',
      'max_grant_frames=64',
      'max_maptrack_frames=1024',
      'vif.default.script="vif-bridge"',
      'vif.default.bridge="xenbr0"',
      'vif.default.backend="0"',
      'vif.default.gatewaydev="eth0"',
      'output_format="json"',
      'blkdev_start="xvda"',
      'claim_mode=1',
      'run_hotplug_scripts=1',
      'vm.cpumask="0-2"',
      'vm.pv.cpumask="1-3"',
      'vm.hvm.cpumask="0"',
    ].join('\n');
    const { conf, lines } = read(text);
    expect(lines).toEqual([]);
    expect(conf).toEqual({
      vif: { script: 'vif-bridge', bridge: 'xenbr0', backend: '0', gatewaydev: 'eth0' },
      migrationListen: null,
      cpuMask: [1, 2],
      grants: { maxGrantFrames: 64, maxMaptrackFrames: 1024, maxGrantVersion: null },
    });
  });

  it('lets later files say otherwise, one by one, and takes the old names', () => {
    const { conf } = read('vifscript="a"\ndefaultbridge="b1"', 'vif.default.bridge="b2"', '');
    expect(conf.vif).toMatchObject({ script: 'a', bridge: 'b2' });
  });

  it('takes an address and perhaps a port where migrations come in', () => {
    expect(
      ['0.0.0.0', '127.0.0.1:9000', 'a.example:1', '[::]', '[fe80::1]:65535', '::1', 'localhost'].map(
        (text) => read(`migration_listen="${text}"`).conf.migrationListen,
      ),
    ).toEqual([
      { host: '0.0.0.0', port: 8003 },
      { host: '127.0.0.1', port: 9000 },
      { host: 'a.example', port: 1 },
      { host: '::', port: 8003 },
      { host: 'fe80::1', port: 65535 },
      { host: '::1', port: 8003 },
      { host: 'localhost', port: 8003 },
    ]);
    for (const text of ['', 'a:0', 'a:65536', 'a:', ':1', 'a b', '[::1', 'a:1:x', 'u@a', 'a/b'])
      expect(() => read(`\nmigration_listen="${text}"`), text).toThrow(
        `1.conf:2: parameter \`migration_listen' is "${text}", but must be an address and perhaps a port`,
      );
  });

  it('warns of what it does not know, and refuses what makes no sense', () => {
    expect(read('autobaloon="off"').lines).toEqual([
      "1.conf:1: warning: `autobaloon' is no setting of xl.conf, and ignored",
    ]);
    expect(() => read('\nautoballoon="perhaps"')).toThrow(
      '1.conf:2: parameter `autoballoon\' is "perhaps", but may be "on", "off", "auto", "0", "1"',
    );
    expect(() => read('vm.cpumask="9"')).toThrow("1.conf:1: parameter `vm.cpumask' names no CPUs of this host");
    expect(() => read('vm.cpumask="x"')).toThrow("parameter `vm.cpumask' names no CPUs");
    expect(() => read('= 1')).toThrow('1.conf:1: config parsing error');
  });
});

describe('withXlConf()', () => {
  it('gives vifs what they leave open', () => {
    const { vifs } = create(
      'vif=["", "bridge=mine,script=vif-nat"]',
      'vif.default.bridge="lan"\nvif.default.script="vif-bridge"',
    );
    expect(vifs[0]).toMatchObject({ bridge: 'lan', script: 'vif-bridge', gatewaydev: null });
    expect(vifs[1]).toMatchObject({ bridge: 'mine', script: 'vif-nat' });
  });

  it('limits grants where the config says nothing', () => {
    const conf = 'max_grant_frames=32\nmax_grant_version=1';
    const limits = { maxGrantFrames: 32, maxMaptrackFrames: null, maxGrantVersion: 1, maxEventChannels: null };
    expect(create('', conf).limits).toEqual(limits);
    expect(create('max_grant_frames=8', conf).limits).toEqual({ ...limits, maxGrantFrames: 8 });
    expect(() => create('', '\nmax_grant_frames="-1"')).toThrow(
      "1.conf:2: parameter `max_grant_frames' is -1, but lies between 1 and 64",
    );
  });

  it('masks hard affinity, which is the mask itself if the config has none', () => {
    expect(create('vcpus=2', 'vm.cpumask="1-2"').cpus).toEqual([
      [1, 2],
      [1, 2],
    ]);
    expect(create('cpus="0-1"', 'vm.cpumask="1-2"').cpus).toEqual([[1]]);
    expect(() => create('cpus="0"', 'vm.cpumask="1-2"')).toThrow('vcpu hard affinity map is empty');
    expect(create('cpus="0"', 'vm.cpumask="1-2"', true).cpus).toEqual([[0]]);
    expect(create('', '').cpus).toEqual([]);
    expect(configJson(create('', 'vm.cpumask="3"'))).toContain('"vcpu_hard_affinity"');
  });
});
