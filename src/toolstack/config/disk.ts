/**
 * `disk = [ "SPEC", ... ]`: what one specification says, and the number of its virtual device.
 *
 * A specification is read as libxlu does: at each place the rule that matches most characters is taken, the first of those that
 * match as many. Parameters by name, flags, the prefixes of old, and what is left by position: target, format, vdev, access.
 * `target=` takes the rest of the string, commas included.
 *
 * Deviation: `format=` takes all that qemu-nbd is asked for, such as vmdk.
 *
 * Source: xl-disk-configuration(5); xen-vbd-interface(7); tools/libs/util/libxlu_disk_l.l of Xen 4.17 (read for behaviour).
 */

import { OWN_FORMATS, QEMU_FORMATS } from '../../storage/formats.ts';
import { ConfigError } from './xl-cfg.ts';

/** libxl has raw, qcow, qcow2, vhd, qed and empty. */
export const FORMATS = [...OWN_FORMATS, ...QEMU_FORMATS, 'empty'] as const;
const BACKENDS = ['phy', 'tap', 'qdisk', 'standalone'] as const;
export type DiskFormat = (typeof FORMATS)[number];
export type DiskBackend = (typeof BACKENDS)[number];

/** What was said; null is "nothing". */
export interface DiskConfig {
  /** Domain that serves it, by name or number. */
  readonly backendDomain: string | null;
  /** File or device, as given; null and '' for a drive without a disk. */
  readonly target: string | null;
  /** Such as "xvda". Not checked yet. */
  readonly vdev: string;
  readonly backend: DiskBackend | null;
  readonly format: DiskFormat;
  readonly script: string | null;
  readonly writable: boolean;
  readonly cdrom: boolean;
  readonly directIoSafe: boolean;
  readonly discard: boolean | null;
  readonly specification: string | null;
  readonly trusted: boolean | null;
}

/** Pattern; what is done with what it took; and, where it looks at more of the string than it takes, how much it takes. */
type Rule = readonly [RegExp, (text: string) => void, RegExp?];

class DiskParser {
  readonly #source: string;
  readonly #errors: string[] = [];
  #spec = '';
  #hadPrefix = false;
  #accessSet = false;
  #target: string | null = null;
  #format: DiskFormat | null = null;
  #vdev: string | null = null;
  #backend: DiskBackend | null = null;
  #backendDomain: string | null = null;
  #script: string | null = null;
  #specification: string | null = null;
  #writable = true;
  #cdrom = false;
  #directIoSafe = false;
  #discard: boolean | null = null;
  #trusted: boolean | null = null;

  #ended = false;

