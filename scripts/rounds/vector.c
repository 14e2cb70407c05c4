// What fills the vector registers, again and again, and looks at what has become of them: 16 registers of integers and of fused products, over system calls and
// without. Its output must be the same each time; "lost" stands in it when a register has changed in between.
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

enum { LANES = 16, ROUNDS = 20000 };

int main(void) {
  __m256i keys[LANES];
  __m256d sums[LANES];
  __m256i all = _mm256_setzero_si256();
  for (int i = 0; i < LANES; i++) {
    keys[i] = _mm256_set_epi64x(i * 4 + 3, i * 4 + 2, i * 4 + 1, i * 4);
    sums[i] = _mm256_set1_pd(1.0 + i);
  }
  for (int round = 0; round < ROUNDS; round++) {
    for (int i = 0; i < LANES; i++) {
      keys[i] = _mm256_add_epi64(_mm256_mul_epu32(keys[i], _mm256_set1_epi64x(1664525)), _mm256_set1_epi64x(round + i));
      sums[i] = _mm256_fmadd_pd(sums[i], _mm256_set1_pd(0.999), _mm256_set1_pd(1e-3 * i));
      all = _mm256_xor_si256(_mm256_permute4x64_epi64(all, 0x93), _mm256_shuffle_epi8(keys[i], keys[LANES - 1 - i]));
    }
    all = _mm256_add_epi64(all, _mm256_castpd_si256(_mm256_sqrt_pd(sums[round % LANES])));
    if (round % 16 != 0) continue;
    // All sixteen registers hold the number of the round while another program may run.
    uint64_t lost;
    long result;
    __asm__ volatile(
        "vmovq %[round], %%xmm0\n\tvpbroadcastq %%xmm0, %%ymm0\n\t"
        "vmovdqa %%ymm0, %%ymm1\n\tvmovdqa %%ymm0, %%ymm2\n\tvmovdqa %%ymm0, %%ymm3\n\tvmovdqa %%ymm0, %%ymm4\n\t"
        "vmovdqa %%ymm0, %%ymm5\n\tvmovdqa %%ymm0, %%ymm6\n\tvmovdqa %%ymm0, %%ymm7\n\tvmovdqa %%ymm0, %%ymm8\n\t"
        "vmovdqa %%ymm0, %%ymm9\n\tvmovdqa %%ymm0, %%ymm10\n\tvmovdqa %%ymm0, %%ymm11\n\tvmovdqa %%ymm0, %%ymm12\n\t"
        "vmovdqa %%ymm0, %%ymm13\n\tvmovdqa %%ymm0, %%ymm14\n\tvmovdqa %%ymm0, %%ymm15\n\t"
        "syscall\n\tmov $20000, %%ecx\n\t1: dec %%ecx\n\tjnz 1b\n\t"
        "vpxor %%ymm0, %%ymm1, %%ymm1\n\tvpxor %%ymm0, %%ymm2, %%ymm2\n\tvpxor %%ymm0, %%ymm3, %%ymm3\n\t"
        "vpxor %%ymm0, %%ymm4, %%ymm4\n\tvpxor %%ymm0, %%ymm5, %%ymm5\n\tvpxor %%ymm0, %%ymm6, %%ymm6\n\t"
        "vpxor %%ymm0, %%ymm7, %%ymm7\n\tvpxor %%ymm0, %%ymm8, %%ymm8\n\tvpxor %%ymm0, %%ymm9, %%ymm9\n\t"
        "vpxor %%ymm0, %%ymm10, %%ymm10\n\tvpxor %%ymm0, %%ymm11, %%ymm11\n\tvpxor %%ymm0, %%ymm12, %%ymm12\n\t"
        "vpxor %%ymm0, %%ymm13, %%ymm13\n\tvpxor %%ymm0, %%ymm14, %%ymm14\n\tvpxor %%ymm0, %%ymm15, %%ymm15\n\t"
        "vpor %%ymm2, %%ymm1, %%ymm1\n\tvpor %%ymm3, %%ymm1, %%ymm1\n\tvpor %%ymm4, %%ymm1, %%ymm1\n\t"
        "vpor %%ymm5, %%ymm1, %%ymm1\n\tvpor %%ymm6, %%ymm1, %%ymm1\n\tvpor %%ymm7, %%ymm1, %%ymm1\n\t"
        "vpor %%ymm8, %%ymm1, %%ymm1\n\tvpor %%ymm9, %%ymm1, %%ymm1\n\tvpor %%ymm10, %%ymm1, %%ymm1\n\t"
        "vpor %%ymm11, %%ymm1, %%ymm1\n\tvpor %%ymm12, %%ymm1, %%ymm1\n\tvpor %%ymm13, %%ymm1, %%ymm1\n\t"
        "vpor %%ymm14, %%ymm1, %%ymm1\n\tvpor %%ymm15, %%ymm1, %%ymm1\n\t"
        "vmovq %[round], %%xmm2\n\tvpbroadcastq %%xmm2, %%ymm2\n\tvpxor %%ymm0, %%ymm2, %%ymm2\n\tvpor %%ymm2, %%ymm1, %%ymm1\n\t"
        "xor %k[lost], %k[lost]\n\tvptest %%ymm1, %%ymm1\n\tsetnz %b[lost]\n\t"
        : [lost] "=&r"(lost), "=a"(result)
        : [round] "r"((uint64_t)round), "a"(24L /* sched_yield */)
        : "rcx", "r11", "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
          "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    if (lost) printf("lost in round %d ", round);
  }
  uint64_t words[4];
  _mm256_storeu_si256((__m256i *)words, all);
  printf("%016lx%016lx%016lx%016lx", words[0], words[1], words[2], words[3]);
  for (int i = 0; i < LANES; i += 5) printf(" %.17g", _mm256_cvtsd_f64(sums[i]));
  printf("\n");
}
