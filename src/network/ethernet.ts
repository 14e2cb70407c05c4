/** Ethernet addresses and types. Source: IEEE 802.3; IEEE 802 EtherType numbers. */

export const ETHERTYPE_IPV4 = 0x0800;
export const ETHERTYPE_ARP = 0x0806;
export const ETHERTYPE_VLAN = 0x8100;
export const ETHERTYPE_IPV6 = 0x86dd;

export const MAC_BYTES = 6;

/** Upper 16 bits of the address at `at`. */
export const macHigh = (b: Uint8Array, at: number): number => (b[at] << 8) | b[at + 1];
/** Lower 32 bits of the address at `at`. */
export const macLow = (b: Uint8Array, at: number): number =>
  ((b[at + 2] << 24) | (b[at + 3] << 16) | (b[at + 4] << 8) | b[at + 5]) >>> 0;

/** True for multicast and broadcast addresses. */
export const isGroupAddress = (b: Uint8Array, at: number): boolean => (b[at] & 1) !== 0;

/** Six bytes of `aa:bb:cc:dd:ee:ff`, or null when it is no such thing. */
export function parseMac(text: string): Uint8Array | null {
  if (!/^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$/.test(text)) return null;
  return Uint8Array.from(text.split(':'), (byte) => Number.parseInt(byte, 16));
}

export function formatMac(bytes: Uint8Array, at = 0): string {
  return Array.from(bytes.subarray(at, at + MAC_BYTES), (byte) => byte.toString(16).padStart(2, '0')).join(':');
}