  readonly #rules: readonly Rule[] = [
    [/[ \t\n]+([^ \t\n].*)?/y, () => {}, /^[ \t\n]+/],
    [/format=[^,]*,?/y, (text) => this.#setFormat(valueIn(text))],
    [/cdrom,?/y, () => this.#setCdrom(true)],
    [/devtype=cdrom,?/y, () => this.#setCdrom(true)],
    [/devtype=disk,?/y, () => this.#setCdrom(false)],
    [/devtype=[^,]*,?/y, (text) => this.#error('unknown value for type', text)],
    [/access=[^,]*,?/y, (text) => this.#setAccess(valueIn(text))],
    [
      /backend=[^,]*,?/y,
      (text) => void (this.#backendDomain = this.#once('backend', this.#backendDomain, valueIn(text))),
    ],
    [/backendtype=[^,]*,?/y, (text) => this.#setBackend(valueIn(text))],
    [/specification=[^,]*,?/y, (text) => this.#setSpecification(valueIn(text))],
    [/vdev=[^,]*,?/y, (text) => this.#setVdev(valueIn(text))],
    [/script=[^,]*,?/y, (text) => this.#setScript(valueIn(text))],
    [/direct-io-safe,?/y, () => void (this.#directIoSafe = true)],
    [/discard,?/y, () => void (this.#discard = true)],
    [/no-discard,?/y, () => void (this.#discard = false)],
    // COLO, which needs HVM guests: taken and forgotten.
    [/(no-)?colo,?/y, () => {}],
    [/(colo-host|colo-port|colo-export|active-disk|hidden-disk)=[^,]*,?/y, () => {}],
    [/trusted,?/y, () => void (this.#trusted = true)],
    [/untrusted,?/y, () => void (this.#trusted = false)],
    [/target=.*/y, (text) => this.#setTarget(valueIn(text))],
    [/[a-z][-a-z0-9]*=[^,],?/y, (text) => this.#error('unknown parameter', text)],
    [/(raw|qcow2?|vhd):.*/y, (text) => this.#prefix(() => this.#setFormat(text.slice(0, -1))), /^\w+:/],
    [/(iscsi|e?nbd|drbd):.*/y, (text) => this.#prefix(() => this.#setScript(`block-${text.slice(0, -1)}`)), /^\w+:/],
    [/(tapdisk|tap2?|aio|ioemu|file|phy):.*/y, () => this.#prefix(() => {}), /^\w+:/],
    [/[a-z][a-z0-9]*:([^a-z0-9].*)?/y, (text) => this.#end('unknown deprecated disk prefix', text), /^\w+:/],
    [/[^=,]*,|[^=,]+,?/y, (text) => this.#positional(text.replace(/,$/, ''))],
  ];

  constructor(source: string) {
    this.#source = source;
  }

  parse(specs: readonly string[]): DiskConfig {
    for (const spec of specs) {
      this.#spec = spec;
      this.#scan();
      if (this.#errors.length > 0) throw new ConfigError(this.#errors.join('\n'));
    }
    if (this.#vdev === null) throw new ConfigError(this.#message('no vdev specified', null));
    if (this.#target === null && !this.#cdrom)
      throw new ConfigError(this.#message('no target specified (and device not removable)', null));
    const empty = this.#cdrom && (this.#target === null || this.#target === '');
    return {
      backendDomain: this.#backendDomain,
      target: this.#target,
      vdev: this.#vdev,
      backend: this.#backend,
      format: empty ? 'empty' : (this.#format ?? 'raw'),
      script: this.#script,
      writable: this.#writable && !this.#cdrom,
      cdrom: this.#cdrom,
      directIoSafe: this.#directIoSafe,
      discard: this.#discard,
      specification: this.#specification,
      trusted: this.#trusted,
    };
  }

  #scan(): void {
    const spec = this.#spec;
    this.#ended = false;
    for (let at = 0; at < spec.length && !this.#ended; ) {
      let longest = 0;
      let best: Rule | undefined;
      for (const rule of this.#rules) {
        rule[0].lastIndex = at;
        const length = rule[0].exec(spec)?.[0].length ?? 0;
        if (length <= longest) continue;
        longest = length;
        best = rule;
      }
      if (best === undefined) {
        this.#end('bad disk syntax', spec.slice(at));
        break;
      }
      const matched = spec.slice(at, at + longest);
      const text = best[2]?.exec(matched)?.[0] ?? matched;
      at += text.length;
      best[1](text);
    }
  }

  #message(what: string, near: string | null): string {
    const where = near === null ? '' : `: near \`${near}'`;
    return `${this.#source}: config parsing error in disk specification: ${what}${where} in \`${this.#spec}'`;
  }

  #error(what: string, near: string): void {
    this.#errors.push(this.#message(what, near));
  }

  /** An error after which nothing more is looked at. */
  #end(what: string, near: string): void {
    this.#error(what, near);
    this.#ended = true;
  }

  #once(what: string, old: string | null, value: string): string {
    if (old === null || old === '') return value;
    this.#error(`${what} respecified`, value);
    return old;
  }

  #setTarget(value: string): void {
    this.#target = this.#once('target', this.#target, value.replace(/,$/, ''));
  }
  #setVdev(value: string): void {
    this.#vdev = this.#once('vdev', this.#vdev, value);
  }
  #setScript(value: string): void {
    this.#script = this.#once('script', this.#script, value);
  }
  #setCdrom(cdrom: boolean): void {
    this.#cdrom = cdrom;
  }

  #setAccess(value: string): void {
    if (value === 'r' || value === 'ro') this.#writable = false;
    else if (value === 'w' || value === 'rw' || value === '') this.#writable = true;
    else this.#error('unknown value for access', value);
  }

  #setFormat(value: string): void {
    const format = FORMATS.find((known) => known === (value === '' ? 'raw' : value));
    if (format === undefined) this.#error('unknown value for format', value);
    else if (this.#format !== null && this.#format !== format) this.#error('format respecified', value);
    else this.#format = format;
  }

  #setBackend(value: string): void {
    const backend = BACKENDS.find((known) => known === value);
    if (backend === undefined) this.#error('unknown value for backendtype', value);
    else if (this.#backend !== null && this.#backend !== backend) this.#error('backend respecified', value);
    else this.#backend = backend;
  }

  #setSpecification(value: string): void {
    if (value !== 'xen' && value !== 'virtio') this.#error('unknown value for specification', value);
    else if (this.#specification !== null && this.#specification !== value)
      this.#error('specification respecified', value);
    else this.#specification = value;
  }

  #prefix(set: () => void): void {
    this.#hadPrefix = true;
    set();
  }

  #positional(text: string): void {
    // What follows an error may only follow from it.
    if (this.#errors.length > 0) return;
    if (this.#target === null) this.#target = text;
    else if (!this.#hadPrefix && this.#format === null) {
      if (this.#target === '' && this.#vdevAndType(text)) this.#format = 'empty';
      else this.#setFormat(text);
    } else if (this.#vdev === null) {
      if (!this.#vdevAndType(text)) this.#vdev = text;
    } else if (!this.#accessSet) {
      this.#accessSet = true;
      this.#setAccess(text);
    } else this.#end('too many positional parameters', text);
  }

  /** `<vdev>:<type>`: true if it is that. */
  #vdevAndType(text: string): boolean {
    const colon = text.lastIndexOf(':');
    if (colon < 0) return false;
    this.#setVdev(text.slice(0, colon));
    const type = text.slice(colon + 1);
    if (type === 'cdrom' || type === 'disk') this.#cdrom = type === 'cdrom';
    else this.#error('unknown deprecated type', type);
    return true;
  }
}

/** What stands behind the first `=`, without the comma that ends it. */
function valueIn(text: string): string {
  return text.slice(text.indexOf('=') + 1).replace(/,$/, '');
}

/** Parses a disk, which the words of a command line may give in parts. `source` is named in messages. @throws ConfigError */
export function parseDisk(source: string, ...specs: readonly string[]): DiskConfig {
  return new DiskParser(source).parse(specs);
}

/** Members of libxl's JSON, in the order of libxl_types.idl; undefined where they are at their default. */
export function diskJson(disk: DiskConfig): Record<string, unknown> {
  return {
    backend_domname: disk.backendDomain ?? undefined,
    pdev_path: disk.target ?? undefined,
    vdev: disk.vdev,
    backend: disk.backend ?? undefined,
    format: disk.format,
    script: disk.script ?? undefined,
    removable: disk.cdrom ? 1 : undefined,
    readwrite: disk.writable ? 1 : undefined,
    is_cdrom: disk.cdrom ? 1 : undefined,
    direct_io_safe: disk.directIoSafe || undefined,
    discard_enable: boolJson(disk.discard),
    specification: disk.specification ?? undefined,
    trusted: boolJson(disk.trusted),
  };
}

/** libxl_defbool as libxl prints it. */
export function boolJson(value: boolean | null): string | undefined {
  return value === null ? undefined : value ? 'True' : 'False';
}

/**
 * The number of a virtual device, which names it in xenstore: of xvda, xvda1, hdc, sdb, d0p1, or a plain number. Null for
 * a name that is none. Source: xen-vbd-interface(7).
 */
export function vdevNumber(vdev: string): number | null {
  const number = /^(?:0x[0-9a-f]+|\d+)$/i.exec(vdev);
  if (number !== null) {
    const octal = /^0[0-7]+$/.test(vdev);
    const value = octal ? Number.parseInt(vdev, 8) : Number(vdev);
    return value < 2 ** 29 && (octal || !/^0\d/.test(vdev)) ? value : null;
  }
  const plain = /^d(\d+)(?:p(\d+))?$/.exec(vdev);
  if (plain !== null) return xvdNumber(Number(plain[1]), Number(plain[2] ?? 0));
  const named = /^(xvd|sd|hd)([a-z]+)(\d*)$/.exec(vdev);
  if (named === null || /^0/.test(named[3])) return null;
  // a..z, aa..zz, ...: counted in base 26 without a zero.
  let disk = 0;
  for (const letter of named[2]) disk = disk * 26 + letter.charCodeAt(0) - 96;
  disk -= 1;
  const partition = Number(named[3]);
  switch (named[1]) {
    case 'xvd':
      return xvdNumber(disk, partition);
    case 'sd':
      return disk > 15 || partition > 15 ? null : (8 << 8) | (disk << 4) | partition;
    default:
      if (disk > 3 || partition > 63) return null;
      return ((disk < 2 ? 3 : 22) << 8) | ((disk & 1) << 6) | partition;
  }
}

function xvdNumber(disk: number, partition: number): number | null {
  if (disk <= 15 && partition <= 15) return (202 << 8) | (disk << 4) | partition;
  return disk < 1 << 20 && partition <= 255 ? (1 << 28) | (disk << 8) | partition : null;
}
