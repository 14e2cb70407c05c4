import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { VECTOR_STATE_BYTES } from '../../engine/engine.ts';
import { createDomain, DOMAIN, type Domain, FRAME_PINNED, PARKED } from '../../hypervisor/domain.ts';
import {
  ECS_INTERDOMAIN,
  ECS_IPI,
  ECS_UNBOUND,
  ECS_VIRQ,
  portA,
  portB,
  portState,
  portVcpu,
  setPort,
} from '../../hypervisor/event-channels.ts';
import { createMachineMemory, PAGE_SIZE } from '../../machine/memory.ts';
import { NO_ROOT, VCPU } from '../../machine/vcpu-block.ts';
import { SaveFileError } from './save-file.ts';
import { clearHoles, decodeM2p, decodePages, encodeM2p, encodePages } from './saved-memory.ts';
import {
  decodeDomain,
  decodeVcpu,
  encodeDomain,
  encodeVcpu,
  NotSavable,
  PARKED_FIELDS,
  shapeOf,
  VCPU_FIELDS,
} from './saved-state.ts';
import { checkNodes, renumberNodes } from './saved-store.ts';

const UUID = new Uint8Array(16);

function makeDomain(vcpus = 2): Domain {
  const domain = createDomain(createMachineMemory(64, 80), 7, vcpus, UUID);
  for (const { u32, vcpuId } of domain.vcpus) {
    u32[VCPU.userRoot >> 2] = NO_ROOT;
    u32[VCPU.vcpuInfo >> 2] = domain.machine.layout.sharedInfoOffset + vcpuId * 64;
  }
  return domain;
}

const portOf = (domain: Domain, port: number): number[] => [
  portState(domain, port),
  portVcpu(domain, port),
  portA(domain, port),
  portB(domain, port),
];

describe('the state of a domain', () => {
  it('comes back, and ports of Dom0 wait to be bound again', () => {
    const domain = makeDomain();
    setPort(domain, 1, ECS_INTERDOMAIN, 1, 0, 9);
    setPort(domain, 2, ECS_VIRQ, 1, 3, 0);
    setPort(domain, 4, ECS_IPI, 1, 0, 0);
    setPort(domain, 4095, ECS_UNBOUND, 0, 3, 0);
    domain.i32[DOMAIN.grantFrames >> 2] = 4;
    domain.i32[DOMAIN.grantVersion >> 2] = 2;
    domain.i32[DOMAIN.totalPages >> 2] = 60;
    domain.frameTypes[5] = 4 | FRAME_PINNED;
    domain.frameTypes[6] = 1;
    const bytes = encodeDomain(domain, 123456789.7);
    expect(shapeOf(bytes)).toEqual({ ramPages: 64, maxPages: 80, vcpus: 2 });

    const other = makeDomain();
    decodeDomain(bytes, other);
    expect(portOf(other, 1)).toEqual([ECS_UNBOUND, 1, 0, 0]);
    expect(portOf(other, 2)).toEqual([ECS_VIRQ, 1, 3, 0]);
    expect(portOf(other, 4)).toEqual([ECS_IPI, 1, 0, 0]);
    expect(portOf(other, 4095)).toEqual([ECS_UNBOUND, 0, 3, 0]);
    expect([...other.frameTypes]).toEqual([...domain.frameTypes]);
    expect(other.i32[DOMAIN.grantFrames >> 2]).toBe(4);
    expect(other.i32[DOMAIN.grantVersion >> 2]).toBe(2);
    expect(other.i32[DOMAIN.totalPages >> 2]).toBe(60);
    expect(other.u64[DOMAIN.baseNs >> 3]).toBe(123456789n);
  });

  it('has the form that it had before there was a version 2, if it has none', () => {
    const domain = makeDomain();
    const bytes = encodeDomain(domain, 0);
    expect(new DataView(bytes.buffer).getUint32(12, true)).toBe(1);
    // RAM, shared_info, frames of the grant table, 4096 of other domains.
    expect(bytes.length).toBe(32 + 80 + 1 + 64 + 4096);
    expect(encodeM2p(domain.machine).length).toBe((80 + 1 + 64 + 4096) * 8);
    domain.i32[DOMAIN.grantVersion >> 2] = 2;
    decodeDomain(bytes, domain);
    expect(domain.i32[DOMAIN.grantVersion >> 2]).toBe(1);
  });

  it('is not saved while another domain is at the end of a port', () => {
    const domain = makeDomain();
    setPort(domain, 3, ECS_INTERDOMAIN, 0, 12, 5);
    expect(() => encodeDomain(domain, 0)).toThrow(new NotSavable('event channel 3 leads to domain 12'));
  });

  it('is refused where Xen could not have come to it', () => {
    const domain = makeDomain();
    setPort(domain, 1, ECS_UNBOUND, 0, 0, 0);
    const bytes = encodeDomain(domain, 0);
    const port = 32;
    const changes: readonly (readonly [number, number, string])[] = [
      [12, 65, 'a domain of 65 grant frames'],
      [12, 1 | (2 << 16), 'a grant table of version 3'],
      [12, 0xffff0001, 'version 65536'],
      [16, 81, 'and 81 pages'],
      [20, 2, 'another length'],
      [28, 0xffffffff, 'cannot be'],
      [port, 4096, 'event channel 4096'],
      [port + 4, ECS_INTERDOMAIN, 'in state 3'],
      [port + 8, 2, 'on vCPU 2'],
      [port + 20, 5, 'frame 0 of type 5'],
    ];
    for (const [at, value, message] of changes) {
      const other = Uint8Array.from(bytes);
      new DataView(other.buffer).setUint32(at, value, true);
      expect(() => decodeDomain(other, makeDomain()), message).toThrow(message);
    }
    const huge = Uint8Array.from(bytes);
    new DataView(huge.buffer).setUint32(4, 0x7fffffff, true);
    expect(() => shapeOf(huge)).toThrow(SaveFileError);
  });
});

