/**
 * An end of a guest's console: bytes out to somebody who looks, bytes in from somebody who types. In the domain's process it is
 * the console's server (console-server.ts), at the user's the terminal (cli/terminal.ts). A PV console has no size.
 */
export interface ConsoleEnds {
  /** The guest's output. The bytes belong to the caller: they are used or copied before this returns. Never throws. */
  write(bytes: Uint8Array): void;
  /** Sets who gets what is typed; at most one handler. Before that, input waits. */
  onInput(handler: (bytes: Uint8Array) => void): void;
  /** Gives back what the console holds (raw mode, listeners). May be called more than once. */
  close(): void;
}
