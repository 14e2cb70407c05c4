/**
 * For tests: replies of Xen 4.17's oxenstored to domain 0, recorded on Debian 12 (xs-wire.out).
 *
 * Each row: what it was called there, type, payload, transaction id, the recorded reply (type and payload). A watch event
 * shows where the recording read it, which is before the next reply. Rows that differ on purpose are in `DEVIATIONS`.
 * The recording has names and replies only: the requests here are made after the names. Left out are its last two: a
 * payload of 4097 bytes, which loses framing there and ends the connection here, and one of no bytes, which is not
 * answered there and is here.
 */
import { XS } from '../abi/io/xs-wire.ts';

export type RecordedRow = readonly [name: string, type: number, payload: string, txId: number, ...replies: string[]];

export const RECORDED: readonly RecordedRow[] = [
  ['READ nosuch', XS.READ, '/nosuch\0', 0, '16 ENOENT\0'],
  ['READ no NUL', XS.READ, '/nosuch', 0, '16 EINVAL\0'],
  ['WRITE', XS.WRITE, '/t/p\0val', 0, '11 OK\0'],
  ['READ', XS.READ, '/t/p\0', 0, '2 val'],
  ['WRITE empty', XS.WRITE, '/t/p\0', 0, '11 OK\0'],
  ['READ empty val', XS.READ, '/t/p\0', 0, '2 '],
  ['DIRECTORY', XS.DIRECTORY, '/t\0', 0, '1 p\0'],
  ['DIRECTORY leaf', XS.DIRECTORY, '/t/p\0', 0, '1 '],
  ['DIRECTORY nosuch', XS.DIRECTORY, '/nosuch\0', 0, '16 ENOENT\0'],
  // The recording calls it DIRECTORY_PART, but sent 21.
  ['RESET_WATCHES', XS.RESET_WATCHES, '/t\x000\0', 0, '21 OK\0'],
  ['GET_PERMS', XS.GET_PERMS, '/t/p\0', 0, '3 n0\0'],
  ['GET_PERMS nosuch', XS.GET_PERMS, '/nosuch\0', 0, '16 ENOENT\0'],
  ['SET_PERMS', XS.SET_PERMS, '/t/p\0r0\0b3\0', 0, '14 OK\0'],
  ['GET_PERMS2', XS.GET_PERMS, '/t/p\0', 0, '3 r0\0b3\0'],
  ['SET_PERMS bad', XS.SET_PERMS, '/t/p\0z0\0', 0, '16 EINVAL\0'],
  ['GET_DOMAIN_PATH 1', XS.GET_DOMAIN_PATH, '1\0', 0, '10 /local/domain/1\0'],
  ['GET_DOMAIN_PATH 12345', XS.GET_DOMAIN_PATH, '12345\0', 0, '10 /local/domain/12345\0'],
  ['GET_DOMAIN_PATH abc', XS.GET_DOMAIN_PATH, 'abc\0', 0, '10 /local/domain/0\0'],
  ['IS_INTRODUCED 0', XS.IS_DOMAIN_INTRODUCED, '0\0', 0, '17 T\0'],
  ['IS_INTRODUCED 999', XS.IS_DOMAIN_INTRODUCED, '999\0', 0, '17 F\0'],
  ['MKDIR', XS.MKDIR, '/t/d\0', 0, '12 OK\0'],
  ['MKDIR again', XS.MKDIR, '/t/d\0', 0, '12 OK\0'],
  ['MKDIR deep', XS.MKDIR, '/t/e/f/g\0', 0, '12 OK\0'],
  ['RM', XS.RM, '/t/d\0', 0, '13 OK\0'],
  ['RM again', XS.RM, '/t/d\0', 0, '13 OK\0'],
  ['RM parent missing', XS.RM, '/no/such\0', 0, '16 ENOENT\0'],
  ['RM root', XS.RM, '/\0', 0, '13 OK\0'],
  ['WATCH', XS.WATCH, '/t/z\0tok\0', 0, '4 OK\0'],
  ['WATCH dup', XS.WATCH, '/t/z\0tok\0', 0, '15 /t/z\0tok\0', '16 EEXIST\0'],
  ['WRITE watched', XS.WRITE, '/t/z\x001', 0, '11 OK\0'],
  ['WRITE watched child', XS.WRITE, '/t/z/1\x001', 0, '15 /t/z\0tok\0', '11 OK\0'],
  ['RM watched', XS.RM, '/t/z\0', 0, '15 /t/z/1\0tok\0', '13 OK\0'],
  ['UNWATCH', XS.UNWATCH, '/t/z\0tok\0', 0, '15 /t/z\0tok\0', '5 OK\0'],
  ['UNWATCH again', XS.UNWATCH, '/t/z\0tok\0', 0, '16 ENOENT\0'],
  // The recording calls it RESET_WATCHES, but sent 20.
  ['type 20', 20, '\0', 0, '16 ENOSYS\0'],
  ['TRANSACTION_START', XS.TRANSACTION_START, '\0', 0, '6 1\0'],
  ['WRITE in tx', XS.WRITE, '/t/tx\0in', 1, '11 OK\0'],
  ['READ outside', XS.READ, '/t/tx\0', 0, '16 ENOENT\0'],
  ['READ inside', XS.READ, '/t/tx\0', 1, '2 in'],
  ['nested START', XS.TRANSACTION_START, '\0', 1, '16 EBUSY\0'],
  ['END T', XS.TRANSACTION_END, 'T\0', 1, '7 OK\0'],
  ['READ after commit', XS.READ, '/t/tx\0', 0, '2 in'],
  ['END again', XS.TRANSACTION_END, 'T\0', 1, '16 EIO\0'],
  ['READ bad tx', XS.READ, '/t/tx\0', 777, '16 EIO\0'],
  ['START 2', XS.TRANSACTION_START, '\0', 0, '6 2\0'],
  ['READ in 2', XS.READ, '/t/tx\0', 2, '2 in'],
  ['WRITE outside', XS.WRITE, '/t/tx\0out', 0, '11 OK\0'],
  ['WRITE in 2', XS.WRITE, '/t/tx\0two', 2, '11 OK\0'],
  ['END 2 conflicting', XS.TRANSACTION_END, 'T\0', 2, '16 EAGAIN\0'],
  ['START 3', XS.TRANSACTION_START, '\0', 0, '6 4\0'],
  ['WRITE in 3', XS.WRITE, '/t/abort\0x', 4, '11 OK\0'],
  ['END F', XS.TRANSACTION_END, 'F\0', 4, '7 OK\0'],
  ['READ after abort', XS.READ, '/t/abort\0', 0, '16 ENOENT\0'],
  ['START 4', XS.TRANSACTION_START, '\0', 0, '6 5\0'],
  ['END X', XS.TRANSACTION_END, 'X\0', 5, '16 EINVAL\0'],
  ['CONTROL help', XS.CONTROL, 'help\0', 0, '0 OK\0'],
  ['CONTROL empty', XS.CONTROL, '\0', 0, '0 OK\0'],
  ['type 99', 99, '\0', 0, '16 ENOSYS\0'],
  ['INTRODUCE short', XS.INTRODUCE, '5\0', 0, '16 EINVAL\0'],
  ['RELEASE 999', XS.RELEASE, '999\0', 0, '16 EINVAL\0'],
  ['RESUME 999', XS.RESUME, '999\0', 0, '16 EINVAL\0'],
  ['SET_TARGET', XS.SET_TARGET, '999\x001\0', 0, '16 ENOENT\0'],
  ['READ dotdot', XS.READ, '/t/../x\0', 0, '16 EINVAL\0'],
  ['READ 3072 path', XS.READ, `/${'a'.repeat(3071)}\0`, 0, '16 EINVAL\0'],
  ['READ 3073 path', XS.READ, `/${'a'.repeat(3072)}\0`, 0, '16 EINVAL\0'],
  ['WRITE 4096 payload', XS.WRITE, `/t/big\0${'v'.repeat(4089)}`, 0, '16 E2BIG\0'],
];

/** oxenstored wipes the store when domain 0 removes "/"; the C xenstored refuses, and so do we. */
export const DEVIATIONS: Readonly<Record<string, string>> = { 'RM root': '16 EINVAL\0' };
