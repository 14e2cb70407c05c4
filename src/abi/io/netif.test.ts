import { expect, test } from 'vitest';
import { NETIF_EXTRA_INFO, NETIF_RX_REQUEST, NETIF_RX_RESPONSE, NETIF_TX_REQUEST, NETIF_TX_RESPONSE } from './netif.ts';
import { ringSlots } from './ring.ts';

// Source: netif.h draws the structures; "the size of a slot is that of the larger of request and response".
test('the structures of netif.h have the sizes that it draws, and a page holds 256 slots of either ring', () => {
  expect([NETIF_TX_REQUEST.SIZE, NETIF_TX_RESPONSE.SIZE]).toEqual([12, 4]);
  expect([NETIF_RX_REQUEST.SIZE, NETIF_RX_RESPONSE.SIZE, NETIF_EXTRA_INFO.SIZE]).toEqual([8, 8, 8]);
  expect(NETIF_TX_REQUEST.size + 2).toBe(NETIF_TX_REQUEST.SIZE);
  expect(NETIF_RX_RESPONSE.status + 2).toBe(NETIF_RX_RESPONSE.SIZE);
  expect(NETIF_EXTRA_INFO.gso_features + 2).toBe(NETIF_EXTRA_INFO.SIZE);
  expect([ringSlots(4096, 12), ringSlots(4096, 8)]).toEqual([256, 256]);
});
