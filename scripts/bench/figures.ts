/** From times to what is printed: minimum, median, ratio, and tables in Markdown, so that they can be pasted into docs/. */

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

/** Minimum and median in seconds; `-` where nothing was measured. */
export function minAndMedian(valuesMs: readonly number[]): string {
  if (valuesMs.length === 0) return '-';
  return `${(Math.min(...valuesMs) / 1000).toFixed(3)} / ${(median(valuesMs) / 1000).toFixed(3)}`;
}

/** How many times as long the second takes as the first, by their medians. */
export function ratio(firstMs: readonly number[], secondMs: readonly number[]): string {
  if (firstMs.length === 0 || secondMs.length === 0) return '-';
  const first = median(firstMs);
  // A load shorter than a step of the guest's clock.
  return first > 0 ? (median(secondMs) / first).toFixed(2) : '-';
}

/** A Markdown table; the first column is text, the others are numbers. */
export function table(rows: readonly (readonly string[])[]): string {
  const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)));
  const line = (row: readonly string[]): string =>
    `| ${row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i]))).join(' | ')} |`;
  const rule = `| ${widths.map((width, i) => (i === 0 ? '-'.repeat(width) : `${'-'.repeat(width - 1)}:`)).join(' | ')} |`;
  return [line(rows[0]), rule, ...rows.slice(1).map(line)].join('\n');
}
