/*
 * The random disk load: usage: /randio DEVICE r|w. Four processes, each 1000 times: 4096 bytes at a random place of the first
 * 256 MiB, past the page cache (O_DIRECT). So four requests are under way all the time.
 *
 * Made for the bench by the host's C compiler: static, without a C library, so that it runs in a guest that has none.
 */

#define PROCESSES 4
#define REQUESTS 1000
#define BLOCK 4096L
#define BLOCKS 65536L

enum { OPEN = 2, PREAD = 17, PWRITE = 18, FORK = 57, EXIT_GROUP = 231, WAIT4 = 61 };
enum { O_RDWR = 2, O_DIRECT = 040000 };

static char block[BLOCK] __attribute__((aligned(4096)));

static long call(long number, long a, long b, long c, long d) {
  register long r10 __asm__("r10") = d;
  long result;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
                   : "rcx", "r11", "memory");
  return result;
}

static int requests(const char *device, int writes, unsigned random) {
  long file = call(OPEN, (long)device, O_RDWR | O_DIRECT, 0, 0);
  if (file < 0) return 1;
  for (int i = 0; i < REQUESTS; i++) {
    random ^= random << 13;
    random ^= random >> 17;
    random ^= random << 5;
    long at = (random % BLOCKS) * BLOCK;
    if (call(writes ? PWRITE : PREAD, file, (long)block, BLOCK, at) != BLOCK) return 1;
  }
  return 0;
}

/* The kernel puts the number of words and their addresses there. */
__attribute__((used)) static void start(long *stack) {
  char **words = (char **)(stack + 1);
  int failed = stack[0] != 3;
  for (unsigned i = 0; i < PROCESSES && !failed; i++)
    if (call(FORK, 0, 0, 0, 0) == 0) call(EXIT_GROUP, requests(words[1], words[2][0] == 'w', 12345 + i * 999), 0, 0, 0);
  int status = 0;
  while (call(WAIT4, -1, (long)&status, 0, 0) > 0) failed |= status != 0;
  call(EXIT_GROUP, failed, 0, 0, 0);
}

__attribute__((naked)) void _start(void) { __asm__("mov %rsp, %rdi\n\tand $-16, %rsp\n\tcall start"); }
