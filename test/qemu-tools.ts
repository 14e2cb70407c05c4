/** qemu-img, the authority on what an image means. */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { AptError } from '../src/toolstack/guest-image/apt.ts';
import { type DebianTool, debianTool } from '../src/toolstack/guest-image/debian-tool.ts';

const execute = promisify(execFile);

export interface QemuTools {
  img(...words: readonly string[]): Promise<string>;
  io(...words: readonly string[]): Promise<string>;
  readonly nbd: DebianTool;
}

/** The tools, or why there are none. */
export async function qemuTools(): Promise<QemuTools | string> {
  try {
    const img = await debianTool('qemu-img', 'qemu-utils');
    const io = await debianTool('qemu-io', 'qemu-utils');
    const nbd = await debianTool('qemu-nbd', 'qemu-utils');
    const run = async ({ path, env }: DebianTool, words: readonly string[]): Promise<string> => {
      try {
        return (await execute(path, words, { env, timeout: 60_000 })).stdout;
      } catch (error) {
        const { stdout, stderr, message } = error as { stdout: string; stderr: string; message: string };
        throw new Error(`qemu ${words.join(' ')}: ${stdout}${stderr || message}`);
      }
    };
    return { img: (...words) => run(img, words), io: (...words) => run(io, words), nbd };
  } catch (error) {
    if (error instanceof AptError) return `no qemu-utils: ${error.message}`;
    throw error;
  }
}

/** Fails unless "qemu-img check" finds the image sound. Leaked clusters are allowed if `mayLeak`. */
export async function checkImage(qemu: QemuTools, path: string, mayLeak = false): Promise<void> {
  try {
    await qemu.img('check', '-f', 'qcow2', path);
  } catch (error) {
    // Exit code 3: leaks, and nothing else.
    const text = (error as Error).message;
    if (
      !mayLeak ||
      /ERROR|corruptions? (?:was|were)|cannot be|not qcow2/i.test(text) ||
      !/leaked clusters? were found/.test(text)
    )
      throw error;
  }
}
