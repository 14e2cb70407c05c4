/** The host's resolver configuration, read again when the file has changed. Source: resolv.conf(5). */

import { getServers } from 'node:dns';
import { readFileSync, statSync } from 'node:fs';

export interface ResolverConfig {
  readonly nameServers: readonly string[];
  readonly searchDomains: readonly string[];
}

const NAME_SERVERS_MAX = 3;
/** A look at the file's time is not needed more often. */
const CHECK_MS = 1000;

export function parseResolvConf(text: string): ResolverConfig {
  const nameServers: string[] = [];
  let searchDomains: string[] = [];
  for (const line of text.split('\n')) {
    const [key, ...values] = line
      .replace(/[#;].*$/, '')
      .trim()
      .split(/\s+/);
    if (key === 'nameserver' && values.length > 0 && nameServers.length < NAME_SERVERS_MAX) nameServers.push(values[0]);
    else if (key === 'search') searchDomains = values;
    else if (key === 'domain') searchDomains = values.slice(0, 1);
  }
  return { nameServers, searchDomains };
}

/** Source: node:dns getServers(), which writes a port other than 53 after the address. */
function fromNode(): ResolverConfig {
  return { nameServers: getServers().filter((s) => !/^\[|^[^:]*:\d+$/.test(s)), searchDomains: [] };
}

export function createResolverConfig(path = '/etc/resolv.conf'): () => ResolverConfig {
  let known: ResolverConfig | null = null;
  let modifiedMs = -1;
  let checkedMs = -CHECK_MS;
  return () => {
    const now = performance.now();
    if (known !== null && now - checkedMs < CHECK_MS) return known;
    checkedMs = now;
    const stat = statSync(path, { throwIfNoEntry: false });
    if (stat === undefined) known = fromNode();
    else if (known === null || stat.mtimeMs !== modifiedMs) {
      modifiedMs = stat.mtimeMs;
      known = parseResolvConf(readFileSync(path, 'utf8'));
      if (known.nameServers.length === 0) known = { ...known, nameServers: ['127.0.0.1'] };
    }
    return known;
  };
}
