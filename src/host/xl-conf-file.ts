/** Reads xl.conf: that of the system, and what the one in the state folder says above it. Either may be missing. */

import { readFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { ConfigError } from '../toolstack/config/xl-cfg.ts';
import { parseXlConf, type XlConf, type XlConfFile } from '../toolstack/config/xl-conf.ts';
import { stateRoot } from './state-dir.ts';

const SYSTEM_FILE = '/etc/xen/xl.conf';

/** Throws ConfigError. */
export function readXlConf(warn: (line: string) => void, root: string = stateRoot()): XlConf {
  const files = [SYSTEM_FILE, join(root, 'xl.conf')].map(readIfThere).filter((file) => file !== null);
  return parseXlConf(files, cpus().length, warn);
}

function readIfThere(name: string): XlConfFile | null {
  try {
    return { name, text: readFileSync(name, 'utf8').replaceAll('\r\n', '\n') };
  } catch (error) {
    if (!(error instanceof Error && 'code' in error)) throw error;
    if (error.code === 'ENOENT' || error.code === 'ENOTDIR') return null;
    throw new ConfigError(`Failed to read config file: ${name}: ${error.message}`);
  }
}
