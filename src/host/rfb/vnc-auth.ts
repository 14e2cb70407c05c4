/** VNC authentication: the viewer encrypts a challenge with the password. Source: RFC 6143, 7.2.2. */

import { createCipheriv, timingSafeEqual } from 'node:crypto';

export const CHALLENGE_SIZE = 16;

/** The password's first eight bytes are a DES key; each byte's bits are in reverse. */
export function vncResponse(password: string, challenge: Uint8Array): Buffer {
  const key = Buffer.alloc(8);
  key.set(Buffer.from(password, 'utf8').subarray(0, 8));
  for (let i = 0; i < 8; i++) {
    let reversed = 0;
    for (let bit = 0; bit < 8; bit++) if ((key[i] & (1 << bit)) !== 0) reversed |= 0x80 >> bit;
    key[i] = reversed;
  }
  // Triple DES with one key three times is DES, which OpenSSL does not offer any more.
  const cipher = createCipheriv('des-ede3-ecb', Buffer.concat([key, key, key]), null);
  cipher.setAutoPadding(false);
  return Buffer.concat([cipher.update(challenge), cipher.final()]);
}

export function isRightResponse(password: string, challenge: Uint8Array, response: Uint8Array): boolean {
  return timingSafeEqual(vncResponse(password, challenge), response);
}