describe('the state of a vCPU', () => {
  it('comes back in every field', () => {
    const domain = makeDomain(1);
    const [block] = domain.vcpus;
    // Small enough for those that are bounded.
    for (const [name, count] of VCPU_FIELDS) if (count > 96) block.u8.fill(3, VCPU[name], VCPU[name] + count);
    block.u32[VCPU.rip >> 2] = 0x81000000;
    block.u32[VCPU.kernelRoot >> 2] = 17;
    block.f64[VCPU.singleshotNs >> 3] = 5e9;
    const parked = domain.parkedOffset(0);
    domain.u8.fill(0xab, parked + PARKED.vector, parked + PARKED.vector + VECTOR_STATE_BYTES);
    domain.u32[(parked + PARKED.blocked) >> 2] = 1;
    domain.u32[(parked + PARKED.pollCount) >> 2] = 1;
    domain.u32[(parked + PARKED.pollPorts) >> 2] = 77;
    const bytes = encodeVcpu(domain, 0);
    const other = makeDomain(1);
    decodeVcpu(bytes, other, 0);
    expect(encodeVcpu(other, 0)).toEqual(bytes);
    for (const [name, count] of VCPU_FIELDS)
      expect([...other.vcpus[0].u8.subarray(VCPU[name], VCPU[name] + count)], name).toEqual([
        ...block.u8.subarray(VCPU[name], VCPU[name] + count),
      ]);
  });

  it('is refused where no hypercall would have allowed it', () => {
    const set = (name: keyof typeof VCPU, value: number) => (domain: Domain) => {
      domain.vcpus[0].u32[VCPU[name] >> 2] = value;
    };
    const cases: readonly (readonly [string, (domain: Domain) => void])[] = [
      ['root 80', set('kernelRoot', 80)],
      ['user root 80', set('userRoot', 80)],
      ['mode 2', set('userMode', 2)],
      ['a GDT of 7169 entries', set('gdtEntries', 7169)],
      ['a GDT in frame 4000000', set('gdtFrames', 4000000)],
      ['vcpu_info at 4', set('vcpuInfo', 4)],
      ['vcpu_info at 4088', set('vcpuInfo', 4088)],
      ['vcpu_info at 4026531840', set('vcpuInfo', 0xf0000000)],
      ['runstate 4', set('runstate', 4)],
      ['state 2', set('state', 2)],
      ['VIRQ 0 on a port that is none', set('virqPorts', 4096)],
      [
        'a time',
        (domain) => {
          domain.vcpus[0].f64[VCPU.periodicNs >> 3] = Number.NaN;
        },
      ],
      [
        'a poll of 129 ports',
        (domain) => {
          domain.u32[(domain.parkedOffset(0) + PARKED.pollCount) >> 2] = 129;
        },
      ],
    ];
    for (const [what, change] of cases) {
      const domain = makeDomain(1);
      change(domain);
      const bytes = encodeVcpu(domain, 0);
      expect(() => decodeVcpu(bytes, makeDomain(1), 0), what).toThrow(new SaveFileError(`vCPU 0: ${what} cannot be`));
    }
  });
});

it('docs/save-format.md has the fields of a vCPU as they are', () => {
  const text = readFileSync(new URL('../../../docs/save-format.md', import.meta.url), 'utf8');
  const section = text.slice(text.indexOf('\n## vCPU\n'), text.indexOf('\n## M2P'));
  const rows = [...section.matchAll(/^\| `(\w+)` \| (\d+) \|/gm)].map(([, name, bytes]) => [name, Number(bytes)]);
  expect(rows).toEqual([...VCPU_FIELDS, ...PARKED_FIELDS]);
});

