/** The host's monotonic clock in ns, as a double (exact to 2^53 ns, 104 days of uptime, and to 2 ns for as long again). */
export function monotonicNs(): number {
  const [seconds, ns] = process.hrtime();
  return seconds * 1e9 + ns;
}
