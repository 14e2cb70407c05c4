/*
 * The load that sends: usage: /send PORT. 64 MiB to this TCP port of 10.0.2.2, 64 KiB at a time, and then waits until the other side
 * has closed. (busybox's nc writes 1 KiB at a time, which measures little but system calls.)
 *
 * Made for the bench by the host's C compiler: static, without a C library, so that it runs in a guest that has none.
 */

#define TOTAL (64L << 20)
#define PIECE (64L << 10)

enum { READ = 0, WRITE = 1, SOCKET = 41, CONNECT = 42, SHUTDOWN = 48, EXIT_GROUP = 231 };

static char piece[PIECE];

static long call(long number, long a, long b, long c) {
  long result;
  __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
  return result;
}

static int transfer(const char *word) {
  unsigned port = 0;
  for (; *word; word++) port = port * 10 + (unsigned)(*word - '0');
  /* struct sockaddr_in: AF_INET, and port and address in network order. */
  unsigned char address[16] = {2, 0, port >> 8, port & 0xff, 10, 0, 2, 2};
  long to = call(SOCKET, 2, 1, 0);
  if (to < 0 || call(CONNECT, to, (long)address, sizeof address) < 0) return 1;
  for (long sent = 0; sent < TOTAL;) {
    long count = call(WRITE, to, (long)piece, TOTAL - sent < PIECE ? TOTAL - sent : PIECE);
    if (count <= 0) return 1;
    sent += count;
  }
  call(SHUTDOWN, to, 1, 0);
  return call(READ, to, (long)piece, PIECE) != 0;
}

/* The kernel puts the number of words and their addresses there. */
__attribute__((used)) static void start(long *stack) {
  char **words = (char **)(stack + 1);
  call(EXIT_GROUP, stack[0] != 2 || transfer(words[1]), 0, 0);
}

__attribute__((naked)) void _start(void) { __asm__("mov %rsp, %rdi\n\tand $-16, %rsp\n\tcall start"); }
