/**
 * The user's terminal as the two ends of a guest's console.
 *
 * On a terminal, input is raw: every key goes to the guest, Ctrl-C too, and Ctrl-] (0x1d, as in xenconsole) is the way out. The
 * mode is given back by `close`, and by the process's exit however that comes about, short of SIGKILL. SIGINT, SIGTERM, SIGHUP and a
 * closed standard output are not answered here but reported once, so that the guest ends in order.
 *
 * Without a terminal, standard input is a pipe: all bytes go to the guest, its end means nothing, Ctrl-C is a SIGINT.
 *
 * Output goes through process.stdout: in order, and for terminals, files and (but on Windows) pipes before `write` returns.
 */

import type { ConsoleEnds } from '../host/console-ends.ts';

const ESCAPE = 0x1d;
/** Exit codes as a shell reports the signal. Source: signal(7). */
const SIGNAL_EXIT_CODES = { SIGHUP: 129, SIGINT: 130, SIGTERM: 143 } as const;
const SIGPIPE_EXIT_CODE = 141;

export interface TerminalOptions {
  /** Ctrl-] was typed. Called once; the terminal is back in its own mode by then. */
  readonly onEscape: () => void;
  /** A signal came or nobody reads standard output any more. Called once, with the exit code that is due. */
  readonly onHangup: (exitCode: number) => void;
  /** Instead of Ctrl-]. */
  readonly escape?: number;
}

export interface Terminal extends ConsoleEnds {
  /** Standard input is a terminal: Ctrl-] works. */
  readonly interactive: boolean;
}

/** Takes the terminal. `close` gives it back. */
export function openTerminal(options: TerminalOptions): Terminal {
  const { stdin, stdout } = process;
  const interactive = stdin.isTTY === true;
  let closed = false;
  let left = false;
  let outputClosed = false;
  let onBytes: ((bytes: Uint8Array) => void) | null = null;
  /** Typed before there was a handler. A pipe is not read before that. */
  const early: Uint8Array[] = [];

  const setRaw = (raw: boolean) => {
    if (!interactive) return;
    try {
      stdin.setRawMode(raw);
    } catch (error) {
      // A terminal that has gone away (its window was closed) has no mode to give back.
      if (raw) throw error;
    }
  };
  const restore = () => setRaw(false);
  const resume = () => {
    // The shell may have changed the mode while we were stopped; libuv sets only what it takes for a change.
    setRaw(false);
    setRaw(true);
  };
  const hangup = (exitCode: number) => {
    if (left || closed) return;
    left = true;
    restore();
    options.onHangup(exitCode);
  };
  const onSignal = (signal: NodeJS.Signals) => hangup(SIGNAL_EXIT_CODES[signal as keyof typeof SIGNAL_EXIT_CODES]);
  const onData = (bytes: Uint8Array) => {
    if (left) return;
    const escapeAt = interactive ? bytes.indexOf(options.escape ?? ESCAPE) : -1;
    const typed = escapeAt < 0 ? bytes : bytes.subarray(0, escapeAt);
    if (typed.length > 0) {
      if (onBytes === null) early.push(typed);
      else onBytes(typed);
    }
    if (escapeAt < 0) return;
    left = true;
    restore();
    options.onEscape();
  };
  // What can be wrong with standard input: it is not open, or its terminal has gone. The guest does not end by that.
  const onInputError = () => {};
  const onOutputError = (error: NodeJS.ErrnoException) => {
    if (!['EPIPE', 'EIO', 'ERR_STREAM_DESTROYED'].includes(error.code ?? '')) throw error;
    outputClosed = true;
    hangup(SIGPIPE_EXIT_CODE);
  };

  const close = () => {
    if (closed) return;
    closed = true;
    restore();
    for (const signal of Object.keys(SIGNAL_EXIT_CODES)) process.off(signal, onSignal);
    process.off('SIGCONT', resume);
    process.off('exit', restore);
    stdin.off('data', onData);
    stdin.pause();
    // A read that is under way must not keep the process; a file's stream has no such thing.
    if ('unref' in stdin) stdin.unref();
    // The error listeners stay: a late error of either stream is still nobody's concern.
  };

  process.on('exit', restore);
  for (const signal of Object.keys(SIGNAL_EXIT_CODES)) process.on(signal, onSignal);
  if (interactive) process.on('SIGCONT', resume);
  stdin.on('error', onInputError);
  stdout.on('error', onOutputError);
  setRaw(true);
  const read = () => {
    stdin.off('data', onData);
    stdin.on('data', onData);
    // Who read before us (the spinner of `domus demo`) has left it paused, and a listener alone does not change that.
    stdin.resume();
  };
  // Ctrl-] works while the guest is still being built.
  if (interactive) read();

  return {
    interactive,
    write(bytes) {
      // Copied: a slow pipe keeps what it could not write.
      if (!outputClosed) stdout.write(Uint8Array.from(bytes));
    },
    onInput(handler) {
      onBytes = handler;
      for (const bytes of early.splice(0)) handler(bytes);
      if (!closed && !interactive) read();
    },
    close,
  };
}
