/* Reads memory as fast as one thread can: what a decode step cannot beat. See bandwidth.py. */
#include <stddef.h>
#include <stdint.h>

typedef uint64_t line __attribute__((vector_size(64), aligned(8)));
enum { SOON = 8192 };  /* bytes ahead that are asked for: 2 kB to 32 kB are within 5 % of it */

uint64_t tfspeed_read(const char *at, size_t size) {
  line first = {0}, second = {0};
  size_t i = 0;
  for (; i + 128 <= size; i += 128) {
    __builtin_prefetch(at + i + SOON, 0, 2);
    __builtin_prefetch(at + i + 64 + SOON, 0, 2);
    first |= *(const line *)(at + i);
    second |= *(const line *)(at + i + 64);
  }
  first |= second;
  uint64_t all = 0;
  for (; i + 8 <= size; i += 8) all |= *(const uint64_t *)(at + i);
  for (int k = 0; k < 8; k++) all |= first[k];
  return all;
}

/* The same so many times: of what a cache holds, one pass is over before a thread has started. */
uint64_t tfspeed_read_again(const char *at, size_t size, size_t times) {
  uint64_t all = 0;
  for (; times; times--) {
    all |= tfspeed_read(at, size);
    __asm__ volatile("" ::: "memory");  /* nothing is known of it any more */
  }
  return all;
}
