/** For the tests of this folder: both ends of a byte stream that can be cut. */
import type { ByteChannel } from './link.ts';
import type { ServerChannel } from './stream-server.ts';

export interface Pipe {
  readonly client: ByteChannel;
  readonly server: ServerChannel;
  /** Ends it: what is on its way is lost. */
  cut(): void;
}

/** Pieces arrive one turn later, cut into `pieceBytes`. `onPiece` is called before each arrives, and may cut. */
export function createPipe(pieceBytes = 4096, onPiece: (pipe: Pipe) => void = () => {}): Pipe {
  let open = true;
  let toClient: (bytes: Uint8Array) => void = () => {};
  let toServer: (bytes: Uint8Array) => void = () => {};
  let clientEnds: (reason: string) => void = () => {};
  let serverEnds: () => void = () => {};
  let backlogBytes = 0;
  let paused = false;
  const waiting: Uint8Array[] = [];
  const later = (work: () => void): void => void setTimeout(work, 0);
  const cut = (): void => {
    if (!open) return;
    open = false;
    later(() => {
      clientEnds('cut');
      serverEnds();
    });
  };
  const send = (bytes: Uint8Array, arrive: (piece: Uint8Array) => void): void => {
    for (let at = 0; at < bytes.length; at += pieceBytes) {
      const piece = bytes.slice(at, at + pieceBytes);
      later(() => {
        if (open) onPiece(pipe);
        if (open) arrive(piece);
      });
    }
  };
  const deliver = (): void => {
    while (!paused && open) {
      const piece = waiting.shift();
      if (piece === undefined) return;
      toServer(piece);
    }
  };
  const pipe: Pipe = {
    client: {
      write: (bytes) =>
        send(bytes, (piece) => {
          waiting.push(piece);
          deliver();
        }),
      receive: (onBytes, onEnd) => {
        toClient = onBytes;
        clientEnds = onEnd;
      },
      close: cut,
    },
    server: {
      write: (bytes) => {
        backlogBytes += bytes.length;
        send(bytes, (piece) => {
          backlogBytes -= piece.length;
          toClient(piece);
        });
      },
      get backlogBytes() {
        return backlogBytes;
      },
      setPaused: (value) => {
        paused = value;
        later(deliver);
      },
      receive: ({ onBytes, onEnd }) => {
        toServer = onBytes;
        serverEnds = onEnd;
      },
      close: cut,
    },
    cut,
  };
  return pipe;
}
