/**
 * xenstore-control: a command for xenstored itself, and its answer. Exit codes: 2 for no command, 1 if xenstored cannot be reached,
 * 3 if it refuses.
 *
 * Source: tools/xenstore/xenstore_control.c of Xen 4.17 (read for behaviour).
 */
import { type XenstoreClient, XenstoreError } from '../../xenstore/client.ts';

/** Linux. Source: asm-generic/errno-base.h, errno.h. */
const ERRNOS: Readonly<Record<string, number>> = { EIO: 5, E2BIG: 7, EACCES: 13, ENOSPC: 28, ENOSYS: 38 };

export async function control(
  words: readonly string[],
  connect: () => Promise<XenstoreClient>,
  { out, err }: { readonly out: (text: string) => void; readonly err: (text: string) => void },
): Promise<number> {
  if (words.length === 0) {
    err('Usage:\nxenstore-control <command> [<arg>...]\n');
    return 2;
  }
  let client: XenstoreClient;
  try {
    client = await connect();
  } catch {
    err('Failed to contact Xenstored.\n');
    return 1;
  }
  try {
    const answer = await client.control(words);
    if (answer !== '') out(`${answer}\n`);
    return 0;
  } catch (error) {
    if (!(error instanceof XenstoreError)) throw error;
    if (error.code !== 'EINVAL') {
      err(`Error ${ERRNOS[error.code] ?? 0} when trying to execute command.\n`);
      return 3;
    }
    err(`Command not supported. Valid commands are:\n${await client.control(['help'])}\n`);
    return 3;
  } finally {
    client.close();
  }
}
