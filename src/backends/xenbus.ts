/**
 * Dom0's end of a split device: the handshake over the `state` nodes of both ends, the same for every kind of device.
 *
 *   backend                          frontend
 *   Initialising   set by the toolstack    Initialising
 *   InitWait       what the device offers is published
 *                                    Initialised or Connected: its rings are published
 *   Connected      rings are mapped, what the device is has been published
 *                                    Closing, Closed: unload, kexec, or because the backend is Closing
 *   Closing, Closed
 *   InitWait       when the device is still `online`: the frontend may come back
 *
 * The toolstack unplugs a device by `online` = 0 and `state` = Closing. Once the frontend is Closed, or its nodes are gone, the
 * backend is Closed and done. A device with a `script` that has to run first connects when `hotplug-status` says "connected".
 *
 * Everything the frontend wrote is hostile. What is wrong with it is told in the log and in Dom0's
 * `error/backend/<kind>/<domid>/<id>/error`, as "<errno> <text>", and the backend closes.
 *
 * Source: xen/include/public/io/xenbus.h, blkif.h ("STARTUP/SHUTDOWN"); the order is that of Linux's blkback and netback as
 * a frontend sees it.
 */

import { EINVAL } from '../abi/errno.ts';
import {
  XenbusStateClosed,
  XenbusStateClosing,
  XenbusStateConnected,
  XenbusStateInitialised,
  XenbusStateInitialising,
  XenbusStateInitWait,
  XenbusStateReconfigured,
  XenbusStateReconfiguring,
  XenbusStateUnknown,
} from '../abi/io/xenbus.ts';
import { type XenstoreClient, XenstoreClosed } from '../xenstore/client.ts';
import type { DiskTraffic, NetworkTraffic } from './traffic.ts';

/** What the frontend wrote, or did, is no good. The errno is for the error node. */
export class FrontendError extends Error {
  override readonly name = 'FrontendError';
  readonly errno: number;

  constructor(errno: number, message: string) {
    super(message);
    this.errno = errno;
  }
}

/** Values of all nodes of both ends of a device, by path: what a store is known to hold, so that it need not be asked. */
export type KnownNodes = ReadonlyMap<string, string>;

/** Values by name, relative to the backend's folder. */
export type Nodes = Readonly<Record<string, string>>;

/** One kind of device. Calls never overlap. */
export interface BackendDevice {
  /** With a `script`, connect only when `hotplug-status` is "connected". */
  readonly waitsForHotplug: boolean;
  /**
   * What the toolstack may ask of it at any time, by the name of a node in the backend's folder: called with what was written there.
   * The node is removed when that is done; what was wrong, or nothing, is in `NAME-error` then.
   */
  readonly requests?: Readonly<Record<string, (value: string) => Promise<void>>>;
  /** Of a disk or an interface. */
  readonly traffic?: DiskTraffic | NetworkTraffic;
  /** What the device offers, published before InitWait; again each time a new frontend is waited for. */
  announce(): Nodes;
  /**
   * The frontend has published its rings. What is published before Connected.
   * @throws FrontendError; then `disconnect` follows
   */
  connect(frontend: FrontendNodes): Promise<Nodes>;
  /** Answers what is under way, and takes no more: `disconnect` follows, and after it perhaps a `connect` to the same frontend. */
  drain?(): Promise<void>;
  /** The frontend is gone: when this resolves, nothing of the guest's is used any more. May come without a connect. */
  disconnect(): Promise<void>;
  /** The device is gone for good. After `disconnect`. */
  close(): Promise<void>;
}

/** Lines that one device may write to the log: a guest must not flood it. */
const LOG_LINES_MAX = 20;
const TEXT_MAX = 256;
/** How long a step that waits for the store may hold up the end of a domain. */
const STOP_MS = 2000;

/** Reads what a frontend wrote. */
export class FrontendNodes {
  readonly path: string;
  readonly #store: XenstoreClient;
  readonly #known: KnownNodes | null;

  constructor(store: XenstoreClient, path: string, known: KnownNodes | null = null) {
    this.#store = store;
    this.path = path;
    this.#known = known;
  }

  /** The value, or null. */
  async text(name: string): Promise<string | null> {
    const path = `${this.path}/${name}`;
    const value = this.#known === null ? await this.#store.read(path) : (this.#known.get(path) ?? null);
    if (value !== null && value.length > TEXT_MAX)
      throw new FrontendError(EINVAL, `${this.path}/${name}: at most ${TEXT_MAX} characters are expected`);
    return value;
  }

