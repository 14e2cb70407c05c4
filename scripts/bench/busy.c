/*
 * A guest that moves: usage: /busy. One process writes to each page of 32 MiB, over and over. Another looks at the clock each millisecond, and
 * says every few milliseconds how many times it has done so and the longest time in between, in microseconds: "tick 123 4567".
 *
 * Made for the bench by the host's C compiler: static, without a C library, so that it runs in a guest that has none.
 */

#define BYTES (32 << 20)
#define PAGE 4096
#define LOOKS 5

enum { WRITE = 1, NANOSLEEP = 35, FORK = 57, EXIT_GROUP = 231, CLOCK_GETTIME = 228 };
enum { CLOCK_MONOTONIC = 1 };

static volatile long memory[BYTES / sizeof(long)];

static long call(long number, long a, long b, long c) {
  long result;
  __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
  return result;
}

static long now_us(void) {
  long time[2];
  call(CLOCK_GETTIME, CLOCK_MONOTONIC, (long)time, 0);
  return time[0] * 1000000 + time[1] / 1000;
}

static char *number(char *to, long value) {
  char digits[20];
  int count = 0;
  do digits[count++] = '0' + value % 10;
  while ((value /= 10) != 0);
  while (count > 0) *to++ = digits[--count];
  return to;
}

static void write_memory(void) {
  for (long round = 1;; round++)
    for (long at = 0; at < BYTES; at += PAGE) memory[at / sizeof(long)] = round;
}

static void look_at_clock(void) {
  long last = now_us();
  for (long tick = 1;; tick++) {
    long longest = 0;
    for (int i = 0; i < LOOKS; i++) {
      long wait[2] = {0, 1000000};
      call(NANOSLEEP, (long)wait, 0, 0);
      long now = now_us();
      if (now - last > longest) longest = now - last;
      last = now;
    }
    char line[64] = "tick ";
    char *end = number(line + 5, tick);
    *end++ = ' ';
    end = number(end, longest);
    *end++ = '\n';
    call(WRITE, 1, (long)line, end - line);
  }
}

__attribute__((used)) static void start(void) {
  if (call(FORK, 0, 0, 0) == 0) write_memory();
  look_at_clock();
}

__attribute__((naked)) void _start(void) { __asm__("and $-16, %rsp\n\tcall start"); }
