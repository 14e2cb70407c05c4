/** What one viewer holds down, keys and buttons: when it goes away, the guest sees them released. */

import type { KeyboardDevice } from '../../backends/keyboard.ts';

/** Source: linux/input-event-codes.h. */
const BTN_LEFT = 0x110;
const BTN_RIGHT = 0x111;
const BTN_MIDDLE = 0x112;
/** In the order of VNC's bits. */
const BUTTONS = [BTN_LEFT, BTN_MIDDLE, BTN_RIGHT];
const WHEEL_UP = 8;
const WHEEL_DOWN = 16;

export class HeldKeys {
  readonly #keyboard: Pick<KeyboardDevice, 'key' | 'pointer'>;
  /** Linux's KEY_* and BTN_*. */
  readonly #held = new Set<number>();
  #buttons = 0;

  constructor(keyboard: Pick<KeyboardDevice, 'key' | 'pointer'>) {
    this.#keyboard = keyboard;
  }

  key(keycode: number, pressed: boolean): void {
    if (pressed) this.#held.add(keycode);
    else this.#held.delete(keycode);
    this.#keyboard.key(keycode, pressed);
  }

  /** `buttons`: a bit each, as RFB has them. */
  point(x: number, y: number, buttons: number): void {
    const changed = buttons ^ this.#buttons;
    const pressed = buttons & changed;
    this.#buttons = buttons;
    this.#keyboard.pointer(x, y, (pressed & WHEEL_UP ? 1 : 0) - (pressed & WHEEL_DOWN ? 1 : 0));
    for (const [bit, button] of BUTTONS.entries())
      if ((changed & (1 << bit)) !== 0) this.key(button, (buttons & (1 << bit)) !== 0);
  }

  release(): void {
    for (const keycode of this.#held) this.#keyboard.key(keycode, false);
    this.#held.clear();
  }
}