  /**
   * A decimal number from `min` to `max`; `otherwise` when there is no such node.
   * @throws FrontendError when it is anything else, or missing without `otherwise`
   */
  async number(name: string, min: number, max: number, otherwise?: number): Promise<number> {
    const text = await this.text(name);
    if (text === null) {
      if (otherwise !== undefined) return otherwise;
      throw new FrontendError(EINVAL, `reading ${this.path}/${name}: a number is expected, found nothing`);
    }
    const number = /^\d{1,10}$/.test(text) ? Number(text) : Number.NaN;
    if (number >= min && number <= max) return number;
    throw new FrontendError(
      EINVAL,
      `reading ${this.path}/${name}: a number from ${min} to ${max} is expected, found ${JSON.stringify(text)}`,
    );
  }
}

/** What a device may ask of its bus, at any time. */
export interface DeviceBus {
  /** The frontend has broken the protocol: this is logged, told in xenstore, and the backend closes. */
  fail(error: FrontendError): void;
  /** A line about what the frontend did, of which there may be too many. */
  complain(text: string): void;
  /** Changes nodes while the device is connected, and makes the frontend look at them. */
  update(nodes: Nodes): Promise<void>;
}

export interface XenbusBackendOptions {
  readonly store: XenstoreClient;
  /** The backend's folder: /local/domain/0/backend/<kind>/<domid>/<id>. */
  readonly path: string;
  readonly device: (bus: DeviceBus) => BackendDevice;
  /** One line. */
  readonly log: (line: string) => void;
}

export class XenbusBackend implements DeviceBus {
  readonly path: string;
  readonly #store: XenstoreClient;
  readonly #device: BackendDevice;
  readonly #log: (line: string) => void;
  readonly #token: string;
  /** While it starts. */
  #known: KnownNodes | null = null;
  #frontendPath = '';
  #watched: string[] = [];
  #logLinesLeft = LOG_LINES_MAX;
  /** Has `connect` succeeded since the last `disconnect`? */
  #connected = false;
  /** What the device has reported by `fail`. */
  #failure: FrontendError | null = null;
  /** The last request, which begins when those before it are done. */
  #requests: Promise<void> = Promise.resolve();
  #changed = false;
  #running: Promise<void> | null = null;
  #stopped = false;
  /** Let go of the guest: `detach`. */
  #isDetached = false;
  #closing: Promise<void> | null = null;
  #whenGone: () => void = () => {};
  /** Resolves when the device has been unplugged, or stopped. */
  readonly gone: Promise<void>;

  constructor(options: XenbusBackendOptions) {
    this.path = options.path;
    this.#store = options.store;
    this.#log = options.log;
    this.#token = `backend ${options.path}`;
    this.gone = new Promise((resolve) => {
      this.#whenGone = resolve;
    });
    this.#device = options.device(this);
  }

  get traffic(): DiskTraffic | NetworkTraffic | undefined {
    return this.#device.traffic;
  }

  /** As the device has it. */
  get waitsForHotplug(): boolean {
    return this.#device.waitsForHotplug;
  }

