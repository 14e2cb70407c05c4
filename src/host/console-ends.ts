/**
 * The host's end of a guest's console, as the domain process sees it: bytes out to somebody who looks, bytes in from somebody
 * who types. Implemented by the user's terminal (cli/terminal.ts); later by sockets and logs.
 */
export interface ConsoleEnds {
  /** The guest's output. The bytes belong to the caller: they are used or copied before this returns. Never throws. */
  write(bytes: Uint8Array): void;
  /** Sets who gets what is typed; at most one handler. Before that, input waits. */
  onInput(handler: (bytes: Uint8Array) => void): void;
  /** Called with the size in characters, at once and when it changes; absent where there is no screen. */
  onResize?(handler: (cols: number, rows: number) => void): void;
  /** Gives back what the console holds (raw mode, listeners). May be called more than once. */
  close(): void;
}
