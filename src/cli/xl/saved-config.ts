/** The config of a saved domain, for `xl restore`. */

import { type OpenSaved, openSaved } from '../../host/restore-domain.ts';
import { type DomainConfig, readDomainConfig } from '../../toolstack/config/domain-config.ts';
import { ConfigError } from '../../toolstack/config/xl-cfg.ts';
import { SaveFileError } from '../../toolstack/saved/save-file.ts';
import type { Context } from './command.ts';
import { readConfigFile } from './config-file.ts';

/** Of `configFile` instead of the saved one, if that is not null. An exit code: what is wrong has been said. */
export async function readSavedConfig(
  file: string,
  configFile: string | null,
  context: Context,
): Promise<{ readonly text: string; readonly config: DomainConfig } | number> {
  let saved: OpenSaved | null = null;
  let text: string;
  try {
    saved = await openSaved(file);
    context.err(`Loading new save file ${file}`);
    text = saved.domain.description.config;
  } catch (error) {
    if (!(error instanceof SaveFileError)) throw error;
    context.err(error.message);
    return 1;
  } finally {
    saved?.close();
  }
  const source = configFile ?? '<saved>';
  if (configFile !== null) {
    const other = readConfigFile(configFile, context);
    if (other === null) return 3;
    text = other;
  }
  context.err(`Parsing config from ${source}`);
  try {
    return { text, config: readDomainConfig(source, text, { warn: context.err }) };
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    context.err(error.message);
    return 1;
  }
}