  /**
   * Publishes what the device offers and waits for its frontend. The toolstack has made the nodes of both ends. `goesOn`: the frontend
   * is that of a restored domain, which does not know that this is another backend; `known`: what the store holds of both ends.
   */
  async start(goesOn = false, known: KnownNodes | null = null): Promise<void> {
    this.#known = known;
    const frontend = await this.#read(`${this.path}/frontend`);
    if (frontend === null) throw new Error(`${this.path}/frontend: expected the frontend's path, found nothing`);
    this.#frontendPath = frontend;
    if (goesOn) await this.#goOn();
    else await this.#waitForFrontend();
    this.#known = null;
    const watched = [`${frontend}/state`, `${this.path}/state`, `${this.path}/online`];
    if (this.#device.waitsForHotplug) watched.push(`${this.path}/hotplug-status`);
    const asked = watched.map((path) => this.#watch(path, () => this.#look()));
    for (const [name, act] of Object.entries(this.#device.requests ?? {})) {
      const path = `${this.path}/${name}`;
      const serve = (): void => {
        this.#requests = this.#requests.then(() => this.#serveRequest(path, act));
      };
      asked.push(this.#watch(path, serve));
    }
    // All at once: the guest of a restored domain stands still meanwhile.
    await Promise.all(asked);
  }

  async #watch(path: string, onChange: () => void): Promise<void> {
    this.#watched.push(path);
    await this.#store.watch(path, this.#token, onChange);
  }

  async #serveRequest(path: string, act: (value: string) => Promise<void>): Promise<void> {
    try {
      const value = await this.#store.read(path);
      if (value === null || this.#stopped) return;
      let problem = '';
      try {
        await act(value);
      } catch (error) {
        problem = error instanceof Error ? error.message : String(error);
      }
      await this.#store.write(`${path}-error`, problem.slice(0, 1024));
      await this.#store.remove(path);
    } catch (error) {
      if (!(error instanceof XenstoreClosed)) this.complain(error instanceof Error ? error.message : String(error));
    }
  }

  fail(error: FrontendError): void {
    this.#failure ??= error;
    this.#look();
  }

  complain(text: string): void {
    if (this.#logLinesLeft <= 0) return;
    const last = --this.#logLinesLeft === 0 ? '; nothing more is said of this device' : '';
    this.#log(`${this.path}: ${text}${last}`);
  }

  async update(nodes: Nodes): Promise<void> {
    if (!this.#connected || this.#stopped) return;
    await this.#publish(nodes);
    // The frontend watches the state, and a write that changes nothing is a change too.
    await this.#switchState(XenbusStateConnected);
  }

  /** The domain ends: the device is closed, the nodes stay as they are. Does not wait long for a store that is away. */
  async stop(): Promise<void> {
    this.#stopped = true;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const limit = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, STOP_MS);
    });
    await Promise.race([this.#running, limit]);
    clearTimeout(timer);
    await this.#finish();
    this.#whenGone();
  }

  /** Answers what is under way and lets go of the guest's memory, events and grants. The nodes stay, and the frontend does not notice. */
  async detach(): Promise<void> {
    this.#isDetached = true;
    await this.#running;
    if (!this.#connected) return;
    await this.#device.drain?.();
    await this.#device.disconnect();
  }

  /** After `detach`: goes on where it was. */
  async attach(): Promise<void> {
    if (this.#connected && !this.#stopped) await this.#connect(false);
    this.#isDetached = false;
    if (this.#changed) this.#look();
  }

  /** The nodes of both ends are those of a domain that was saved. */
  async #goOn(): Promise<void> {
    await this.#publish(this.#device.announce());
    const own = await this.#readState(this.path);
    if (own === XenbusStateConnected) await this.#connect(false);
    else if (own === XenbusStateInitialising) await this.#switchState(XenbusStateInitWait);
  }

  #look(): void {
    this.#changed = true;
    // What ends without waiting would leave itself behind as what runs.
    if (!this.#stopped && !this.#isDetached) this.#running ??= this.#run();
  }

  async #run(): Promise<void> {
    try {
      while (this.#changed && !this.#stopped && !this.#isDetached) {
        this.#changed = false;
        await this.#step();
      }
    } catch (error) {
      // Without a store there is nobody to talk to; the rings go on.
      if (!(error instanceof XenstoreClosed)) this.complain(error instanceof Error ? error.message : String(error));
    } finally {
      this.#running = null;
    }
  }

  async #step(): Promise<void> {
    const own = await this.#readState(this.path);
    const failure = this.#failure;
    if (failure !== null) {
      this.#failure = null;
      await this.#refuse(failure);
      return;
    }
    if (own === XenbusStateUnknown) return await this.#leave();
    const frontend = await this.#readState(this.#frontendPath);
    switch (frontend) {
      case XenbusStateInitialising:
        if (this.#connected || own === XenbusStateClosed) {
          await this.#disconnect();
          if (await this.#isOnline()) await this.#waitForFrontend();
          else await this.#leave();
        } else if (own === XenbusStateClosing && !(await this.#isOnline())) {
          // Unplugged before any driver of the guest has looked at it.
          await this.#leave();
        }
        return;
      case XenbusStateInitWait:
      case XenbusStateReconfiguring:
      case XenbusStateReconfigured:
        return;
      case XenbusStateInitialised:
      case XenbusStateConnected:
        if (own === XenbusStateInitWait && (await this.#isPlugged())) await this.#connect();
        return;
      case XenbusStateClosing:
        if (own !== XenbusStateClosing && own !== XenbusStateClosed) await this.#switchState(XenbusStateClosing);
        return;
      case XenbusStateClosed:
      case XenbusStateUnknown:
        await this.#disconnect();
        if (frontend === XenbusStateUnknown || !(await this.#isOnline())) await this.#leave();
        else if (own !== XenbusStateClosed) await this.#switchState(XenbusStateClosed);
        return;
      default:
        if (own !== XenbusStateClosing && own !== XenbusStateClosed)
          await this.#refuse(new FrontendError(EINVAL, `saw state ${frontend} at frontend`));
    }
  }

  /** `tells`: the frontend waits for it. */
  async #connect(tells = true): Promise<void> {
    try {
      await this.#publish(await this.#device.connect(new FrontendNodes(this.#store, this.#frontendPath, this.#known)));
      this.#connected = true;
      if (tells) await this.#switchState(XenbusStateConnected);
    } catch (error) {
      if (!(error instanceof FrontendError)) throw error;
      await this.#refuse(error);
    }
  }

  async #disconnect(): Promise<void> {
    this.#connected = false;
    await this.#device.disconnect();
  }

  async #refuse(error: FrontendError): Promise<void> {
    this.complain(`${error.message}; the device is closed`);
    await this.#disconnect();
    const node = this.path.replace(/^\/local\/domain\/(\d+)\//, '/local/domain/$1/error/');
    await this.#store.write(`${node}/error`, `${error.errno} ${error.message}`.slice(0, 1024));
    if ((await this.#readState(this.path)) !== XenbusStateUnknown) await this.#switchState(XenbusStateClosing);
  }

  async #waitForFrontend(): Promise<void> {
    await this.#publish(this.#device.announce());
    await this.#switchState(XenbusStateInitWait);
  }

  async #publish(nodes: Nodes): Promise<void> {
    const isNew = ([name, value]: [string, string]): boolean => this.#known?.get(`${this.path}/${name}`) !== value;
    const changed = Object.entries(nodes).filter(isNew);
    await Promise.all(changed.map(([name, value]) => this.#store.write(`${this.path}/${name}`, value)));
  }

  async #switchState(state: number): Promise<void> {
    await this.#store.write(`${this.path}/state`, String(state));
  }

  /** What is known need not be asked for. */
  async #read(path: string): Promise<string | null> {
    return this.#known === null ? await this.#store.read(path) : (this.#known.get(path) ?? null);
  }

  /** XenbusStateUnknown where there is none; a state that is none comes back as NaN. */
  async #readState(folder: string): Promise<number> {
    const text = await this.#read(`${folder}/state`);
    if (text === null) return XenbusStateUnknown;
    return /^\d$/.test(text) ? Number(text) : Number.NaN;
  }

  async #isOnline(): Promise<boolean> {
    return (await this.#store.read(`${this.path}/online`)) === '1';
  }

  async #isPlugged(): Promise<boolean> {
    if (!this.#device.waitsForHotplug) return true;
    const status = await this.#store.read(`${this.path}/hotplug-status`);
    if (status !== null) return status === 'connected';
    return (await this.#store.read(`${this.path}/script`)) === null;
  }

  /** Unplugged: nothing is looked at any more. */
  async #leave(): Promise<void> {
    this.#stopped = true;
    try {
      await this.#finish();
      await this.#tellClosed();
    } finally {
      this.#whenGone();
    }
  }

  async #tellClosed(): Promise<void> {
    // Who unplugs it takes the nodes away on seeing Closed, and the device may have a script that reads them until it has ended.
    const own = await this.#readState(this.path);
    if (own !== XenbusStateUnknown && own !== XenbusStateClosed) await this.#switchState(XenbusStateClosed);
  }

  #finish(): Promise<void> {
    this.#closing ??= this.#closeDevice();
    return this.#closing;
  }

  async #closeDevice(): Promise<void> {
    try {
      await this.#disconnect();
    } finally {
      await this.#requests;
      await this.#device.close();
      // Nobody waits for the answers: the store may be away, or have ended the watches with the connection.
      for (const path of this.#watched.splice(0)) this.#store.unwatch(path, this.#token).catch(() => undefined);
    }
  }
}
