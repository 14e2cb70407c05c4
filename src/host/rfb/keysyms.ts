/**
 * X keysyms, which VNC sends, to Linux's key codes, which the guest's keyboard sends: by position on a US keyboard, so that a
 * shifted letter and its letter are one key.
 *
 * Source: RFC 6143, 7.5.4; X11 keysymdef.h; Linux include/uapi/linux/input-event-codes.h (numbers).
 */

/** Keys of each row in order, from a code on: the keysym without shift, then with it. */
const ROWS: readonly (readonly [number, string, string])[] = [
  [2, '1234567890-=', '!@#$%^&*()_+'],
  [16, 'qwertyuiop[]', 'QWERTYUIOP{}'],
  [30, "asdfghjkl;'`", 'ASDFGHJKL:"~'],
  [43, '\\zxcvbnm,./', '|ZXCVBNM<>?'],
  [57, ' ', ' '],
];

const OTHERS: Readonly<Record<number, number>> = {
  65288: 14, // BackSpace
  65289: 15, // Tab
  65056: 15, // ISO_Left_Tab
  65293: 28, // Return
  65299: 119, // Pause
  65300: 70, // Scroll_Lock
  65307: 1, // Escape
  65360: 102, // Home
  65361: 105, // Left
  65362: 103, // Up
  65363: 106, // Right
  65364: 108, // Down
  65365: 104, // Prior
  65366: 109, // Next
  65367: 107, // End
  65377: 99, // Print
  65379: 110, // Insert
  65383: 127, // Menu
  65407: 69, // Num_Lock
  65421: 96, // KP_Enter
  65429: 71, // KP_Home
  65430: 75, // KP_Left
  65431: 72, // KP_Up
  65432: 77, // KP_Right
  65433: 80, // KP_Down
  65434: 73, // KP_Prior
  65435: 81, // KP_Next
  65436: 79, // KP_End
  65437: 76, // KP_Begin
  65438: 82, // KP_Insert
  65439: 83, // KP_Delete
  65450: 55, // KP_Multiply
  65451: 78, // KP_Add
  65453: 74, // KP_Subtract
  65454: 83, // KP_Decimal
  65455: 98, // KP_Divide
  65456: 82, // KP_0
  65457: 79,
  65458: 80,
  65459: 81,
  65460: 75,
  65461: 76,
  65462: 77,
  65463: 71,
  65464: 72,
  65465: 73, // KP_9
  65480: 87, // F11
  65481: 88, // F12
  65505: 42, // Shift_L
  65506: 54, // Shift_R
  65507: 29, // Control_L
  65508: 97, // Control_R
  65509: 58, // Caps_Lock
  65511: 125, // Meta_L
  65512: 126, // Meta_R
  65513: 56, // Alt_L
  65514: 100, // Alt_R
  65515: 125, // Super_L
  65516: 126, // Super_R
  65027: 100, // ISO_Level3_Shift
  65535: 111, // Delete
};

const codes = new Map<number, number>(Object.entries(OTHERS).map(([keysym, code]) => [Number(keysym), code]));
for (const [first, plain, shifted] of ROWS)
  for (let i = 0; i < plain.length; i++) {
    codes.set(plain.charCodeAt(i), first + i);
    codes.set(shifted.charCodeAt(i), first + i);
  }
// F1 to F10.
for (let i = 0; i < 10; i++) codes.set(0xffbe + i, 59 + i);

/** Linux's KEY_*, or null for a keysym that no key of a US keyboard has. */
export function keycodeOf(keysym: number): number | null {
  return codes.get(keysym) ?? null;
}