describe('memory', () => {
  it('comes back without its pages of zeros and those that the guest gave back', () => {
    const domain = makeDomain();
    const { machine } = domain;
    const { layout } = machine;
    const pages = [0, 3, 63];
    for (const pfn of pages) machine.u8.fill(pfn + 1, pfn * PAGE_SIZE + 8, (pfn + 1) * PAGE_SIZE);
    machine.u8[layout.grantTableOffset] = 1;
    // Given back with something in it.
    machine.u8.fill(9, 10 * PAGE_SIZE, 11 * PAGE_SIZE);
    machine.u32.fill(0xffffffff, layout.m2pOffset / 4 + 20, layout.m2pOffset / 4 + 22);
    const parts = [...encodePages(machine)];
    expect(parts.length).toBe(1);
    expect(new DataView(parts[0].buffer).getUint32(0, true)).toBe(pages.length + 1);

    const other = makeDomain().machine;
    decodeM2p(encodeM2p(machine), other);
    expect(decodePages(parts[0], other, -1)).toBe(layout.grantTableOffset / PAGE_SIZE);
    machine.u8.fill(0, 10 * PAGE_SIZE, 11 * PAGE_SIZE);
    expect(Buffer.from(other.u8).equals(Buffer.from(machine.u8))).toBe(true);
  });

  it('takes no frame twice, and none that is not the domain’s', () => {
    const { machine } = makeDomain();
    machine.u8[5 * PAGE_SIZE] = 1;
    const [part] = encodePages(machine);
    expect(() => decodePages(part, machine, 5)).toThrow('damaged: frame 5 behind frame 5');
    new DataView(part.buffer).setUint32(4, machine.layout.nameableFrames, true);
    expect(() => decodePages(part, machine, -1)).toThrow(SaveFileError);
    new DataView(part.buffer).setUint32(0, 2, true);
    expect(() => decodePages(part, machine, -1)).toThrow('damaged: 2 pages in a part of 4104 bytes');
  });

  it('loses what an engine has put into the guest’s root page tables', () => {
    const domain = makeDomain();
    const { u32 } = domain.machine;
    domain.frameTypes[5] = 4;
    u32.fill(1, 5 * 1024, 7 * 1024);
    clearHoles(domain);
    expect([...u32.subarray(5 * 1024 + 510, 5 * 1024 + 546)]).toEqual([1, 1, ...new Array(32).fill(0), 1, 1]);
    expect(u32[6 * 1024 + 514]).toBe(1);
  });
});

describe('nodes of a saved domain', () => {
  it('are those of the domain, and nobody else’s', () => {
    const nodes = [
      ['/local/domain/7', '', ['n0', 'r7']],
      ['/local/domain/7/device/vbd/51712', 'x\xff', ['n7', 'r0']],
      ['/local/domain/0/backend/vbd/7/51712/state', '4', ['n0', 'r7']],
      ['/libxl/7/type', 'pv', ['n0']],
      ['/vm/00000000-0000-4000-8000-000000000002/name', 'a', ['n0']],
    ];
    expect(checkNodes(nodes, 7)).toEqual(nodes);
    const foreign = ['/', '/local', '/local/domain/0/name', '/local/domain/8/name', '/local/domain/0/backend/vbd/8/1'];
    for (const path of [
      ...foreign,
      '/local/domain/7/../8/name',
      '/vm/x',
      '/libxl/8',
      'local/domain/7',
      '/local/domain/7/',
    ])
      expect(() => checkNodes([[path, '', ['n0']]], 7), path).toThrow('is no node of domain 7');
    for (const node of [
      ['/libxl/7', '', []],
      ['/libxl/7', '\u0100', ['n0']],
      ['/libxl/7', 1, ['n0']],
      ['/libxl/7', '', ['x0']],
    ])
      expect(() => checkNodes([node], 7)).toThrow('damaged: /libxl/7');
  });

  it('can be those of another domid', () => {
    const nodes = [
      ['/local/domain/7/domid', '7', ['n0', 'r7']],
      ['/local/domain/7/device/vbd/7/backend', '/local/domain/0/backend/vbd/7/7', ['n7', 'r0']],
      ['/local/domain/0/backend/vbd/7/7/frontend', '/local/domain/7/device/vbd/7', ['n0', 'r7']],
      ['/local/domain/0/backend/vbd/7/7/frontend-id', '7', ['n0', 'r7']],
      ['/libxl/7/device/vbd/7/handle', '7', ['n0']],
    ] as const;
    expect(renumberNodes(nodes, 7, 12)).toEqual([
      ['/local/domain/12/domid', '12', ['n0', 'r12']],
      ['/local/domain/12/device/vbd/7/backend', '/local/domain/0/backend/vbd/12/7', ['n12', 'r0']],
      ['/local/domain/0/backend/vbd/12/7/frontend', '/local/domain/12/device/vbd/7', ['n0', 'r12']],
      ['/local/domain/0/backend/vbd/12/7/frontend-id', '12', ['n0', 'r12']],
      ['/libxl/12/device/vbd/7/handle', '7', ['n0']],
    ]);
    expect(renumberNodes(nodes, 7, 7)).toBe(nodes);
  });
});
