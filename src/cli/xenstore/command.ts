/**
 * What a subcommand of xenstore is and what it is given. One file per command; main.ts has the table.
 *
 * Source: tools/xenstore/xenstore_client.c of Xen 4.17 (read for behaviour); recorded output of Debian's xenstore-utils 4.17.
 */
import { type XenstoreClient, XenstoreClosed, XenstoreError, type XenstoreNodes } from '../../xenstore/client.ts';

export interface Context {
  /** Outside any transaction. */
  readonly client: XenstoreClient;
  /** The same, or a transaction. */
  readonly nodes: XenstoreNodes;
  /** The letters that were given. */
  readonly options: ReadonlySet<string>;
  /** Value of -n. */
  readonly number: number | null;
  /** To standard output: at the end, if a transaction has gone through, or at once outside of one. */
  readonly out: (output: string | Uint8Array) => void;
  /** A line on standard error, behind the program's name. */
  readonly warn: (line: string) => void;
  /** Columns of the terminal that standard output is, or null. */
  readonly columns: number | null;
}

export interface Command {
  readonly name: string;
  readonly usage: string;
  /** The options it understands, besides -h and -s. */
  readonly letters: string;
  /** Does it run in a transaction with so many operands? */
  readonly usesTransaction: (operands: number) => boolean;
  /** Can it be run with so many operands? */
  readonly accepts: (operands: number) => boolean;
  /** Runs it; false: it has failed, and has said so if it says such things. */
  run(operands: readonly string[], context: Context): Promise<boolean>;
}

/** Ends the program at once with exit code 1 and this line behind the program's name. */
export class Failure extends Error {
  override readonly name = 'Failure';
}

/** The reply, or null for any error: most commands do not care which. */
export async function orNull<T>(reply: Promise<T>): Promise<T | null> {
  try {
    return await reply;
  } catch (error) {
    if (error instanceof XenstoreError || error instanceof XenstoreClosed) return null;
    throw error;
  }
}

/** strerror(3) of glibc for what a request can fail with. */
export function errorText(error: unknown): string {
  if (!(error instanceof XenstoreError)) return error instanceof Error ? error.message : String(error);
  switch (error.code) {
    case 'EINVAL':
      return 'Invalid argument';
    case 'EACCES':
      return 'Permission denied';
    case 'ENOENT':
      return 'No such file or directory';
    case 'ENOSPC':
      return 'No space left on device';
    case 'E2BIG':
      return 'Argument list too long';
    case 'EIO':
      return 'Input/output error';
    case 'EAGAIN':
      return 'Resource temporarily unavailable';
    case 'ENOSYS':
      return 'Function not implemented';
    case 'EEXIST':
      return 'File exists';
    default:
      return error.code;
  }
}

/** As atoi(3): the number that the text begins with, or 0. */
export function leadingNumber(text: string): number {
  return Number(/^\s*([+-]?\d+)/.exec(text)?.[1] ?? 0);
}
