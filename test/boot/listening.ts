import { connect } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

/** Resolves when somebody listens at a port of 127.0.0.1: who takes migrations is started again a second after it was killed. Throws after `limitMs`. */
export async function untilListening(port: number, limitMs: number): Promise<void> {
  const answers = (): Promise<boolean> =>
    new Promise((resolve) => {
      const socket = connect(port, '127.0.0.1', () => {
        socket.destroy();
        resolve(true);
      });
      socket.on('error', () => resolve(false));
    });
  const endMs = performance.now() + limitMs;
  while (!(await answers())) {
    if (performance.now() > endMs) throw new Error(`nobody listens at port ${port}`);
    await sleep(20);
  }
}
