/** seek-bzip 2.0.0 ships no types; this is the part Domus uses. Source: its README. */
declare module 'seek-bzip' {
  interface ByteSink {
    writeByte(byte: number): void;
  }
  const bunzip: {
    /** Unpacks a whole bzip2 file into `output`; throws on corrupt input. */
    decode(input: Uint8Array, output: ByteSink): unknown;
  };
  export default bunzip;
}
