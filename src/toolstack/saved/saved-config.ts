/** The config text that goes with a saved domain: complete, so that it means the same wherever it is read. */

import { type DomainConfig, formatUuid } from '../config/domain-config.ts';
import { grantLimitSettings } from '../config/domain-limits.ts';
import { appendOverrides } from '../config/xl-cfg.ts';

/** `text` is what `config` was read from; `name` what the domain is called now; `absolute` makes a file's name independent of the folder. */
export function completeConfig(
  text: string,
  config: DomainConfig,
  name: string,
  absolute: (file: string) => string,
): string {
  const settings = [`name=${quote(name)}`, `uuid=${quote(formatUuid(config.uuid))}`];
  // With a bootloader they are files of the guest's disk.
  if (config.bootloader === null) {
    if (config.kernel !== null) settings.push(`kernel=${quote(absolute(config.kernel))}`);
    if (config.ramdisk !== null) settings.push(`ramdisk=${quote(absolute(config.ramdisk))}`);
  }
  // They may be xl.conf's.
  return appendOverrides(text, [...settings, ...grantLimitSettings(config.limits)]);
}

/** A string of xl.cfg. */
export function quote(text: string): string {
  const escaped = text.replace(/[\\"]/g, '\\$&').replaceAll('\n', '\\n');
  return `"${escaped}"`;
}
