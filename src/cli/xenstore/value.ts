/**
 * Values as text on a terminal and on a command line: printable ASCII stands for itself, everything else is escaped.
 *
 *   byte        written     read as well
 *   tab, LF, CR \t \n \r
 *   backslash   \\
 *   0 to 7      \000        \ and up to three octal digits
 *   others      \x1b \xff   \x and up to two hexadecimal digits
 *
 * Source: sanitise_value, unsanitise_value in tools/xenstore of Xen 4.17 (read for behaviour).
 */

const ESCAPES: Readonly<Record<number, string>> = { 9: '\\t', 10: '\\n', 13: '\\r', 92: '\\\\' };
const LETTERS: Readonly<Record<string, number>> = { t: 9, n: 10, r: 13 };

export function escapeValue(value: Uint8Array): string {
  let text = '';
  for (const byte of value) {
    if (byte in ESCAPES) text += ESCAPES[byte];
    else if (byte >= 0x20 && byte <= 0x7e) text += String.fromCharCode(byte);
    else if (byte < 8) text += `\\${byte.toString(8).padStart(3, '0')}`;
    else text += `\\x${byte.toString(16).padStart(2, '0')}`;
  }
  return text;
}

/** A backslash before any other character is left out; one at the end becomes a byte 0. */
export function unescapeValue(text: string): Uint8Array {
  const bytes = new TextEncoder().encode(text);
  const ascii = Array.from(bytes, (byte) => String.fromCharCode(byte)).join('');
  const value: number[] = [];
  for (let at = 0; at < bytes.length; at++) {
    if (ascii[at] !== '\\') {
      value.push(bytes[at]);
      continue;
    }
    const rest = ascii.slice(at + 1);
    const number = /^x\s*([0-9a-fA-F]{1,2})|^([0-7]{1,3})/.exec(rest);
    if (number !== null) {
      value.push(number[1] === undefined ? parseInt(number[2], 8) & 0xff : parseInt(number[1], 16));
      at += number[0].length;
    } else {
      value.push(LETTERS[rest[0]] ?? bytes[at + 1] ?? 0);
      at++;
    }
  }
  return Uint8Array.from(value);
}
