/** What has gone through a device since it was plugged in, whoever its frontend was. */

/** Sectors have 512 bytes. Source: Linux's blkback, statistics in sysfs (behaviour). */
export class DiskTraffic {
  reads = 0;
  writes = 0;
  readSectors = 0;
  writtenSectors = 0;
  /** How often the guest asked for more at once than the backend does at a time. */
  outOfRequests = 0;
}

export class FrameCounts {
  bytes = 0;
  frames = 0;
  errors = 0;
  dropped = 0;
}

export function countFrame(counts: FrameCounts, sizeBytes: number): void {
  counts.frames++;
  counts.bytes += sizeBytes;
}

/** As Dom0 sees its end of the interface. */
export class NetworkTraffic {
  /** From the guest. */
  readonly received = new FrameCounts();
  /** To the guest. */
  readonly sent = new FrameCounts();
}
