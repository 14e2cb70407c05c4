/** The control socket of a domain's process (control-protocol.ts). Who connects may do what its owner may; what it sends is checked all the same. */
import type { Socket } from 'node:net';
import {
  CONTROL_METHODS,
  type ControlAnswer,
  type ControlMethod,
  type ControlParameters,
  LineReader,
} from './control-protocol.ts';
import { type Listen, listenLocally } from './local-socket.ts';

export type ControlHandler = (parameters: ControlParameters) => ControlAnswer | Promise<ControlAnswer | number>;
export type ControlHandlers = Readonly<Record<ControlMethod, ControlHandler>>;

/** What was asked cannot be done, or makes no sense; one line. */
export class ControlError extends Error {
  override readonly name = 'ControlError';
}

export interface ControlServer {
  /** Ends all connections: the domain is gone. */
  close(): void;
}

/** More than there can be copies that wait for what they go on from (`domus fork -n`). */
const CLIENTS_MAX = 1280;
// Source: https://www.jsonrpc.org/specification, "Error object".
const PARSE_ERROR = -32700;
const INVALID_REQUEST = -32600;
const METHOD_NOT_FOUND = -32601;
const INVALID_PARAMS = -32602;
/** Not one of JSON-RPC's own: a ControlError. */
const REFUSED = 1;

export async function openControlServer(
  path: string,
  handlers: ControlHandlers,
  listen: Listen = listenLocally,
): Promise<ControlServer> {
  const clients = new Set<Socket>();
  const reply = async (socket: Socket, line: string): Promise<void> => {
    const message = JSON.stringify(await answer(line, handlers));
    if (!socket.destroyed) socket.write(`${message}\n`);
  };
  const server = await listen(path, (socket) => {
    if (clients.size >= CLIENTS_MAX) {
      socket.destroy();
      return;
    }
    clients.add(socket);
    const reader = new LineReader();
    socket.on('error', () => {});
    socket.on('close', () => clients.delete(socket));
    socket.on('data', (bytes) => {
      const lines = reader.take(bytes);
      if (lines === null) socket.destroy();
      for (const line of lines ?? []) if (line !== '') void reply(socket, line);
    });
  });
  return {
    close: () => {
      server.close();
      for (const socket of clients) socket.end();
    },
  };
}

async function answer(line: string, handlers: ControlHandlers): Promise<Record<string, unknown>> {
  const failed = (id: unknown, code: number, message: string) => ({ jsonrpc: '2.0', id, error: { code, message } });
  let request: unknown;
  try {
    request = JSON.parse(line);
  } catch (error) {
    return failed(null, PARSE_ERROR, error instanceof Error ? error.message : String(error));
  }
  if (typeof request !== 'object' || request === null || !('id' in request) || !('method' in request))
    return failed(null, INVALID_REQUEST, 'expected an object with id and method');
  const id = typeof request.id === 'number' || typeof request.id === 'string' ? request.id : null;
  const method = CONTROL_METHODS.find((name) => name === request.method);
  if (method === undefined) return failed(id, METHOD_NOT_FOUND, `methods are ${CONTROL_METHODS.join(', ')}`);
  const given = 'params' in request ? request.params : {};
  if (typeof given !== 'object' || given === null) return failed(id, INVALID_PARAMS, 'expected named parameters');
  try {
    return { jsonrpc: '2.0', id, result: await handlers[method]({ ...given }) };
  } catch (error) {
    if (error instanceof ControlError) return failed(id, REFUSED, error.message);
    throw error;
  }
}
