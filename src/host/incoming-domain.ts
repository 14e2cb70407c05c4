/**
 * The target of a migration: the domain that comes by the standard input of `xl migrate-receive`, and the answers on its standard
 * output (migration-protocol.ts). Both are this process's only: whoever started it may die.
 *
 * Until GO the copy is nothing: whatever ends the way to the source, or makes it too slow, ends the copy. From GO on it is the domain,
 * whether the source hears of it or not.
 */

import { fstatSync } from 'node:fs';
import { Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ConfigAndText } from '../toolstack/config/device-specs.ts';
import { type DomainConfig, readDomainConfig } from '../toolstack/config/domain-config.ts';
import { ConfigError } from '../toolstack/config/xl-cfg.ts';
import { SaveFileError } from '../toolstack/saved/save-file.ts';
import { HostError } from './host-error.ts';
import { ACCEPTED, BANNER, GO, READY, REPORT, TAKEN } from './migration-protocol.ts';
import { SavedDomain } from './restore-domain.ts';
import { sourceOf } from './save-stream.ts';

/** For a part of the stream. */
const SILENCE_LIMIT_MS = 300_000;
const GO_LIMIT_MS = 60_000;
/** How long answers may take that nobody seems to read. */
const REPORT_LIMIT_MS = 5000;

export class IncomingDomain {
  readonly saved: SavedDomain;
  #config: DomainConfig;
  #configText: string;
  /** Until it has come. */
  readonly name: string;
  readonly #input: Socket;
  readonly #output: Socket;
  readonly #source: (count: number) => Promise<Uint8Array>;
  readonly #tell: (line: string) => void;
  #isOurs = false;
  #hasStarted = false;

  /**
   * Greets the source, and reads what the domain is. The descriptors must be pipes or sockets, and are taken. `tell`: for the user.
   * @throws SaveFileError, HostError
   */
  static async open(inputFd: number, outputFd: number, tell: (line: string) => void): Promise<IncomingDomain> {
    const [input, output] = [streamOf(inputFd, 'input'), streamOf(outputFd, 'output')];
    output.write(`${BANNER}\n`);
    const { source } = sourceOf(input.iterator() as AsyncIterableIterator<Uint8Array>);
    const patient = async (count: number): Promise<Uint8Array> => {
      try {
        return await within(source(count), SILENCE_LIMIT_MS);
      } catch (error) {
        if (!(error instanceof Error && 'code' in error)) throw error;
        throw new SaveFileError(`the way to the source is cut: ${error.message}`);
      }
    };
    tell('Loading new save file <incoming migration stream>');
    const saved = await SavedDomain.open(async (count) => {
      const bytes = await patient(count);
      if (bytes.length < count) throw new SaveFileError('file/stream truncated reading migration stream');
      return bytes;
    });
    tell('Parsing config from <saved>');
    const incoming = new IncomingDomain(saved, { input, output, source: patient, tell });
    saved.onWanted = () => incoming.#answer(ACCEPTED);
    saved.onRound = () => incoming.#answer(TAKEN);
    return incoming;
  }

  private constructor(
    saved: SavedDomain,
    ends: {
      readonly input: Socket;
      readonly output: Socket;
      readonly source: (count: number) => Promise<Uint8Array>;
      readonly tell: (line: string) => void;
    },
  ) {
    this.saved = saved;
    this.#configText = saved.description.config;
    this.#config = configOf(this.#configText, ends.tell);
    this.name = `${this.#config.name}--incoming`;
    this.#input = ends.input;
    this.#output = ends.output;
    this.#source = ends.source;
    this.#tell = ends.tell;
  }

  /** With the text that it was read from: when the domain has come, that of when it stood still. @throws HostError */
  get config(): ConfigAndText {
    const { config } = this.saved.description;
    if (config !== this.#configText) {
      // What there was to say of it has been said.
      this.#config = configOf(config, () => {});
      this.#configText = config;
    }
    return { config: this.#config, text: this.#configText };
  }

  async #answer(...lines: readonly string[]): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      this.#output.write(lines.map((line) => `${line}\n`).join(''), (error) =>
        error ? reject(new HostError(`the migration's source is gone: ${error.message}`)) : resolve(),
      );
    });
  }

  /** All of it is here: resolves when it is to run. @throws HostError when it is not */
  async permission(): Promise<void> {
    this.#tell('migration target: Transfer complete, requesting permission to start domain.');
    await this.#answer(READY);
    const wanted = `${GO}\n`;
    const bytes = await within(this.#source(wanted.length), GO_LIMIT_MS);
    if (new TextDecoder().decode(bytes) !== wanted)
      throw new HostError(
        bytes.length < wanted.length
          ? 'no permission came from the source: this copy is thrown away'
          : 'migration stream contained unexpected data instead of GO message',
      );
    this.#isOurs = true;
    this.#tell('migration target: Got permission, starting domain.');
  }

  /** It runs. */
  started(): void {
    this.#hasStarted = true;
    // As xl writes it.
    this.#tell('migration target: Domain started successsfully.');
    void this.#finish(REPORT, '0');
  }

  /** It does not run, and nothing of it is left: after a GO, the source may have it back. */
  async failed(): Promise<void> {
    if (!this.#isOurs || this.#hasStarted) {
      this.close();
      return;
    }
    this.#tell('migration target: Cleanup OK, granting sender permission to resume.');
    await this.#finish(REPORT, '3', GO);
  }

  async #finish(...lines: readonly string[]): Promise<void> {
    const said = this.#answer(...lines).catch(() => undefined);
    await Promise.race([said, sleep(REPORT_LIMIT_MS, undefined, { ref: false })]);
    this.close();
  }

  close(): void {
    this.#input.destroy();
    this.#output.destroy();
  }
}

function configOf(text: string, warn: (line: string) => void): DomainConfig {
  try {
    return readDomainConfig('<saved>', text, { warn });
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    throw new HostError(error.message);
  }
}

function streamOf(fd: number, what: string): Socket {
  const stat = fstatSync(fd);
  if (!stat.isFIFO() && !stat.isSocket())
    throw new HostError(`standard ${what} is no pipe: migrate-receive is what xl migrate runs at the target`);
  const socket = new Socket({ fd, readable: what === 'input', writable: what === 'output' });
  // Whoever reads or writes hears of it.
  socket.on('error', () => {});
  return socket;
}

async function within<T>(done: Promise<T>, limitMs: number): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(
      () => reject(new SaveFileError(`nothing has come from the source for ${limitMs / 1000} s`)),
      limitMs,
    );
  });
  try {
    return await Promise.race([done, late]);
  } finally {
    clearTimeout(timer);
  }
}
