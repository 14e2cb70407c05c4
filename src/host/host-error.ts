/** The host cannot run the domain. One line. */
export class HostError extends Error {
  override readonly name = 'HostError';
}
