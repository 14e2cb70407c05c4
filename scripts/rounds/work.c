// What is compiled again and again: its output must be the same each time.
#include <math.h>
#include <stdint.h>
#include <stdio.h>

static double table[512];

int main(void) {
  uint32_t hash = 2166136261u;
  for (int i = 0; i < 512; i++) table[i] = i * 0.37 + 1.0 / (i + 1);
  for (int round = 0; round < 200; round++)
    for (int i = 1; i < 512; i++) {
      table[i] = table[i] * 0.999 + table[i - 1] * 0.001 + (round & i) * 1e-6;
      hash = (hash ^ (uint32_t)(table[i] * 1e6)) * 16777619u;
    }
  printf("%08x %.17g\n", hash, table[511]);
}
